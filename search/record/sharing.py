"""How many trials share a GPU, where it is left to the cluster: the rule, and what it went by."""

from typing import Literal

from search.experiment.closed import Closed

MOST = 8
"""Trials that share a GPU at most: each process takes memory and cores of its own."""

USABLE = 0.8
"""Share of a GPU's memory that is planned for. What methods keep beside their networks is not
measured, and freed memory is not at once another process's."""

PROCESS_BYTES = 2**30
"""Of a GPU, what a process takes for CUDA and its libraries, whatever it trains."""


Limit = Literal["memory", "time", "cores", "trials", "most", "workers"]
"""Why not more trials share a GPU."""

_LIMITS: dict[Limit, str] = {
    "memory": "; more would not fit",
    "time": "; more would wait for each other",
    "cores": "; more would have no core each",
    "trials": "; more do not run at a time",
    "most": "",
    "workers": "; each of its workers needs a whole one",
}


def trials_on_a_gpu(
    trial_bytes: int, busy: float, gpu_bytes: int, cores: float, runs: float
) -> tuple[int, Limit]:
    """The number of trials that share a GPU: 1, 2, 4 or 8, the most that

    - have something to run there,
    - fit into its memory,
    - do not need more than its whole time together for their images,
    - have a core each;

    at least one, whatever it takes.

    Args:
        trial_bytes: of memory that a trial takes, without that of its process.
        busy: share of a step's time that the images take, 0 to 1; the rest is launches, and the GPU
            is another trial's meanwhile.
        gpu_bytes: memory of the GPU.
        cores: of the machine, for each of its GPUs.
        runs: at a time, for each GPU of all machines.

    Returns:
        The number, and why it is not twice as large.
    """
    number = 1
    while (more := 2 * number) <= MOST:
        if runs <= number:
            return number, "trials"
        if more * (trial_bytes + PROCESS_BYTES) > USABLE * gpu_bytes:
            return number, "memory"
        if more * busy > 1:
            return number, "time"
        if more > cores:
            return number, "cores"
        number = more
    return number, "most"


class Sharing(Closed):
    """A decision that trials share GPUs, and what it went by: figures of one training step,
    measured where the trials run, on the GPU with the least memory.

    Args:
        trials: on a GPU.
        cpus: cores of each.
        gpu: the GPU.
        gpu_bytes: its memory.
        trial_bytes: memory of a trial: training the largest student, the teacher or its cached
            outputs, and the images; without that of its process.
        busy: share of a step's time that the images take, of the student with the largest.
        limit: why not twice as many trials share a GPU.
    """

    trials: int
    cpus: int
    gpu: str
    gpu_bytes: int
    trial_bytes: int
    busy: float
    limit: Limit

    def holds(self, gpu_bytes: int) -> bool:
        """Whether as many trials fit on a GPU with this memory; one alone always may try."""
        needed = self.trials * (self.trial_bytes + PROCESS_BYTES)
        return self.trials == 1 or needed <= USABLE * gpu_bytes

    @property
    def process_gib(self) -> str:
        """Memory of a trial with its process, in words."""
        return gib(self.trial_bytes + PROCESS_BYTES)

    def __str__(self) -> str:
        cores = f"{self.cpus} core{'s' if self.cpus > 1 else ''}"
        each = f"{self.trials} trials a GPU" if self.trials > 1 else "a GPU for each trial"
        if self.limit == "workers":
            each = "a GPU for each worker of a trial"
        alone = self.trial_bytes + PROCESS_BYTES > self.gpu_bytes
        split = "; out of memory, it goes on with each batch in two parts"
        return (
            f"{each}, with {cores} each: a trial takes about {self.process_gib} of the "
            f"{gib(self.gpu_bytes)} of {self.gpu}, and its images {self.busy:.0%} of a step's time"
            + (split if alone else _LIMITS[self.limit])
        )


def gib(size: int) -> str:
    """A number of bytes, in words."""
    return f"{size / 2**30:.2g} GiB" if size < 100 * 2**30 else f"{size / 2**30:.0f} GiB"
