"""The precision and memory layout in which a network computes; loads without PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import torch
    from torch import nn

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Execution:
    """How a network computes.

    Every device can do every execution; without instructions for a precision it only takes longer.

    Args:
        precision: of convolutions and matrix products, by autocast; weights stay in float32.
        channels_last: memory layout of weights and maps.
        side_by_side: convolutions read narrow maps of several images at once; see `side_by_side`.
    """

    precision: Precision = "float32"
    channels_last: bool = False
    side_by_side: bool = False

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision is {self.precision!r}, but must be one of "
                f"{', '.join(get_args(Precision))}"
            )

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> "Execution":
        """The inverse of `asdict`; version 0.1.0 stored `bfloat16`, true or false, as precision."""
        fields = dict(stored)
        if "bfloat16" in fields:
            fields["precision"] = "bfloat16" if fields.pop("bfloat16") else "float32"
        return cls(**fields)

    def autocast(self, device: "torch.device") -> "torch.autocast":
        """The autocast context of this precision."""
        import torch

        half = torch.float16 if self.precision == "float16" else torch.bfloat16
        return torch.autocast(device.type, half, enabled=self.precision != "float32")

    def place(self, module: "nn.Module", device: "torch.device") -> None:
        """Moves a module to a device and into this layout."""
        import torch

        from kdcore.execution.side_by_side import lay_side_by_side

        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        module.to(device).to(memory_format=layout)
        lay_side_by_side(module, self.side_by_side)
