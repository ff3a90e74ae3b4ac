"""The steps of an augmentation and the presets, without importing PyTorch."""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kdcore.errors import ConfigError, did_you_mean

Share = Annotated[float, Field(ge=0, le=1)]
_Byte = Annotated[int, Field(ge=0, le=255)]
# A factor of colour or a pair of them; below 16, so that products with pixels are exact in float32.
_Amount = Annotated[float, Field(ge=0, lt=15)]
_Amounts = _Amount | tuple[_Amount, _Amount]
_Positive = Annotated[float, Field(gt=0)]


def _check_order(name: str, pair: tuple[float, float]) -> None:
    if pair[0] > pair[1]:
        raise ValueError(f"{name} is {list(pair)}, but the first must not be above the second")


class Step(BaseModel):
    """A step; its parameters have the names, defaults and meaning of torchvision.transforms.v2."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    crops: ClassVar[bool] = False
    mixes: ClassVar[bool] = False

    def given(self) -> str | dict[str, Any]:
        """As in a file: the name, with the parameters that differ from their defaults."""
        changed = self.model_dump(mode="json", exclude_defaults=True)
        return {self.name: changed} if changed else self.name

    def __str__(self) -> str:
        """With all parameters, like `flip(p=0.5)`."""
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in self)})"


class _Boxed(Step):
    """A step that draws a box by its share of the image's area and its aspect ratio."""

    @model_validator(mode="after")
    def _ordered(self) -> "_Boxed":
        for name, value in self:
            if isinstance(value, tuple):
                _check_order(name, value)
        return self


class RandomResizedCrop(_Boxed):
    """RandomResizedCrop, bilinear with antialiasing; its size is the data set's image_size."""

    name: ClassVar[str] = "random_resized_crop"
    crops: ClassVar[bool] = True
    scale: tuple[Share, Share] = (0.08, 1.0)
    ratio: tuple[_Positive, _Positive] = (3 / 4, 4 / 3)


class PadCrop(Step):
    """RandomCrop to the image's own size, after black padding; None for the data set's own."""

    name: ClassVar[str] = "pad_crop"
    crops: ClassVar[bool] = True
    padding: Annotated[int, Field(ge=0)] | None = None


class Flip(Step):
    """RandomHorizontalFlip."""

    name: ClassVar[str] = "flip"
    p: Share = 0.5


class ColorJitter(Step):
    """ColorJitter; grey images have only brightness and contrast."""

    name: ClassVar[str] = "color_jitter"
    brightness: _Amounts = 0.0
    contrast: _Amounts = 0.0
    saturation: _Amounts = 0.0
    hue: (
        Annotated[float, Field(ge=0, le=0.5)]
        | tuple[Annotated[float, Field(ge=-0.5, le=0.5)], Annotated[float, Field(ge=-0.5, le=0.5)]]
    ) = 0.0

    @model_validator(mode="after")
    def _something(self) -> "ColorJitter":
        for name, value in self:
            if isinstance(value, tuple):
                _check_order(name, value)
        if not any(self.ranges().values()):
            raise ValueError(
                "brightness, contrast, saturation and hue are all 0, which changes nothing; "
                "set one of them"
            )
        return self

    def ranges(self) -> Mapping[str, tuple[float, float] | None]:
        """The range of each factor, in the declared order; None where it stays as it is."""
        found: dict[str, tuple[float, float] | None] = {}
        for name, value in self:
            if isinstance(value, tuple):
                low, high = value
            elif name == "hue":
                low, high = -value, value
            else:
                low, high = max(0.0, 1 - value), 1 + value
            unchanged = 0.0 if name == "hue" else 1.0
            found[name] = None if low == high == unchanged else (low, high)
        return found


class RandAugment(Step):
    """RandAugment, with nearest neighbours and black outside."""

    name: ClassVar[str] = "rand_augment"
    num_ops: Annotated[int, Field(ge=1, le=16)] = 2
    magnitude: Annotated[int, Field(ge=0)] = 9
    num_magnitude_bins: Annotated[int, Field(ge=2)] = 31

    @model_validator(mode="after")
    def _within_the_bins(self) -> "RandAugment":
        if self.magnitude >= self.num_magnitude_bins:
            raise ValueError(
                f"magnitude is {self.magnitude}, but must be below num_magnitude_bins, which is "
                f"{self.num_magnitude_bins}"
            )
        return self


class TrivialAugment(Step):
    """TrivialAugmentWide, with nearest neighbours and black outside."""

    name: ClassVar[str] = "trivial_augment"
    num_magnitude_bins: Annotated[int, Field(ge=2)] = 31


