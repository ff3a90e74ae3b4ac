"""What a method's paper, or its authors' code, uses on a benchmark."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Benchmark = Literal["cifar", "imagenet"]
BENCHMARKS: tuple[Benchmark, ...] = get_args(Benchmark)
Setting = bool | int | float | str

# Images of at most this side are trained like CIFAR's: Tiny-ImageNet's have it.
LARGEST_OF_CIFAR = 64


@dataclass(frozen=True)
class Published:
    """A method's settings on a benchmark.

    Args:
        source: where they are written: a paper, or a file of the authors' or the field's code.
        settings: those that differ from the defaults of the method's `Params`.
        beside: other methods that belong into the same objective, with their settings.
    """

    source: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)

    def companions(self) -> dict[str, str]:
        """By name, the methods beside it in words, like `kd(weight=1, temperature=1)`."""
        return {
            name: f"{name}({', '.join(f'{key}={value:g}' for key, value in settings.items())})"
            if settings
            else name
            for name, settings in self.beside.items()
        }


def benchmark_of(image_size: tuple[int, int]) -> Benchmark:
    """The benchmark whose settings fit images of this height and width."""
    return "cifar" if max(image_size) <= LARGEST_OF_CIFAR else "imagenet"
