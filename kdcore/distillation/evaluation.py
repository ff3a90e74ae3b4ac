"""Evaluation as the weights of a network were made for it: its crop, interpolation and size."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kdcore.backbones.library_preparation import Preparation, library_preparation
from kdcore.backbones.names import library_name
from kdcore.data.centre_crop import USUAL_CROP, CentreCrop
from kdcore.data.config import OF_WEIGHTS, DataConfig
from kdcore.errors import ConfigError, WeightsError
from kdcore.networks.config import StudentConfig
from kdcore.networks.initial_weights import exported_card
from kdcore.teacher.config import TeacherConfig


@dataclass(frozen=True)
class WeightsEvaluation:
    """How images are evaluated for some weights.

    Args:
        image_size: height and width of the crop, in pixels.
        crop: how it is taken.
        origin: whose configuration it is, in words.
    """

    image_size: tuple[int, int]
    crop: CentreCrop
    origin: str

    def __str__(self) -> str:
        share = f"crop_share {self.crop.crop_share:g}"
        return f"{self.crop.in_words(self.image_size)}; {share}, {self.origin}"


def weights_evaluation(
    backbone: str, weights: Path | str, image_size: tuple[int, int] | None = None
) -> WeightsEvaluation:
    """What the library says of published weights, and of its network's default ones for a file; of
    a folder that kdsearch exported to, what its card says.

    Args:
        backbone: name of the network.
        weights: see `kdcore.TeacherConfig`.
        image_size: of the crop; None for that of the weights.

    Raises:
        WeightsError: the weights do not exist.
        ConfigError: nothing is known of them, or they were evaluated in another way.
    """
    if isinstance(weights, Path) and weights.is_dir():
        _, card = exported_card(backbone, weights)
        origin = f"as the card of {weights} says"
        return WeightsEvaluation(
            image_size or card.image_size, card.evaluation or USUAL_CROP, origin
        )
    if library_name(backbone) is None:
        raise ConfigError(
            f"{backbone} is no network of torchvision or timm, which say it of theirs"
        )
    published = None if isinstance(weights, Path) else weights
    prepared = library_preparation(backbone, published, image_size)
    named = f"{prepared.weights} of {backbone}" if prepared.weights else backbone
    origin = f"as {'the default weights' if published is None else 'weights'} {named} are evaluated"
    return WeightsEvaluation(prepared.image_size, _crop_of(prepared), origin)


def _crop_of(prepared: Preparation) -> CentreCrop:
    """The library's share, or one by which our rounding gives as many pixels."""
    if prepared.interpolation not in ("bilinear", "bicubic"):
        raise ConfigError(
            f"its interpolation is {prepared.interpolation!r}, which kdsearch does not have"
        )
    content = {"crop_share": prepared.share, "interpolation": prepared.interpolation}
    crop = CentreCrop.model_validate(content)
    if prepared.resized in (None, tuple(map(crop.covered, prepared.image_size))):
        return crop
    return crop.model_copy(update={"crop_share": prepared.image_size[0] / prepared.resized[0]})


def evaluated_as_weights(
    data: DataConfig, teacher: TeacherConfig, students: Iterable[StudentConfig]
) -> tuple[DataConfig, WeightsEvaluation | None]:
    """Data whose evaluation is in numbers: those of the teacher's weights or, where it has none, of
    the first student that has some.

    Args:
        data: which may leave its evaluation, and then its image size, to them.
        teacher: of the networks that see the data.
        students: likewise.

    Returns:
        The data, and what was found; None where the data has numbers anyway.

    Raises:
        WeightsError: the weights do not exist.
        ConfigError: no network begins with weights, or as `weights_evaluation`.
    """
    if data.evaluation != OF_WEIGHTS:
        return data, None
    try:
        found = _first_found((teacher, *students), data.image_size)
    except WeightsError:
        raise
    except ConfigError as error:
        raise ConfigError(
            f"evaluation is {data.evaluation!r}, but {error}; give numbers, like {USUAL_CROP}"
        ) from None
    changes = {"evaluation": found.crop, "image_size": found.image_size}
    return data.model_copy(update=changes), found


def _first_found(
    networks: Iterable[TeacherConfig | StudentConfig], image_size: tuple[int, int] | None
) -> WeightsEvaluation:
    for network in networks:
        if network.weights is not None:
            return weights_evaluation(network.backbone, network.weights, image_size)
    raise ConfigError("neither the teacher nor a student begins with weights")