class RandomErasing(_Boxed):
    """RandomErasing; the value is that of a pixel, 0 to 255, for all channels."""

    name: ClassVar[str] = "random_erasing"
    p: Share = 0.5
    scale: tuple[Share, Share] = (0.02, 0.33)
    ratio: tuple[_Positive, _Positive] = (0.3, 3.3)
    value: _Byte = 0


class Gray(Step):
    """RandomGrayscale."""

    name: ClassVar[str] = "gray"
    p: Share = 0.1


class Blur(Step):
    """GaussianBlur; always applied, with another sigma for each image."""

    name: ClassVar[str] = "blur"
    kernel_size: Annotated[int, Field(ge=1, le=63)]
    sigma: Annotated[float, Field(gt=0)] | tuple[_Positive, _Positive] = (0.1, 2.0)

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError(f"kernel_size is {size}, but must be odd")
        return size

    @model_validator(mode="after")
    def _ordered(self) -> "Blur":
        _check_order("sigma", self.range())
        return self

    def range(self) -> tuple[float, float]:
        """The smallest and the largest sigma."""
        return self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)


class _Mixing(Step):
    mixes: ClassVar[bool] = True
    alpha: Annotated[float, Field(ge=0.01, le=100)] = 1.0


class Mixup(_Mixing):
    """MixUp: the weighted mean of an image and its partner."""

    name: ClassVar[str] = "mixup"


class Cutmix(_Mixing):
    """CutMix: a box of the partner in the image."""

    name: ClassVar[str] = "cutmix"


STEPS: Mapping[str, type[Step]] = {
    step.name: step
    for step in (
        RandomResizedCrop,
        PadCrop,
        Flip,
        ColorJitter,
        RandAugment,
        TrivialAugment,
        RandomErasing,
        Gray,
        Blur,
        Mixup,
        Cutmix,
    )
}
"""By name."""

PAD_CROP = "pad_crop"
"""Decode small images of one size once, and augment them as is usual for CIFAR."""

RESIZED_CROP = "resized_crop"
"""Decode images of any size while training, and augment them as is usual for ImageNet."""

BASIC = "basic"
"""The data set's usual views."""

_STRONGER = (RandAugment(), RandomErasing(p=0.1), Mixup(alpha=0.2), Cutmix())

# A preset without a crop begins with the basic steps of the data set. `strong` has the numbers of
# torchvision's recipe for ResNet-50, which timm's share, and RandAugment as in timm. `patient` is
# Beyer et al., arXiv:2106.05237, whose mixup has uniformly distributed shares.
_PRESETS: Mapping[str, tuple[Step, ...]] = {
    BASIC: (),
    "imagenet": (
        RandomResizedCrop(),
        Flip(),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
    ),
    "strong": _STRONGER,
    "patient": (RandomResizedCrop(), Flip(), Mixup()),
}

PRESETS = tuple(_PRESETS)
"""The names of the presets."""

Augmentation = str | tuple[Step, ...]


def parse_augmentation(value: Any) -> Augmentation | None:
    """Reads what a configuration says.

    Args:
        value: a preset's name, or a list of steps, each a name or a name with its parameters.

    Raises:
        ConfigError: it is neither, or its steps cannot be taken in this order.
    """
    if value is None:
        return None
    if isinstance(value, str):
        names = (*PRESETS, PAD_CROP, RESIZED_CROP)
        if value in names:
            return value
        if value in STEPS:
            raise ConfigError(f"{value!r} is a step, and steps stand in a list; write [{value}]")
        raise ConfigError(
            f"unknown preset {value!r}{did_you_mean(value, names)} The presets are "
            f"{', '.join(names)}; others are a list of steps"
        )
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise ConfigError(f"is {value!r}, but must be a preset's name or a list of steps")
    steps = tuple(map(_parse_step, value))
    _check_places(steps)
    return steps


def _parse_step(value: Any) -> Step:
    if isinstance(value, Step):
        return value
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, parameters),) = value.items()
        parameters = {} if parameters is None else parameters
    else:
        name, parameters = value, {}
    if not isinstance(name, str) or not isinstance(parameters, Mapping):
        raise ConfigError(
            f"step {value!r} must be a name or a name with its parameters, like "
            f"{{random_erasing: {{p: 0.25}}}}"
        )
    if name not in STEPS:
        raise ConfigError(
            f"unknown step {name!r}{did_you_mean(name, STEPS)} The steps are {', '.join(STEPS)}"
        )
    try:
        return STEPS[name].model_validate(dict(parameters))
    except ValidationError as error:
        raise ConfigError(f"step {name}: {_in_words(error, STEPS[name])}") from None


