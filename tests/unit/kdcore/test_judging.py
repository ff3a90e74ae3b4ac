"""Learning without labels: what judges features, and what students then learn from."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from kdcore import (
    CacheConfig,
    DataConfig,
    EpochReport,
    Recipe,
    TeacherConfig,
    TrialConfig,
    distill,
)
from kdcore.backbones.catalogue import build_backbone
from kdcore.data.image_data import ImageData, open_data
from kdcore.data.source import UNLABELLED
from kdcore.data.split import TableSplit
from kdcore.data.stratified import stratified_halves
from kdcore.distillation.start import start_in_words
from kdcore.errors import NetworkError, WeightsError
from kdcore.methods import CATALOGUE
from kdcore.networks.classifier import (
    build_classifier,
    describe_classifier,
    load_student,
    save_classifier,
)
from kdcore.networks.initial_weights import initial_weights
from kdcore.teacher.teacher import load_teacher, prepare_teacher, teacher_folder
from kdcore.training.evaluation import evaluate, evaluate_classes
from kdcore.training.judging import (
    check_judged,
    evaluate_as_judged,
    features,
    fit_linear_probe,
    judged,
    neighbours_logits,
)
from kdcore.training.loop import best_classifier, best_student
from tests.cases import Case

CPU = torch.device("cpu")
CLASSES = 4


# The judges


@pytest.fixture(scope="module")
def known() -> tuple[Tensor, Tensor]:
    """Features of unlike scales, one of which never changes, and classes that overlap."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % CLASSES
    centres = torch.randn(CLASSES, 9, generator=draw, dtype=torch.float64)
    found = centres[labels] + torch.randn(120, 9, generator=draw, dtype=torch.float64)
    found = found * torch.logspace(-3, 3, 9, dtype=torch.float64) + 5
    found[:, 4] = 0.1 + 1e-9 * found[:, 3]  # as much as nothing
    return found, labels


def as_scikit_learn(features: Tensor, labels: Tensor, inverse_penalty: float) -> LogisticRegression:
    fitting = LogisticRegression(C=inverse_penalty, tol=1e-10, max_iter=10_000)
    return fitting.fit(features.numpy(), labels.numpy())


