"""How torchvision and timm prepare images for the weights of their networks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdcore.backbones.libraries import published_weights
from kdcore.backbones.library_network import library_constructor
from kdcore.backbones.names import library_name
from kdcore.errors import ConfigError


@dataclass(frozen=True)
class Preparation:
    """How a library prepares images for evaluation: it resizes them and crops their centre.

    Args:
        weights: for which, by name; empty where they have none.
        image_size: height and width of the crop, in pixels.
        resized: height and width that the resized image just covers; None where the library has
            weights for crops of another size, and does not say.
        share: side of the crop over that of the resized image, as the library has it.
        interpolation: of resizing, by name.
    """

    weights: str
    image_size: tuple[int, int]
    resized: tuple[int, int] | None
    share: float
    interpolation: str


def library_preparation(
    name: str, weights: str | None = None, image_size: tuple[int, int] | None = None
) -> Preparation:
    """The preparation for weights of a library's network; nothing is fetched.

    Args:
        name: like `timm/resnet50`.
        weights: name of published ones; None for the network's default.
        image_size: of the crop; None for what the weights are tested with.

    Raises:
        NetworkError: there is no such network.
        WeightsError: there are no such weights.
        ConfigError: the library does not crop the centre for them.
    """
    found = library_name(name)
    assert found is not None
    library, network = found
    library_constructor(name)  # refuses unknown networks
    known = "" if weights is None else published_weights(name, weights).name
    return _PREPARATIONS[library](network, known, image_size)


def _of_torchvision(network: str, weights: str, size: tuple[int, int] | None) -> Preparation:
    from torchvision.models import get_model_weights

    chosen = get_model_weights(network)[weights or "DEFAULT"]
    preset = chosen.transforms()
    (crop,), (resized,) = preset.crop_size, preset.resize_size
    own = size in (None, (crop, crop))
    return Preparation(
        chosen.name,
        size or (crop, crop),
        (resized, resized) if own else None,
        crop / resized,
        preset.interpolation.value,
    )


def _of_timm(network: str, weights: str, size: tuple[int, int] | None) -> Preparation:
    import timm
    from timm.data import resolve_data_config

    settings = timm.get_pretrained_cfg(f"{network}.{weights}" if weights else network)
    both = [
        resolve_data_config(pretrained_cfg=settings.to_dict(), use_test_size=tested)
        for tested in (True, False)
    ]
    # What is meant for the test's larger images is not for others.
    config = both[0] if size in (None, both[0]["input_size"][1:]) else both[1]
    share, mode = config["crop_pct"], config["crop_mode"]
    if mode != "center" or share > 1:
        what = f"crop mode {mode!r}" if mode != "center" else f"crop percentage {share:g}, above 1"
        raise ConfigError(f"timm evaluates {network} with {what}, which kdsearch does not have")
    height, width = size or config["input_size"][1:]
    resized = math.floor(height / share), math.floor(width / share)
    return Preparation(settings.tag, (height, width), resized, share, config["interpolation"])


_PREPARATIONS: Mapping[str, Callable[[str, str, tuple[int, int] | None], Preparation]] = {
    "torchvision": _of_torchvision,
    "timm": _of_timm,
}
