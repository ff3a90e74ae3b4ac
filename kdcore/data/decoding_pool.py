"""A pool of processes that decode images for the training process.

They are forked from a server, a fresh interpreter: it has no CUDA state and no locks held by other
threads, imports PyTorch once for all of them (400 MB, which they share), and never runs the user's
main program again, so that scripts, notebooks and Ray actors all work. They end when the training
process ends, for whatever reason.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

from kdcore.data.decoding import DecodingTask, EncodedImage, Work, timed_task

_PROGRAM = (
    "import sys; sys.path[:] = {!r}; from kdcore.data.decoding_pool import serve; serve({!r})"
)


_THREADS = min(16, os.cpu_count() or 1)

_Found = TypeVar("_Found")


def in_threads(
    work: Callable[[EncodedImage], _Found], images: Iterator[EncodedImage], at_once: int
) -> Iterator[_Found]:
    """What is found of each image, in order, by threads of this process, for what is done once.

    Args:
        work: finds it.
        images: consumed as far ahead as they are worked on.
        at_once: number of images in memory.
    """
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="decoding") as pool:
        while some := list(islice(images, at_once)):
            yield from pool.map(work, some)


def decode_in_order(
    tasks: Iterator[DecodingTask], processes: int, ahead: int
) -> Iterator[tuple[Tensor, Work]]:
    """Runs tasks in the pool, and yields their pixels in order, with the work that they were.

    Args:
        tasks: consumed as far ahead as they are run.
        processes: of the pool; 0 to decode in this process.
        ahead: number of tasks that run ahead, >= 1.

    Raises:
        DataError: an image is damaged.
        RuntimeError: a process was killed.
    """
    if processes == 0:
        yield from map(timed_task, tasks)
        return
    with _making:
        if processes not in _pools:
            _pools[processes] = _Pool(processes)
        pool = _pools[processes]
    under_way: deque[Future[tuple[Tensor, Work]]] = deque()
    try:
        for task in tasks:
            under_way.append(pool.threads.submit(pool.run, task))
            if len(under_way) > ahead:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except RuntimeError:
        with _making:
            if _pools.get(processes) is pool:
                del _pools[processes]
        pool.close()
        raise
    finally:
        for future in under_way:
            future.cancel()


class _Pool:
    """Processes, and for each a thread of this process that waits for it."""

    def __init__(self, processes: int) -> None:
        pairs = [socket.socketpair() for _ in range(processes)]
        ends = [theirs.fileno() for _, theirs in pairs]
        self.threads = ThreadPoolExecutor(processes, thread_name_prefix="decoding")
        self.server = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(sys.path, ends)],
            stdin=subprocess.DEVNULL,
            pass_fds=ends,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.connections = [Connection(ours.detach()) for ours, _ in pairs]
        self.idle: SimpleQueue[Connection] = SimpleQueue()
        for (_, theirs), connection in zip(pairs, self.connections, strict=True):
            theirs.close()
            self.idle.put(connection)

    def run(self, task: DecodingTask) -> tuple[Tensor, Work]:
        """Has an idle process run a task, and waits for it."""
        connection = self.idle.get()
        try:
            connection.send(task)
            reply = connection.recv()
        except (EOFError, OSError):
            raise RuntimeError(
                f"a process that decodes images was killed at {task.images[0].place} to "
                f"{task.images[-1].place}; if memory ran out, give each trial fewer CPUs: it has "
                f"one such process per CPU"
            ) from None
        finally:
            self.idle.put(connection)
        if isinstance(reply, Exception):
            raise reply
        pixels, work = reply
        return torch.from_numpy(pixels), work

    def close(self) -> None:
        """Ends the processes after their current tasks."""
        self.threads.shutdown(cancel_futures=True)
        for connection in self.connections:
            connection.close()
        self.server.wait()


_making = Lock()
_pools: dict[int, _Pool] = {}
"""By number of processes; shared by all splits."""


@atexit.register
def _close_all() -> None:
    for pool in _pools.values():
        pool.close()


def serve(ends: Sequence[int]) -> None:
    """Runs in the server: forks a process for each of these sockets, and waits for them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interruptions
    torch.set_num_threads(1)
    for end in ends:
        if os.fork() == 0:
            for other in ends:
                if other != end:
                    os.close(other)
            _serve_one(Connection(end))
            os._exit(0)
    for end in ends:
        os.close(end)
    for _ in ends:
        os.wait()


def _serve_one(connection: Connection) -> None:
    try:
        while True:
            task = connection.recv()
            try:
                pixels, work = timed_task(task)
                reply: object = pixels.numpy(), work
            except Exception as error:
                reply = error
            connection.send(reply)
    except (EOFError, OSError):
        return  # the parent has ended or closed the pool