def test_a_linear_probe_is_scikit_learns_logistic_regression(known: tuple[Tensor, Tensor]) -> None:
    found, labels = known
    scaled = (found - found.mean(0)) / found.std(0, correction=0) / 9**0.5
    scaled[:, 4] = 0
    others, rest = stratified_halves(labels, len(labels) // 5, 0)
    losses = {}
    for inverse_penalty in (1.0, 10.0, 100.0, 1000.0):
        theirs = as_scikit_learn(scaled, labels, inverse_penalty)
        weight, bias = fit_linear_probe(found, labels, CLASSES, inverse_penalty)
        expected = torch.tensor(theirs.predict_proba(scaled.numpy()))
        with Case(inverse_penalty):
            ours = linear(found, weight, bias).softmax(1)
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
            assert torch.equal(weight[:, 4], torch.zeros(CLASSES, dtype=torch.float64))
        partly = as_scikit_learn(scaled[rest], labels[rest], inverse_penalty)
        chances = torch.tensor(partly.predict_log_proba(scaled[others].numpy()))
        losses[inverse_penalty] = cross_entropy(chances, labels[others]).item()
    chosen = min(losses, key=losses.__getitem__)
    weight, bias = fit_linear_probe(found, labels, CLASSES, chosen)
    for one, other in zip(fit_linear_probe(found, labels, CLASSES), (weight, bias), strict=True):
        assert torch.equal(one, other)


def test_of_one_image_a_class_the_strongest_penalty_is_taken() -> None:
    found = torch.eye(4, dtype=torch.float64)
    for number in (2, 4):
        some, labels = found[:number], torch.arange(number)
        chosen = fit_linear_probe(some, labels, 4)
        for one, other in zip(chosen, fit_linear_probe(some, labels, 4, 1.0), strict=True):
            assert torch.equal(one, other)


def test_neighbours_vote_by_their_likeness(known: tuple[Tensor, Tensor]) -> None:
    found, labels = known
    for number in (120, 7):  # also fewer than vote
        bank, classes = found[:number], labels[:number]
        logits = neighbours_logits(bank, classes, found[60:80], CLASSES)
        for row, query in zip(logits, found[60:80], strict=True):
            cosines = [float(query @ each / (query.norm() * each.norm())) for each in bank]
            nearest = sorted(range(number), key=cosines.__getitem__, reverse=True)[:20]
            weights = torch.tensor([cosines[place] for place in nearest], dtype=torch.float64)
            weights = (weights / 0.07).exp()
            votes = torch.full((CLASSES,), float(weights.mean()) / CLASSES, dtype=torch.float64)
            for place, weight in zip(nearest, weights, strict=True):
                votes[classes[place]] += weight
            torch.testing.assert_close(row.exp(), votes / votes.sum())


def test_a_network_without_a_linear_classifier_is_refused(digits: ImageData) -> None:
    class Without:
        def last_layer(self) -> None:
            return None

    check_judged(build_backbone("resnet8", num_classes=2, in_channels=3, seed=0), "resnet8")
    with pytest.raises(NetworkError, match="net has no linear classifier with a bias at its end"):
        check_judged(Without(), "net")  # type: ignore[arg-type]


# What is trained on


@pytest.fixture(scope="module")
def data_config() -> DataConfig:
    """1,150 digits to learn from, of which 96 have labels; more are held out."""
    return DataConfig(name="digits", heldout_fraction=0.2, train_images=96, judge="linear_probe")


@pytest.fixture(scope="module")
def data(data_config: DataConfig, workspace: Path) -> ImageData:
    return open_data(data_config, workspace)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    """A network that tells seven other classes apart."""
    file = tmp_path_factory.mktemp("weights") / "seven.safetensors"
    save_file(build_backbone("resnet14", num_classes=7, in_channels=1, seed=5).state_dict(), file)
    return TeacherConfig(backbone="resnet14", weights=file)


Run = Callable[..., list[EpochReport]]


@pytest.fixture
def run(data_config: DataConfig, teacher: TeacherConfig, workspace: Path) -> Run:
    def reports(
        *methods: str, judge: str = "linear_probe", folder: Path | None = None, **settings: Any
    ) -> list[EpochReport]:
        config = trial(data_config, teacher, *methods, judge=judge, **settings)
        return list(distill(config, workspace=workspace, checkpoint_dir=folder, device=CPU))

    return reports


def trial(
    data: DataConfig,
    teacher: TeacherConfig,
    *methods: str,
    judge: str = "linear_probe",
    cache: CacheConfig | None = None,
    **recipe: Any,
) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "data": {**data.model_dump(), "judge": judge},
            "teacher": teacher,
            "student": "resnet8",
            "objective": [{"method": name, "params": {"cross_entropy": 0}} for name in methods],
            "training": {"epochs": 2, "batch_size": 96, "acceleration": "off"} | recipe,
            "cache": cache,
        }
    )


def test_all_of_the_training_part_is_learned_from_and_no_label_of_it_is_known(
    data: ImageData, data_config: DataConfig, workspace: Path
) -> None:
    assert data.unlabelled is not None
    labelled = open_data(data_config.model_copy(update={"judge": None}), workspace)
    assert labelled.unlabelled is None
    assert labelled.digest == data.digest
    assert torch.equal(labelled.train.image_ids, data.train.image_ids)
    seen = set(data.unlabelled.image_ids.tolist())
    assert seen >= set(data.train.image_ids.tolist())
    assert not seen & {*data.heldout.image_ids.tolist(), *data.test.image_ids.tolist()}
    assert len(seen) == 1438 - len(data.heldout)
    assert set(data.unlabelled.labels.tolist()) == {UNLABELLED}


