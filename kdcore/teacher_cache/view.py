"""A teacher's outputs for one view: on the device, or in the machine's memory from where they come
by batches, each ahead of its step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import torch
from torch import Tensor

from kdcore.contract.taps import Tap, Taps

KINDS = {Tap.MAPS: "map", Tap.PREACTIVATIONS: "preactivation"}
"""What the names of columns with maps begin with, before a dash and the name of the tap."""
CLASS_MAPS = "class_maps"
"""The name of the column with class maps."""
POOLED_MAP = "pooled_map"
"""The name of the column with the map whose mean is the embedding."""
STRONG_LOGITS = "strong_logits"
"""The name of the column with the logits of second views."""

Rows = Mapping[str, Tensor]
"""Outputs for some images by column, on the device, as they are stored."""


@dataclass(frozen=True)
class CachedView:
    """A teacher's outputs for one view of all training images.

    Args:
        columns: by name, [N, ...]; maps as [N, H, W, C] where they are channels-last.
        channels_last: the memory layout of maps, which is that of a live teacher: the order of a
            sum affects its rounding.
        computed: whether this process has just computed any of them.
        seconds_saved: seconds that a live teacher would have taken; 0 if just computed.
        device: where outputs are read.
        resident: whether the columns are there. Others are in files that are mapped into memory,
            one copy for all processes of a machine.
    """

    columns: Mapping[str, Tensor]
    channels_last: bool
    computed: bool
    seconds_saved: float
    device: torch.device
    resident: bool = True

    def at(self, positions: Tensor) -> Taps:
        """The outputs for the training images at these positions [B], from resident columns."""
        return self.taps({name: column[positions] for name, column in self.columns.items()})

    def taps(self, rows: Rows) -> Taps:
        """Rows as a live teacher gives them."""
        found: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS.values()}
        whole: dict[str, Tensor] = {}
        for name, stored in rows.items():
            if stored.ndim == 4:
                values = stored.float()
                values = values.permute(0, 3, 1, 2) if self.channels_last else values
                kind, _, tap = name.partition("-")
                if tap:
                    found[kind][tap] = values
                else:
                    whole[name] = values
        logits, embedding = rows["logits"].float(), rows["embedding"].float()
        maps = found["map"], found["preactivation"]
        return Taps(
            logits,
            embedding,
            *maps,
            class_maps=whole.get(CLASS_MAPS),
            pooled_map=whole.get(POOLED_MAP),
            strong_logits=rows[STRONG_LOGITS].float() if STRONG_LOGITS in rows else None,
        )

    def ahead(self, order: Tensor, size: int) -> Iterator[Rows | None]:
        """The rows of each batch: on their way to the device before its step begins, meanwhile the
        one before it is computed. None for each where the columns are resident.

        Args:
            order: positions of images.
            size: of a batch.
        """
        if self.resident:
            yield from repeat(None, -(-len(order) // size))
            return
        on_its_way = None
        for positions in torch.split(order.cpu(), size):
            begun = self._fetch(positions)
            if on_its_way is not None:
                yield self._arrived(*on_its_way)
            on_its_way = begun
        if on_its_way is not None:
            yield self._arrived(*on_its_way)

    @cached_property
    def _beside(self) -> torch.cuda.Stream | None:
        """Copies beside the steps."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def _fetch(self, positions: Tensor) -> tuple[Rows, torch.cuda.Event | None]:
        """Begins to copy rows; the event tells when they are there."""
        rows = {}
        for name, column in self.columns.items():
            staged = torch.empty(
                (len(positions), *column.shape[1:]),
                dtype=column.dtype,
                pin_memory=self._beside is not None,
            )
            torch.index_select(column, 0, positions, out=staged)
            with torch.cuda.stream(self._beside):
                rows[name] = staged.to(self.device, non_blocking=True)
        return rows, None if self._beside is None else self._beside.record_event()

    def _arrived(self, rows: Rows, there: torch.cuda.Event | None) -> Rows:
        """Has what comes next on the device wait for the rows."""
        if there is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(there)
            for values in rows.values():
                values.record_stream(now)
        return rows
