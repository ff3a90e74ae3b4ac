"""How good a network's features are: a classifier is fitted to those of labelled images.

This is how features are compared that were learned without labels: by a linear probe, as in Radford
et al., ICML 2021, arXiv:2103.00020, section 3.2, or by nearest neighbours, as in Wu et al., CVPR
2018, arXiv:1805.01978, section 3.4. Nothing of it is random.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize, one_hot

from kdcore.backbones.backbone import Backbone
from kdcore.data.config import Judge
from kdcore.data.image_data import ImageData
from kdcore.data.split import Split
from kdcore.data.stratified import stratified_halves
from kdcore.errors import NetworkError
from kdcore.networks.classifier import Classifier
from kdcore.training.evaluation import Evaluation, evaluate_classes, evaluation_of

# Inverse strengths of the penalty, as `C` of scikit-learn, for features of a mean squared norm of
# 1; from strong to weak, each fit begins where the last one ended.
_INVERSE_PENALTIES = (1.0, 10.0, 100.0, 1000.0)
_PENALTY_SHARE = 5  # one in five labelled images chooses among them
_MOST_ITERATIONS = 100
_ROUNDING = 1e-6

# As published for ImageNet, and used since.
_NEIGHBOURS = 20
_TEMPERATURE = 0.07
_AT_ONCE = 256  # queries: 41 MB of votes in 1,000 classes


class Judged(NamedTuple):
    """What a judge says of a network.

    Args:
        found: how well its classifier does.
        head: that of the linear probe, by the names of the network's own in its state dict.
    """

    found: Evaluation
    head: dict[str, Tensor]


def check_judged(backbone: Backbone, name: str) -> None:
    """Refuses a network whose classifier is no linear layer that a probe could stand in for.

    Raises:
        NetworkError: it is none.
    """
    layer = backbone.last_layer()
    if layer is None or layer.bias is None:
        raise NetworkError(
            f"{name} has no linear classifier with a bias at its end, whose place a linear probe "
            f"takes where data.judge is set; use another network"
        )


def judged(classifier: Classifier, judge: Judge, labelled: Split, split: Split) -> Judged:
    """Fits a classifier to the features of labelled images, and has it classify others.

    Args:
        classifier: passes `check_judged`; stays as it is.
        judge: which classifier.
        labelled: the images that it is fitted to, unaugmented.
        split: the images to classify.
    """
    known, labels = features(classifier, labelled), labelled.labels.to(classifier.mean.device)
    num_classes = classifier.backbone.num_classes
    weight, bias = fit_linear_probe(known, labels, num_classes)
    queries = features(classifier, split)
    if judge == "knn":
        logits = neighbours_logits(known, labels, queries, num_classes)
    else:
        logits = linear(queries, weight, bias)
    found = evaluation_of(logits, split.labels.to(logits.device))
    layer, head = classifier.backbone.last_layer(), dict[str, Tensor]()
    for name, module in classifier.backbone.named_modules(remove_duplicate=False):
        if module is layer:
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            head |= {f"{name}.weight": weight.view_as(layer.weight), f"{name}.bias": bias}
    return Judged(found, head)


def evaluate_as_judged(classifier: Classifier, data: ImageData | None, split: Split) -> Evaluation:
    """Classifies images as the data says, if it is given: by the network's own head, which is its
    linear probe where that judges, or by nearest neighbours among the labelled images."""
    if data is not None and data.config.judge == "knn":
        return judged(classifier, "knn", data.train, split).found
    return evaluate_classes(classifier, split)


@torch.no_grad()
def features(classifier: Classifier, split: Split) -> Tensor:
    """The embeddings [N, D] of unaugmented images, in float32, on the classifier's device.

    Args:
        classifier: put into evaluation mode, and back.
        split: at least one image.
    """
    was_training = classifier.training
    classifier.eval()
    found = [
        classifier.embed(images.to(classifier.mean.device))
        for images in split.batches(split.batch_without_gradients())
    ]
    classifier.train(was_training)
    return torch.cat(found)


def fit_linear_probe(
    features: Tensor, labels: Tensor, num_classes: int, inverse_penalty: float | None = None
) -> tuple[Tensor, Tensor]:
    """Logistic regression on standardised features, with an L2 penalty on its weight.

    Minimises C * sum(cross-entropy) + |W|^2 / 2 by L-BFGS in float64, for features that each have a
    mean of 0 and a deviation of 1 / sqrt(D).

    Args:
        features: [N, D].
        labels: [N], int64, 0 to K-1.
        num_classes: K.
        inverse_penalty: C; None for that of 1, 10, 100 and 1000 which has the smallest
            cross-entropy on a stratified fifth of the images, fitted to the others.

    Returns:
        Weight [K, D] and bias [K] for the features as they are, in their precision.
    """
    wide = features.double()
    mean, deviation = wide.mean(0), wide.std(0, correction=0)
    # A feature that never changes, but for rounding in float32, says nothing.
    changes = deviation > _ROUNDING * wide.abs().amax(0)
    scale = torch.where(changes, deviation, torch.inf) * features.shape[1] ** 0.5
    scaled = (wide - mean) / scale
    if inverse_penalty is None:
        inverse_penalty = _chosen_penalty(scaled, labels, num_classes)
    start = scaled.new_zeros(num_classes, features.shape[1] + 1)
    fitted = _minimised(start, scaled, labels, inverse_penalty)
    weight = fitted[:, :-1] / scale
    bias = fitted[:, -1] - weight @ mean
    return weight.to(features.dtype), bias.to(features.dtype)


def _chosen_penalty(scaled: Tensor, labels: Tensor, num_classes: int) -> float:
    others, rest = (
        each.to(labels.device)
        for each in stratified_halves(labels.cpu(), len(labels) // _PENALTY_SHARE, 0)
    )
    if len(others) == 0:
        return _INVERSE_PENALTIES[0]
    fitted = scaled.new_zeros(num_classes, scaled.shape[1] + 1)
    losses = []
    for inverse_penalty in _INVERSE_PENALTIES:
        fitted = _minimised(fitted, scaled[rest], labels[rest], inverse_penalty)
        logits = linear(scaled[others], fitted[:, :-1], fitted[:, -1])
        losses.append(cross_entropy(logits, labels[others]).item())
    return _INVERSE_PENALTIES[losses.index(min(losses))]


@torch.enable_grad()
def _minimised(start: Tensor, scaled: Tensor, labels: Tensor, inverse_penalty: float) -> Tensor:
    """Weight and bias, [K, D + 1], of logistic regression."""
    both = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [both],
        max_iter=_MOST_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight, bias = both[:, :-1], both[:, -1]
        fit = cross_entropy(linear(scaled, weight, bias), labels)
        # The mean over images has a scale that does not depend on their number.
        loss: Tensor = fit + weight.square().sum() / (2 * inverse_penalty * len(labels))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return both.detach()


def neighbours_logits(known: Tensor, labels: Tensor, queries: Tensor, num_classes: int) -> Tensor:
    """The logarithms of class probabilities by the 20 nearest neighbours.

    Each votes for its class with exp(cosine / 0.07). One more vote of their mean weight is divided
    among all classes, so that none has a probability of 0.

    Args:
        known: [N, D], features of images with labels.
        labels: [N], int64, 0 to K-1.
        queries: [M, D], features of others.
        num_classes: K.

    Returns:
        [M, K].
    """
    bank = normalize(known)
    neighbours = min(_NEIGHBOURS, len(bank))
    found = []
    for some in torch.split(normalize(queries), _AT_ONCE):
        cosines, places = (some @ bank.T).topk(neighbours)
        shares = (cosines / _TEMPERATURE).softmax(1)
        # Adding up by index is not deterministic on a GPU.
        classes = one_hot(labels[places], num_classes).to(shares.dtype)
        votes = torch.einsum("mn,mnk->mk", shares, classes)
        found.append(((neighbours * votes + 1 / num_classes) / (neighbours + 1)).log())
    return torch.cat(found)