def test_every_method_that_reads_no_labels_teaches_without_and_others_are_refused(
    data: ImageData, data_config: DataConfig, teacher: TeacherConfig, run: Run
) -> None:
    declared = {name for name, method in CATALOGUE.items() if method.mixing != "no labels"}
    reading = declared - {"at"}  # which reads them for gradients only
    keeping = {name for name, method in CATALOGUE.items() if method.reuses_classifier}
    for names, words in ((reading, "reads labels"), (keeping, "keeps its teacher's classifier")):
        for name in names:
            with pytest.raises(ValidationError, match=f"{name} {words}, but data.judge is linear"):
                trial(data_config, teacher, name)
    refused = reading | keeping
    with pytest.raises(ValidationError, match="at reads labels"):
        TrialConfig.model_validate(
            trial(data_config, teacher).model_dump()
            | {"objective": [{"method": "at", "params": {"kind": "gradient", "cross_entropy": 0}}]}
        )
    reports = run(*sorted(set(CATALOGUE) - refused - {"none"}), epochs=1)
    (report,) = reports
    assert "cross_entropy" not in report.train_terms
    assert report.train_accuracy is None
    assert report.train_loss > 0


def test_its_result_is_what_the_judge_says_of_its_features(
    data: ImageData, run: Run, tmp_path: Path
) -> None:
    for judge in ("linear_probe", "knn"):
        folder = tmp_path / judge
        reports = run("fitnet", "kd", judge=judge, folder=folder)
        best = best_student(folder)
        student = best_classifier("resnet8", data, best).eval()
        found, head = judged(student, judge, data.train, data.heldout)  # type: ignore[arg-type]
        with Case(judge):
            assert found.accuracy == best["accuracy"] == reports[-1].best_heldout_accuracy
            assert found.loss == best["loss"]
            # The head that comes with it is the probe of these features.
            for name, tensor in head.items():
                assert torch.equal(best["student"][name], tensor)
            own = evaluate_classes(student, data.heldout)
            assert (own.accuracy == found.accuracy) == (judge == "linear_probe")
            config = data.config.model_copy(update={"judge": judge})
            again = evaluate_as_judged(student, data_of(data, config), data.heldout)
            assert again.accuracy == found.accuracy


def data_of(data: ImageData, config: DataConfig) -> ImageData:
    return ImageData(**vars(data) | {"config": config})


def timeless(reports: list[EpochReport]) -> list[dict[str, Any]]:
    hidden = {"epoch_seconds", "seconds_by_part", "teacher", "teacher_seconds_saved"}
    return [{k: v for k, v in asdict(each).items() if k not in hidden} for each in reports]


def test_it_goes_on_where_it_was_interrupted_and_caches_change_nothing(
    data_config: DataConfig, teacher: TeacherConfig, run: Run, workspace: Path, tmp_path: Path
) -> None:
    whole = run("kd", "rkd")
    config = trial(data_config, teacher, "kd", "rkd")
    begun: Iterator[EpochReport] = distill(
        config, workspace=workspace, checkpoint_dir=tmp_path, device=CPU
    )
    (first,) = islice(begun, 1)
    begun.close()  # type: ignore[attr-defined]
    rest = distill(config, workspace=workspace, checkpoint_dir=tmp_path, device=CPU)
    assert timeless([first, *rest]) == timeless(whole)
    cached = run("kd", "rkd", cache=CacheConfig(precision="float32"))
    assert [each.teacher for each in cached] == ["computed", "computed"]
    for one, other in zip(cached, whole, strict=True):
        assert one.train_terms == pytest.approx(other.train_terms, rel=1e-3)


