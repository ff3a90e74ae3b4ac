"""Where the time of an epoch goes."""

import time
from collections.abc import Iterable, Iterator

import torch

_IMAGES = "images"


class Timeline:
    """Divides an epoch into parts, without waiting for the device in any step.

    Each mark ends a part that the mark before it began, so that the parts add up to the epoch. On a
    CPU marks are times. On a GPU they are events between kernels, so that a part has the time that
    the GPU spent on it or waited for it; nothing that the CPU does meanwhile counts. A step in a
    CUDA graph has no marks inside: the whole of it is the student's.

    Args:
        device: where training runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spent: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._last = time.perf_counter()
        self.mark("")

    def mark(self, part: str) -> None:
        """Ends a part: what happened since the last mark."""
        if self._device.type == "cuda":
            if not torch.cuda.is_current_stream_capturing():
                event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                event.record()
                self._events.append((part, event))
            return
        now = time.perf_counter()
        self._spent[part] = self._spent.get(part, 0.0) + now - self._last
        self._last = now

    def steps(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The same batches; what is done with them is the student's part."""
        for batch in batches:
            self.mark(_IMAGES)
            yield batch
            self.mark("student")

    def seconds(self, decoding_share: float) -> dict[str, float]:
        """Seconds by part: `decoding`, `augmenting`, `teacher`, `student` and others.

        Args:
            decoding_share: of the wait for images, from 0 to 1; the rest is augmenting.
        """
        if self._events:
            self._events[-1][1].synchronize()
            for (_, begin), (part, end) in zip(self._events, self._events[1:], strict=False):
                spent = begin.elapsed_time(end) / 1e3
                self._spent[part] = self._spent.get(part, 0.0) + spent
            self._events.clear()
        found = {part: spent for part, spent in self._spent.items() if part}
        images = found.pop(_IMAGES, 0.0)
        parts = {"decoding": decoding_share * images, "augmenting": (1 - decoding_share) * images}
        return parts | found