def _in_words(error: ValidationError, step: type[Step]) -> str:
    """The first mistake of a step's parameters."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    field = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        known = ", ".join(step.model_fields)
        return f"unknown parameter {field!r}{did_you_mean(field, step.model_fields)} It has {known}"
    if first["type"] == "missing":
        return f"{field} is missing; write {{{step.name}: {{{field}: ...}}}}"
    message = first["msg"].removeprefix("Input should be")
    return f"{field} is {first['input']!r}, but must be{message}"


def _check_places(steps: tuple[Step, ...]) -> None:
    """Refuses orders that no images can go through."""
    names = [step.name for step in steps]
    crops = [number for number, step in enumerate(steps) if step.crops]
    if len(crops) > 1:
        raise ConfigError(
            f"{names[crops[0]]} and {names[crops[1]]} both crop; an image is cropped once, so keep "
            f"one of them"
        )
    if crops and crops[0] > 0:
        raise ConfigError(
            f"{names[crops[0]]} stands after {names[0]}, but a crop must come first; move it to "
            f"the front"
        )
    mixing = [step.name for step in steps if step.mixes]
    if len(set(mixing)) < len(mixing):
        raise ConfigError(f"{mixing[0]} is listed twice, but an image is mixed once; keep one")
    first = next((number for number, step in enumerate(steps) if step.mixes), len(steps))
    after = [step.name for step in steps[first:] if not step.mixes]
    if after:
        raise ConfigError(
            f"{after[0]} stands after {names[first]}, but mixing must come last, because the "
            f"partner has its own view; move {names[first]} to the end"
        )


def expanded(augmentation: Augmentation, basic: tuple[Step, ...]) -> tuple[Step, ...]:
    """All steps of an augmentation.

    Args:
        augmentation: a preset or the steps themselves.
        basic: those of the data set's usual views. Where it does not mirror, as digits, presets
            do not either.
    """
    if not isinstance(augmentation, str):
        return augmentation
    steps = _PRESETS.get(augmentation, ())
    if not any(step.crops for step in steps):
        return (*basic, *steps)
    mirrored = any(isinstance(step, Flip) for step in basic)
    return tuple(step for step in steps if mirrored or not isinstance(step, Flip))


# The second view of Jin et al., CVPR 2023, in their code. Keys of caches do not have it.
_STRONG = RandAugment(num_ops=2, magnitude=10)


def strengthened(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps of an image's second, stronger view: RandAugment after those of the first."""
    return (*steps, _STRONG)


def padded(steps: tuple[Step, ...], padding: int) -> tuple[Step, ...]:
    """The same steps, in which `pad_crop` has the data set's padding unless it has its own."""
    return tuple(
        PadCrop(padding=padding) if isinstance(step, PadCrop) and step.padding is None else step
        for step in steps
    )


def resizes(augmentation: Augmentation) -> bool | None:
    """Whether views are resized patches; None where the data set's usual views decide."""
    if isinstance(augmentation, str):
        if augmentation in (PAD_CROP, RESIZED_CROP):
            return augmentation == RESIZED_CROP
        steps = _PRESETS[augmentation]
        return True if any(step.crops for step in steps) else None
    return any(isinstance(step, RandomResizedCrop) for step in augmentation)


def mixes(augmentation: Augmentation | None) -> bool:
    """Whether images are mixed."""
    return augmentation is not None and any(step.mixes for step in expanded(augmentation, ()))


def check_size(steps: Iterable[Step], height: int, width: int) -> None:
    """Refuses steps that need larger images.

    Raises:
        ConfigError: a kernel of `blur` is more than twice as large as the image.
    """
    for step in steps:
        if isinstance(step, Blur) and step.kernel_size // 2 >= min(height, width):
            raise ConfigError(
                f"step blur: kernel_size is {step.kernel_size}, but must be below "
                f"{2 * min(height, width)} for images of {height}x{width}"
            )


def written(augmentation: Augmentation | None) -> Any:
    """As in a file."""
    if augmentation is None or isinstance(augmentation, str):
        return augmentation
    return [step.given() for step in augmentation]


def recipe_of(steps: tuple[Step, ...]) -> str:
    """Everything that decides a view beside seed and image, for keys of caches."""
    return json.dumps([[step.name, step.model_dump(mode="json")] for step in steps])