def test_the_control_learns_from_labels_alone_in_as_many_steps(
    data: ImageData, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data.unlabelled is not None
    seen: list[tuple[int, int]] = []
    views = TableSplit.views

    def spied(split: TableSplit, order: Tensor, view: int, size: int) -> Iterator[Tensor]:
        seen.append((view, len(order)))
        assert UNLABELLED not in split.labels
        return views(split, order, view, size)

    monkeypatch.setattr(TableSplit, "views", spied)
    passes = round(len(data.unlabelled) / 96)
    assert passes == 12
    reports = run()
    assert seen == [(view, 96) for view in range(2 * passes)]
    for number, report in enumerate(reports, start=1):
        assert list(report.train_terms) == ["cross_entropy"]
        assert report.train_accuracy is not None
        right = report.train_accuracy * 96 * passes
        assert right == pytest.approx(round(right))
        # That of the last step of as many.
        rate = Recipe(epochs=2).learning_rate_at(number - 0.5 / passes)
        assert report.learning_rate == pytest.approx(rate)


# The teacher


def test_a_teacher_of_any_classes_is_judged_and_its_head_is_the_probe(
    data: ImageData, teacher: TeacherConfig, workspace: Path
) -> None:
    folder = teacher_folder(teacher, data, workspace)
    words = start_in_words(teacher, None, data)
    assert words.endswith("for 10 classes instead of 7; its head becomes a linear probe")
    assert list(prepare_teacher(teacher, data, workspace, CPU)) == []
    network = load_teacher(folder)
    given = build_backbone("resnet14", num_classes=7, in_channels=1, seed=5).state_dict()
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, given[name]) == (not name.startswith("fc."))
    card = (folder / "teacher.json").read_text()
    accuracy, _ = evaluate(network, data.heldout)
    assert f'"heldout_accuracy": {accuracy}' in card
    labelled = data_of(data, data.config.model_copy(update={"judge": None}))
    with pytest.raises(WeightsError, match="does not fit"):  # for it has other classes
        list(prepare_teacher(teacher, labelled, workspace, CPU))


def test_what_cannot_be_judged_is_refused(data_config: DataConfig, teacher: TeacherConfig) -> None:
    trained = {"backbone": "resnet8", "training": {"epochs": 1}}
    base = trial(data_config, teacher, "kd").model_dump()
    for changes, words in (
        ({"teacher": {"ensemble": [trained, base["teacher"]]}}, "the ensemble of .* no features"),
        ({"teacher": trained | {"assistants": ["resnet8"]}}, "the assistants of resnet8 learn"),
        ({"objective": [{"method": "kd"}]}, "kd has cross_entropy 0.1, but .* set it to 0"),
        (
            {
                "training": {"epochs": 1, "linear_probe": True},
                "student": {"backbone": "resnet8", "weights": base["teacher"]["weights"]},
            },
            "linear_probe is true, but data.judge is linear_probe",
        ),
    ):
        with Case(words), pytest.raises(ValidationError, match=words):
            TrialConfig.model_validate(base | changes)


# Files without a head


def test_a_student_without_its_head_gives_features_and_can_be_trained_further(
    data: ImageData, teacher: TeacherConfig, tmp_path: Path
) -> None:
    student = build_classifier("resnet8", data, seed=1).eval()
    card = describe_classifier(student, "resnet8", data, metrics={}, made_by={})
    assert "has_head" not in card.model_dump()
    save_classifier(tmp_path, "student", student, card.model_copy(update={"has_head": False}))
    alone = load_student(tmp_path)
    images = data.heldout.images[:3]  # type: ignore[attr-defined]
    assert alone(images).shape == (3, 64)
    assert torch.equal(alone(images), features(student, data.heldout)[:3])
    weights = initial_weights("resnet8", tmp_path)
    assert not any(name.startswith("fc.") for name in weights.read())
    config = trial(data.config, teacher, "kd").model_dump()
    config["student"] = {"backbone": "resnet8", "weights": tmp_path}
    begun = distill(TrialConfig.model_validate(config), workspace=tmp_path / "runs", device=CPU)
    assert next(begun).train_loss > 0
