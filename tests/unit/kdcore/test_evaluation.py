"""Metrics beside accuracy, against loops over the images and scikit-learn."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sklearn import metrics
from torch import Tensor, nn

from kdcore import Classifier, DataConfig, EpochReport, Recipe, TrialConfig
from kdcore.backbones.catalogue import build_backbone
from kdcore.data.image_data import ImageData
from kdcore.errors import ConfigError
from kdcore.training.checkpoint import read_checkpoint, write_checkpoint
from kdcore.training.evaluation import Evaluation, evaluate_classes
from kdcore.training.loop import train
from kdcore.training.metric import Metric
from tests.cases import Case


def made_up(num_classes: int = 25) -> Evaluation:
    """Two hundred images of unequal classes; the last two have none, and one is never predicted."""
    draw = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, generator=draw) ** 2 * (num_classes - 2)).long()
    guesses = torch.randint(1, num_classes, (200,), generator=draw)
    right = torch.rand(200, generator=draw) < 0.6
    predictions = torch.where(right & (labels != 0), labels, guesses)
    return Evaluation(labels, predictions, num_classes, 1.0, 0.9)


def test_metrics_are_those_of_scikit_learn() -> None:
    found = made_up()
    truth, guess = found.labels.numpy(), found.predictions.numpy()
    assert found.accuracy == pytest.approx(metrics.accuracy_score(truth, guess))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = metrics.balanced_accuracy_score(truth, guess)
    assert found.balanced_accuracy == pytest.approx(balanced)
    assert found.balanced_accuracy != pytest.approx(found.accuracy)
    every = list(range(25))
    assert found.confusion.tolist() == metrics.confusion_matrix(truth, guess, labels=every).tolist()
    kinds = {"labels": every, "average": None, "zero_division": float("nan")}
    recalls = metrics.recall_score(truth, guess, **kinds)
    precisions = metrics.precision_score(truth, guess, **kinds)
    for number, one in enumerate(found.classes()):
        assert one.support == (truth == number).sum()
        recall = float("nan") if one.recall is None else one.recall
        precision = float("nan") if one.precision is None else one.precision
        assert recall == pytest.approx(recalls[number], nan_ok=True)
        assert precision == pytest.approx(precisions[number], nan_ok=True)
    assert found.classes()[0].precision is None
    assert found.classes()[24].recall is None


class Near(nn.Module):
    """The nearer a class is to an image's first pixel, the larger its logit."""

    num_classes = 25

    def forward(self, images: Tensor) -> Tensor:
        return -(torch.arange(25.0) + 0.1 - images[:, 0, 3, 3, None].round()).abs()


def test_top_5_counts_images_whose_class_is_among_the_five_best(digits: ImageData) -> None:
    student = Classifier(Near(), (0.0,), (1.0 / 255,))  # type: ignore[arg-type]
    found = evaluate_classes(student, digits.heldout)
    expected = 0
    for image, label in zip(
        digits.heldout.images,  # type: ignore[attr-defined]
        digits.heldout.labels.tolist(),
        strict=True,
    ):
        nearest = sorted(range(25), key=lambda k: abs(k + 0.1 - image[0, 3, 3].item()))
        expected += label in nearest[:5]
    assert found.top5 == found.by("top5") == expected / len(digits.heldout)
    assert found.accuracy < found.top5 < 1


def test_top_5_is_refused_with_fewer_than_20_classes(digits: ImageData) -> None:
    student = Classifier(
        build_backbone("resnet8", num_classes=10, in_channels=1, seed=0), digits.mean, digits.std
    )
    found = evaluate_classes(student, digits.heldout)
    assert found.top5 is None
    with pytest.raises(ConfigError, match="metric is 'top5', but the data has 10 classes"):
        found.by("top5")


def test_the_best_epoch_is_that_of_the_metric(digits: ImageData, tmp_path: Path) -> None:
    how = Recipe(epochs=4, batch_size=96, learning_rate=0.3, acceleration="off")

    def started(metric: Metric) -> Iterator[EpochReport]:
        network = build_backbone("resnet8", num_classes=10, in_channels=1, seed=0)
        return train(
            Classifier(network, digits.mean, digits.std),
            (),
            None,
            digits,
            how,
            seed=0,
            identity="",
            device=torch.device("cpu"),
            checkpoint_dir=tmp_path / metric,
            metric=metric,
        )

    metrics_there: tuple[Metric, ...] = ("accuracy", "balanced_accuracy")
    for metric in metrics_there:
        with Case(metric):
            folder = tmp_path / metric
            reports = list(started(metric))
            by = "heldout_accuracy" if metric == "accuracy" else "heldout_balanced_accuracy"
            best = max(reports, key=lambda each: (getattr(each, by), -each.heldout_loss))
            last = reports[-1]
            assert last.best_epoch == best.epoch
            assert last.best_heldout_accuracy == best.heldout_accuracy
            score = None if metric == "accuracy" else best.heldout_balanced_accuracy
            assert last.best_score == score
            # As a checkpoint of before has no score, an accuracy takes its place.
            state = read_checkpoint(folder, torch.device("cpu"))
            assert state is not None
            del state["best"]["score"]
            state["best"]["accuracy"], state["epoch"] = 1.0, 3
            write_checkpoint(folder, state)
            (again,) = started(metric)
            assert again.best_epoch == best.epoch


def test_the_metric_belongs_to_a_trials_identity_only_where_it_is_another() -> None:
    def identity(**keys: str) -> str:
        return TrialConfig.model_validate(
            {
                "data": DataConfig(name="digits"),
                "teacher": {"backbone": "resnet14", "training": {"epochs": 1}},
                "student": "resnet8",
                "training": {"epochs": 1},
                **keys,
            }
        ).identity

    assert identity() == identity(metric="accuracy")
    assert "metric" not in identity()
    assert identity() != identity(metric="balanced_accuracy")
