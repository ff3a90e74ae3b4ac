"""What a connected Ray cluster has, and whether its machines see the storage."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.experiment.schema import Resources
from search.record.storage import Storage

# A machine that hangs on its mount must not hold up a launch for ever.
_ANSWER_SECONDS = 60.0
_FOLDER = ".reach-test"

# What the autoscaler and KubeRay call a machine's type; else `ray start --labels` may give it.
_TYPE = "ray.io/node-group"


def machines() -> list[dict[str, Any]]:
    """Ray's descriptions of the machines that are alive."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def machine_types() -> list[str]:
    """The type of each machine that is alive; empty where Ray was not told."""
    return [machine["Labels"].get(_TYPE, "") for machine in machines()]


def gpus() -> int:
    """Number of GPUs of all machines."""
    return int(sum(machine["Resources"].get("GPU", 0) for machine in machines()))


@dataclass(frozen=True)
class MachineWithGpus:
    """A machine whose GPUs trials can use.

    Args:
        cores: for trials.
        gpus: number of them.
        gpu: what the one with the least memory is called.
        gpu_bytes: its memory.
        node: Ray's name for the machine; empty for this one, where Ray is not asked.
    """

    cores: int
    gpus: int
    gpu: str
    gpu_bytes: int
    node: str = ""


def smallest_gpu() -> tuple[str, int] | None:
    """Name and bytes of memory of this machine's GPU with the least; none where PyTorch has none,
    also for want of a driver."""
    import torch

    found = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    if not found:
        return None
    smallest = min(found, key=lambda gpu: gpu.total_memory)
    return smallest.name, smallest.total_memory


def machines_with_gpus() -> list[MachineWithGpus]:
    """The machines that have cores and GPUs for trials, where PyTorch can use these."""
    asked = [
        machine
        for machine in machines()
        if machine["Resources"].get("CPU", 0) >= 1 and machine["Resources"].get("GPU", 0) >= 1
    ]
    # Asking takes no GPU, since all may be in use; so the process must see them without a share. It
    # ends with its answer, and holds nothing on them.
    ask: Any = ray.remote(
        num_cpus=0,
        max_calls=1,
        runtime_env={"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}},
    )(smallest_gpu)
    answers = []
    for machine in asked:
        there = NodeAffinitySchedulingStrategy(machine["NodeID"], soft=False)
        answers.append(ask.options(scheduling_strategy=there).remote())
    found = []
    for machine, answer in zip(asked, answers, strict=True):
        try:
            smallest: tuple[str, int] | None = ray.get(answer, timeout=5 * _ANSWER_SECONDS)
        except ray.exceptions.RayError:  # it was lost just now, or hangs
            continue
        if smallest is not None:
            has = machine["Resources"]
            own = MachineWithGpus(int(has["CPU"]), int(has["GPU"]), *smallest, machine["NodeID"])
            found.append(own)
    return found


def trial_places(resources: Resources) -> int:
    """Number of trials that fit on the machines at a time; each of their workers runs on one."""
    workers = sum(places_on(machine["Resources"], resources) for machine in machines())
    return workers // resources.workers


def places_on(has: Mapping[str, float], resources: Resources) -> int:
    """Number of trials' workers that fit on a machine with so much of what Ray counts."""
    places = int(has.get("CPU", 0) // resources.cpus)
    if resources.gpus:
        places = min(places, int(has.get("GPU", 0) / resources.gpus))
    return places


def cores_of_largest(gpus: float) -> int:
    """Cores of the largest of the machines that have so many GPUs; 0 where there is none."""
    there = (machine["Resources"] for machine in machines())
    return max((int(has.get("CPU", 0)) for has in there if has.get("GPU", 0) >= gpus), default=0)


def machines_in_words() -> str:
    """The machines' CPUs and GPUs, in words."""
    found = [
        f"{machine['Resources'].get('CPU', 0):g} CPUs and {machine['Resources'].get('GPU', 0):g} "
        f"GPUs"
        for machine in machines()
    ]
    words = [
        f"{found.count(each)} machines with {each}" if found.count(each) > 1 else f"one with {each}"
        for each in dict.fromkeys(found)
    ]
    return "; ".join(words) or "no machines"


def machines_without_storage(storage: Storage) -> list[str]:
    """The machines that do not share the storage with this process, each with the reason: they
    cannot read what it writes, or it cannot read what they write."""
    folder = f"{_FOLDER}-{secrets.token_hex(8)}"
    ours = f"{folder}/question"
    storage.write(ours, b"?")
    try:
        return _differing(storage, ours)
    finally:
        storage.remove_folder(folder)


def _differing(storage: Storage, ours: str) -> list[str]:
    """See `machines_without_storage`; `ours` is the file that each machine must see."""
    answers: dict[Any, tuple[str, str]] = {}
    alive: set[str] = set()
    for machine in machines():
        if machine["Resources"].get("CPU", 0):
            identity, address = machine["NodeID"], machine["NodeManagerAddress"]
            there = ray.remote(_answer).options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(identity, soft=False),
            )
            answers[there.remote(storage.uri, ours, f"{ours}-{identity}")] = identity, address
    deadline = time.monotonic() + _ANSWER_SECONDS
    silent = list(answers)
    while silent and time.monotonic() < deadline:
        silent = ray.wait(silent, num_returns=len(silent), timeout=1.0)[1]
        alive = {machine["NodeID"] for machine in machines()}
        silent = [answer for answer in silent if answers[answer][0] in alive]
    found = []
    for answer, (identity, address) in answers.items():
        if identity not in alive:  # it was lost just now
            continue
        reason = "it did not answer"
        if ray.wait([answer], timeout=0)[0]:
            try:
                reason = ray.get(answer)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
        theirs = f"{ours}-{identity}"
        if not reason and not storage.exists(theirs):
            reason = "its writes are not visible to the driver"
        if reason:
            found.append(f"{address}: {reason}")
    return found


def _answer(uri: str, question: str, answer: str) -> str:
    """Runs on a machine: reads the question, and writes the answer; the reason if it cannot."""
    storage = Storage(uri)
    try:
        storage.read(question)
        storage.write(answer, b"")
    except OSError as error:
        return str(error.strerror)
    return ""
