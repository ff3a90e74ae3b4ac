"""The weights that a network begins with: a file, an exported folder, or published ones."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from kdcore.backbones.catalogue import constructor_of
from kdcore.backbones.foreign_weights import Fit, load_weights, match_weights, read_weights
from kdcore.backbones.libraries import published_weights, usual_normalization
from kdcore.backbones.names import parsed_reused_name
from kdcore.backbones.normalization import Normalization
from kdcore.backbones.parts import head_of
from kdcore.data.image_data import ImageData
from kdcore.errors import WeightsError
from kdcore.networks.classifier import (
    Classifier,
    ClassifierCard,
    build_classifier,
    load_card,
)
from kdcore.networks.config import StudentConfig

_ROLES = ("student", "teacher")


@dataclass(frozen=True)
class InitialWeights:
    """Weights that are not read yet.

    Args:
        words: what to call them.
        identity: what tells them from others, wherever they are stored.
        origin: where they come from, for a card.
        normalization: of the images that they expect; None if unknown.
        is_published: whether they are fetched, and known to fit their network.
        num_classes: K; None if unknown.
        class_names: of the K classes, if known.
        read: the tensors by name.
        image_size: of published ones, for a network that takes images of one size.
    """

    words: str
    identity: Mapping[str, JsonValue]
    origin: Mapping[str, JsonValue]
    normalization: Normalization | None
    is_published: bool
    num_classes: int | None
    class_names: tuple[str, ...] | None
    read: Callable[[], Mapping[str, Tensor]]
    image_size: tuple[int, int] | None = None

    def has_classes_of(self, data: ImageData) -> bool:
        """Whether their classes are those of the data, as far as it is known."""
        if self.class_names is not None:
            return self.class_names == data.class_names
        return self.num_classes in (None, data.num_classes)


def initial_weights(backbone: str, weights: Path | str) -> InitialWeights:
    """Finds weights; nothing is fetched yet.

    Args:
        backbone: name of the network.
        weights: see `kdcore.TeacherConfig`.

    Raises:
        WeightsError: they do not exist, or are an exported network of another backbone.
    """
    if isinstance(weights, str):
        return _published(backbone, weights)
    if weights.is_dir():
        return _exported(backbone, weights)
    if not weights.is_file():
        raise WeightsError(f"weights is {str(weights)!r}, but there is no such file")
    digest = _digest(weights)
    return InitialWeights(
        words=f"weights file {weights}",
        identity={"weights": digest},
        origin={"weights": weights.name, "sha256": digest},
        normalization=usual_normalization(backbone),
        is_published=False,
        num_classes=None,
        class_names=None,
        read=lambda: read_weights(weights),
    )


def _published(backbone: str, weights: str) -> InitialWeights:
    published = published_weights(backbone, weights)
    identity: dict[str, JsonValue] = {"weights": published.name, "source": published.source}
    licence: dict[str, JsonValue] = {"licence": published.licence} if published.licence else {}
    return InitialWeights(
        words=f"weights {weights}",
        identity=identity,
        origin=identity | licence,
        normalization=published.normalization,
        is_published=True,
        num_classes=published.num_classes,
        class_names=None,
        read=published.fetch,
        image_size=published.image_size,
    )


def exported_card(backbone: str, folder: Path) -> tuple[str, ClassifierCard]:
    """The role and the card of an exported network.

    Raises:
        WeightsError: the folder has none, or one of another backbone.
    """
    roles = [role for role in _ROLES if (folder / f"{role}.safetensors").is_file()]
    if not roles:
        raise WeightsError(
            f"weights is {str(folder)!r}, a folder without student.safetensors or "
            "teacher.safetensors; give a folder that kdsearch exported to, or a file"
        )
    try:
        card = load_card(folder, roles[0])
    except FileNotFoundError as error:
        raise WeightsError(
            f"weights is {str(folder)!r}, but {roles[0]}.json is missing beside its weights: "
            f"{error.strerror}"
        ) from None
    if parsed_reused_name(card.backbone) is not None:
        raise WeightsError(
            f"weights is {str(folder)!r}, which has a student with its teacher's classifier, "
            f"{card.backbone}; no other training begins with one, so give other weights"
        )
    if card.backbone != backbone:
        raise WeightsError(
            f"weights is {str(folder)!r}, which has a {card.backbone}, but backbone is {backbone}; "
            f"set backbone: {card.backbone}, or give other weights"
        )
    return roles[0], card


def _exported(backbone: str, folder: Path) -> InitialWeights:
    role, card = exported_card(backbone, folder)
    file = folder / f"{role}.safetensors"
    digest = _digest(file)
    made_by: dict[str, JsonValue] = {
        key: card.made_by[key] for key in ("search", "trial") if key in card.made_by
    }
    return InitialWeights(
        words=f"weights folder {folder}",
        identity={"weights": digest, "mean": list(card.mean), "std": list(card.std)},
        origin={"weights": "/".join(folder.parts[-2:]), "sha256": digest, **made_by},
        normalization=Normalization(card.mean, card.std),
        is_published=False,
        num_classes=len(card.class_names),
        class_names=card.class_names,
        read=lambda: read_weights(file),
    )


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def begin_with(
    classifier: Classifier,
    network: str,
    weights: InitialWeights,
    data: ImageData,
    *,
    trained: bool = True,
) -> None:
    """Gives a network the weights that it begins with.

    Where it is trained, other classes leave its fresh head in place, though not louder than
    PyTorch's own layers begin, and other channels adapt its first convolution. Position embeddings
    are resampled for images of another size, trained or not.

    Args:
        classifier: with fresh weights; its origin becomes theirs.
        network: its name in the catalogue.
        weights: to begin with.
        data: the images.
        trained: whether a training follows.

    Raises:
        WeightsError: they are damaged, out of reach, or of another network.
    """
    fit = load_weights(
        classifier.backbone,
        weights.read(),
        source=weights.words,
        head=head_of(network),
        trained=trained,
        new_head=trained and not weights.has_classes_of(data),
        positions=classifier.backbone.positions,
    )
    if fit.replaced:
        state = classifier.backbone.state_dict()
        _quieten(state[name] for name in head_of(network))
    classifier.origin = {**weights.origin, "fit": str(fit)}


def _quieten(head: Iterable[Tensor]) -> None:
    """Scales fresh weights of a head down to the deviation of PyTorch's own layers, 1 / sqrt(3 n)
    for n inputs, where it is larger.

    EfficientNets draw theirs for features that are fresh too: with few classes ten times as large.
    The first steps would then change the features that were given, by the gradients of noise.
    """
    with torch.no_grad():
        for weight in head:
            if weight.dim() > 1:
                usual = (3 * weight[0].numel()) ** -0.5
                weight.mul_(min(1.0, usual / weight.square().mean().sqrt().item()))


def build_student(config: StudentConfig, data: ImageData, *, seed: int) -> Classifier:
    """The network that a student begins as: fresh, or with its weights and their normalisation.

    Args:
        config: which student.
        data: the images that it will learn from.
        seed: of its fresh weights, all or those of the head.

    Raises:
        WeightsError: as `initial_weights` and `begin_with`.
    """
    if config.weights is None:
        return build_classifier(config.backbone, data, seed=seed)
    weights = initial_weights(config.backbone, config.weights)
    student = build_classifier(
        config.backbone, data, seed=seed, normalization=normalization_for(weights, data)
    )
    begin_with(student, config.backbone, weights, data)
    return student


def normalization_for(weights: InitialWeights, data: ImageData) -> Normalization | None:
    """The normalisation of weights for these images; None for that of the data."""
    if weights.normalization is None:
        return None
    adapted = weights.normalization.for_channels(data.in_channels)
    return adapted if len(adapted.mean) == data.in_channels else None


def expected_fit(network: str, weights: InitialWeights, data: ImageData, *, trained: bool) -> Fit:
    """What will become of weights; published ones are not fetched.

    Args:
        network: name of the network.
        weights: for it.
        data: the images.
        trained: whether a training follows, so that parts may be replaced.

    Raises:
        WeightsError: they are damaged, or do not fit.
    """
    with torch.device("meta"):
        target = constructor_of(network, data.image_size)(data.num_classes, data.in_channels)
        if weights.is_published:
            assert weights.num_classes is not None
            theirs = constructor_of(network, weights.image_size)
            given = theirs(weights.num_classes, data.in_channels).state_dict()
    if not weights.is_published:
        given = {name: tensor.to("meta") for name, tensor in weights.read().items()}
    fit, _ = match_weights(
        target.state_dict(),
        given,
        source=weights.words,
        head=head_of(network),
        trained=trained,
        new_head=trained and not weights.has_classes_of(data),
        positions=target.positions,
    )
    return fit


def check_classes(weights: InitialWeights, data: ImageData) -> None:
    """Refuses weights that are known to be of other classes, where no training follows.

    Raises:
        WeightsError: they are.
    """
    if weights.has_classes_of(data):
        return
    has = f"has {weights.num_classes} classes, but the data has {data.num_classes}"
    if weights.class_names is not None and weights.num_classes == data.num_classes:
        theirs, ours = _shown(weights.class_names), _shown(data.class_names)
        has = f"has the classes {theirs}, but the data has {ours}"
    raise WeightsError(
        f"{weights.words} {has}; add training, which gives it a new head, or give weights that "
        "were trained on these classes"
    )


def _shown(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
