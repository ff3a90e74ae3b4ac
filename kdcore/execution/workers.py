"""The processes that train one student together, each with a part of the images of every batch.

Whatever a process adds to the loss counts by its share of the batch's images, gradients are added
up, and what compares the images of a batch is given all of them. So the step is that of one process
with the whole batch, but for batch norms, which normalise by the images of their own process unless
`sync_batch_norms` is set.
"""

import io
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed
from torch.autograd import Function
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # they are documented

T = TypeVar("T")

_CPU = torch.device("cpu")

# Until all are there; and of one exchange, for which others may compute a teacher's outputs. A
# process that dies ends the exchange at once.
_JOINING = timedelta(minutes=10)
_WAITING = timedelta(hours=12)

# Of 32 bits, as PyTorch's generator on CPUs reads no more; far from sums of epochs and seeds.
_SEEDS_APART = 0x9E3779B9


class _Sum(Function):
    """The sum over all processes, of values whose gradients are added up likewise."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(gradient)
        return total


class Share(NamedTuple):
    """A process's images of some.

    Args:
        first: of them.
        images: how many it has.
        whole: how many there are.
    """

    first: int
    images: int
    whole: int


@dataclass(frozen=True)
class Workers:
    """This process among those that train a student together; by default it is alone.

    Args:
        rank: its number, from 0. The first one evaluates, reports and writes checkpoints.
        number: of processes.
        device: where it computes.
    """

    rank: int = 0
    number: int = 1
    device: torch.device = _CPU

    @property
    def together(self) -> bool:
        """Whether there are others."""
        return self.number > 1

    def share_of(self, images: int) -> Share:
        """This process's images; the first ones have one more, where they cannot be equal."""
        fewest, more = divmod(images, self.number)
        first = self.rank * fewest + min(self.rank, more)
        return Share(first, fewest + (self.rank < more), images)

    def divided(self, images: int, parts: int, device: torch.device) -> tuple[list[Share], Tensor]:
        """This process's share of each part of a batch, and the places of its images in the batch.

        Args:
            images: of the batch.
            parts: into which it is divided, before each is divided among the processes.
            device: of the places.
        """
        shares, places = [], []
        for part in torch.arange(images, device=device).tensor_split(parts):
            share = self.share_of(len(part))
            shares.append(share)
            places.append(part[share.first : share.first + share.images])
        return shares, torch.cat(places)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, with gradients of any order."""
        total: Tensor = _Sum.apply(values) if self.together else values
        return total

    def whole(self, rows: Tensor, share: Share) -> Tensor:
        """The rows [B, ...] of all processes, from those of this one's share, with gradients."""
        if not self.together:
            return rows
        before = rows.new_zeros((share.first, *rows.shape[1:]))
        after = rows.new_zeros((share.whole - share.first - share.images, *rows.shape[1:]))
        return self.total(torch.cat([before, rows, after]))

    @torch.no_grad()
    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Puts the sum over all processes into each tensor; all have one type."""
        tensors = list(tensors)
        if not self.together or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        sums = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, sums, strict=True):
            tensor.copy_(total.view(tensor.shape))

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Puts the mean over all processes into each tensor; equal ones stay as they are."""
        tensors = list(tensors)
        # In float64 the sum of equal float32 is exact.
        wide = [tensor.double() for tensor in tensors]
        self.add_up(wide)
        for tensor, total in zip(tensors, wide, strict=True):
            tensor.copy_(total / self.number)

    def smallest(self, values: Tensor) -> None:
        """Puts the smallest over all processes into the tensor."""
        if self.together:
            distributed.all_reduce(values, distributed.ReduceOp.MIN)

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; nothing is unpickled.

        Args:
            make: of tensors, numbers, strings, None, and lists and dicts of those.
        """
        if not self.together:
            return make()
        made, content = None, io.BytesIO()
        if self.rank == 0:
            made = make()
            torch.save(made, content)
        size = torch.tensor(content.tell(), device=self.device)
        distributed.broadcast(size, 0)
        sent = torch.frombuffer(
            bytearray(content.getvalue() or bytes(int(size))), dtype=torch.uint8
        )
        sent = sent.to(self.device)
        distributed.broadcast(sent, 0)
        if self.rank == 0:
            return made  # type: ignore[return-value]
        got = io.BytesIO(sent.cpu().numpy().tobytes())
        received: T = torch.load(got, map_location=self.device, weights_only=True)
        return received


class OwnNumbers:
    """Random numbers of each process's own, as for dropout; those of all are the same otherwise,
    as what compares images needs them. A process that is alone has one kind.

    Args:
        workers: the processes.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._state: tuple[Tensor, Tensor | None] | None = None

    def begin(self) -> None:
        """Begins them anew, from the seed of PyTorch's global random state."""
        if not self._workers.together:
            return
        common = self._now()
        torch.manual_seed(torch.initial_seed() + _SEEDS_APART * (self._workers.rank + 1))
        self._state = self._now()
        self._go_on(common)

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Draws them until the end of the block."""
        if self._state is None:
            yield
            return
        common = self._now()
        self._go_on(self._state)
        yield
        self._state = self._now()
        self._go_on(common)

    def _now(self) -> tuple[Tensor, Tensor | None]:
        on_gpu = self._workers.device.type == "cuda"
        return torch.get_rng_state(), torch.cuda.get_rng_state() if on_gpu else None

    def _go_on(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1])


def open_store(host: str) -> tuple[Store, int]:
    """Where processes find each other, in the first of them, and the free port that it takes.

    Args:
        host: an address of this machine that the others reach; at no other it answers.
    """
    listening = socket.create_server((host, 0))
    port = listening.getsockname()[1]
    descriptor = listening.detach()  # by itself the store would listen at all addresses
    store = TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=descriptor
    )
    return store, port


def reach_store(host: str, port: int) -> Store:
    """The store of the first process, in another one."""
    return TCPStore(host, port)


@contextmanager
def joined(rank: int, number: int, store: Store, device: torch.device) -> Iterator[Workers]:
    """Joins the other processes until the end of the block: by gloo on CPUs, by NCCL on GPUs.

    Args:
        rank: of this process.
        number: of processes.
        store: that all of them share.
        device: of this process.

    Raises:
        torch.distributed.DistError: the others did not come.
    """
    store.set(f"there-{rank}", "")
    store.wait([f"there-{each}" for each in range(number)], _JOINING)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=number,
        timeout=_WAITING,
    )
    try:
        yield Workers(rank, number, device)
    finally:
        distributed.destroy_process_group()
