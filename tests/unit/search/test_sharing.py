"""Who shares a GPU where resources are left to the cluster: the rule, and what it goes by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdcore.data.image_data import open_data
from search.cli.launching import check
from search.cluster.machines import MachineWithGpus, smallest_gpu
from search.errors import ClusterError, ExperimentError
from search.experiment.reading import parse_experiment
from search.experiment.schema import Experiment
from search.record.files import read_record
from search.record.sharing import PROCESS_BYTES, USABLE, Sharing, trials_on_a_gpu
from search.record.storage import Storage
from search.session import sharing
from search.session.sharing import Decided, Needs, decided, needs_of, settled
from tests.records import write_record
from tests.synthetic import SMALL, finished_search

GIB = 2**30
BOX = MachineWithGpus(cores=32, gpus=8, gpu="NVIDIA A100", gpu_bytes=80 * GIB, node="a" * 56)
SMALL_TRIALS = Needs(GIB, 0.1)


@dataclass(frozen=True)
class Planned:
    """What of a plan resources are decided by."""

    experiment: Experiment


def of(
    there: Sequence[MachineWithGpus],
    needs: Needs = SMALL_TRIALS,
    runs: int = 200,
    **changes: Any,
) -> Decided:
    experiment = parse_experiment({**SMALL, **changes}, "")
    return decided(experiment, there, lambda machine: needs, runs)


def test_what_shares_a_gpu_fits_into_it_and_larger_trials_are_fewer() -> None:
    sizes = [0, *(2**power for power in range(20, 45))]
    busies, cores = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0), (0, 1, 3, 8, 64)
    gpus, shares = (GIB, 16 * GIB, 24 * GIB, 141 * GIB), (0.1, 1, 2.5, 100)
    for gpu, busy, core, runs in product(gpus, busies, cores, shares):
        numbers = [trials_on_a_gpu(size, busy, gpu, core, runs)[0] for size in sizes]
        assert set(numbers) <= {1, 2, 4, 8}
        assert all(fewer <= more for more, fewer in pairwise(numbers)), "never more for larger ones"
        for size, number in zip(sizes, numbers, strict=True):
            if number > 1:
                assert number * (size + PROCESS_BYTES) <= USABLE * gpu
                assert number * busy <= 1
                assert number <= core
                assert number < 2 * runs, "half as many would leave no trial waiting"
    # All that is asked for bounds it, and nothing else does.
    assert trials_on_a_gpu(GIB, 0.1, 80 * GIB, 8, 8) == (8, "most")
    assert trials_on_a_gpu(12 * GIB, 0.1, 80 * GIB, 8, 8) == (4, "memory")
    assert trials_on_a_gpu(GIB, 0.3, 80 * GIB, 8, 8) == (2, "time")
    assert trials_on_a_gpu(GIB, 0.1, 80 * GIB, 4, 8) == (4, "cores")
    assert trials_on_a_gpu(GIB, 0.1, 80 * GIB, 8, 1.5) == (2, "trials")
    assert trials_on_a_gpu(99 * GIB, 1.0, 80 * GIB, 8, 8) == (1, "memory")


def test_cores_follow_from_the_share_and_the_smallest_machine_decides() -> None:
    assert of([BOX]).experiment.resources.written == {"cpus": 1, "gpus": 0.25}
    assert of([replace(BOX, cores=128)]).experiment.resources.written == {"cpus": 2, "gpus": 0.125}
    alone = of([BOX], Needs(GIB, 0.9)).experiment.resources
    assert alone.written == {"cpus": 4, "gpus": 1.0}
    fewer_cores = of([BOX, replace(BOX, cores=2)]).experiment.resources
    assert fewer_cores.written == {"cpus": 1, "gpus": 1.0}
    small = replace(BOX, cores=64, gpu="Tesla T4", gpu_bytes=16 * GIB)
    mixed = of([replace(BOX, cores=64), small], Needs(5 * GIB, 0.1))
    assert mixed.experiment.resources.written == {"cpus": 4, "gpus": 0.5}
    assert mixed.sharing is not None
    assert mixed.sharing.gpu == "Tesla T4"
    # Fewer trials than there is room for are no reason to leave GPUs idle.
    few = {"trials": 100, "concurrent_trials": 10}
    for runs, changes in ((10, {}), (16, {}), (200, {"search": few})):
        found = of([BOX], runs=runs, **changes).experiment.resources
        assert found.written == {"cpus": 2, "gpus": 0.5}
    assert of([BOX], runs=8).experiment.resources.written == {"cpus": 4, "gpus": 1.0}
    given = of([BOX], resources={"cpus": 2}).experiment.resources
    assert given.written == {"cpus": 2, "gpus": 0.5}


def test_the_decision_is_told_with_its_figures() -> None:
    assert of([BOX]).words == (
        "share    4 trials a GPU, with 1 core each: a trial takes about 2 GiB of the 80 GiB of "
        "NVIDIA A100, and its images 10% of a step's time; more would have no core each"
    )
    assert of([BOX], Needs(GIB, 0.4)).words.endswith("; more would wait for each other")
    assert of([BOX], runs=2).words.endswith("; more do not run at a time")
    assert of([BOX], Needs(30 * GIB, 0.1)).words.endswith("; more would not fit")
    assert of([replace(BOX, cores=64)]).words.endswith("10% of a step's time")
    crowded = of([BOX], Needs(90 * GIB, 1.0)).words
    assert crowded.startswith("share    a GPU for each trial, with 4 cores each: ")
    assert crowded.endswith("; out of memory, it goes on with each batch in two parts")
    assert of([]).words == "share    trials compute on the CPU, 1 core each: there is no GPU"
    assert of([]).experiment.resources.written == {"cpus": 1, "gpus": 0.0}
    assert of([], resources={"cpus": 3}).experiment.resources.written == {"cpus": 3, "gpus": 0.0}
    by_four = {"resources": {"workers": 4}}
    found = of([BOX], **by_four)
    assert found.experiment.resources.written == {"cpus": 4, "gpus": 1.0, "workers": 4}
    assert found.words.startswith("share    a GPU for each worker of a trial, with 4 cores each: ")
    assert found.words.endswith("; each of its workers needs a whole one")
    found = of([], **by_four)
    assert found.experiment.resources.written == {"cpus": 1, "gpus": 0.0, "workers": 4}
    assert found.words == (
        "share    4 workers a trial compute on the CPU, 1 core each: there is no GPU"
    )
    for there, hours in (([], "gpu_hours"), ([BOX], "cpu_hours")):
        with pytest.raises(ExperimentError, match=f"task: search.{hours} is given, but the trials"):
            of(there, search={"trials": 4, hours: 1})


def test_a_trials_memory_is_that_of_its_parts(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    data = open_data(parse_experiment(SMALL, "").data, tmp_path)

    def needed(**changes: Any) -> int:
        return needs_of(parse_experiment({**SMALL, **changes}, ""), data, cpu).trial_bytes

    needs = needs_of(parse_experiment(SMALL, ""), data, cpu)
    small = needs.trial_bytes
    assert 0 <= needs.busy <= 1
    assert small > data.train.device_bytes > 0
    several = needed(student=["resnet8", "vgg8"])
    assert several == needed(student="vgg8") > small, "the largest student"
    assert needed(training={"epochs": 4, "batch_size": 512}) > small
    wide = {"epochs": 4, "batch_size": 512}
    assert needed(training=wide, resources={"workers": 8}) < needed(training=wide), "each has less"
    large = {"backbone": "vgg8", "training": {"epochs": 2}}
    assert needed(teacher=[SMALL["teacher"], large]) == needed(teacher=large) > small
    assert needed(objective=[["none", "kd", "mlld"]]) > small, "two views of an image"
    maps = needed(objective=[["none", "kd", "at"]])
    assert maps > small, "the maps of a cached view"
    live = needed(objective=[["none", "kd", "at"]], cache=None)
    assert small < live < maps
    assert needed(objective=[["none", "kd", "at"]], cache={"max_gb": 0}) == live


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """GPUs that this machine pretends to have, by their memory in GiB."""
    found = [80, 40]

    def properties(number: int) -> SimpleNamespace:
        return SimpleNamespace(name=f"GPU {number}", total_memory=found[number] * GIB)

    monkeypatch.setattr("torch.cuda.device_count", lambda: len(found))
    monkeypatch.setattr("torch.cuda.get_device_properties", properties)
    return found


def test_the_smallest_gpu_of_a_machine_counts(gpus: list[int]) -> None:
    assert smallest_gpu() == ("GPU 1", 40 * GIB)
    gpus.clear()
    assert smallest_gpu() is None


def test_check_decides_and_tells_it(
    tmp_path: Path,
    gpus: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "task.yaml").write_text(
        "data: {name: digits}\nteacher: {backbone: resnet14, training: {epochs: 2}}\n"
        "student: resnet8\nobjective: [[none, kd]]\ntraining: {epochs: 4, acceleration: 'off'}\n"
        "search: {trials: 64, asha: null}\n"
    )
    asked: list[Any] = []

    def needs(experiment: Any, data: Any, device: Any) -> Needs:
        asked.append(experiment.resources.is_decided)
        return Needs(GIB, 0.2)

    monkeypatch.setattr(sharing, "needs_of", needs)
    monkeypatch.setattr(sharing, "this_machine", lambda: SimpleNamespace(cores=16))
    check(tmp_path / "task.yaml", storage=str(tmp_path))
    printed = capsys.readouterr().out
    assert (
        "\nshare    4 trials a GPU, with 2 cores each: a trial takes about 2 GiB of the" in printed
    )
    check(tmp_path / "task.yaml", ["resources.gpus=0.5"], storage=str(tmp_path))
    assert "share" not in capsys.readouterr().out
    # Some 1,300 images, of each of which 74 halves are cached: 0.2 MB.
    monkeypatch.setattr(sharing, "device_memory", lambda device: 250_000)
    assert "\ncache " not in printed
    check(tmp_path / "task.yaml", ["resources.gpus=1"], storage=str(tmp_path))
    told = "\ncache    a view of what resnet14 gives takes up to "
    assert told in capsys.readouterr().out
    for unneeded in ("cache.device_share=1", "cache=null", "cache.max_gb=0"):
        check(tmp_path / "task.yaml", ["resources.gpus=1", unneeded], storage=str(tmp_path))
        assert "cache " not in capsys.readouterr().out
    gpus.clear()
    check(tmp_path / "task.yaml", storage=str(tmp_path))
    words = "share    trials compute on the CPU, 1 core each: there is no GPU"
    assert words in capsys.readouterr().out
    assert asked == [False]


def test_a_search_goes_on_as_decided_where_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [replace(BOX, cores=128)]
    monkeypatch.setattr(sharing, "machines_with_gpus", lambda: there)
    monkeypatch.setattr(sharing, "machines", lambda: [{"Resources": {"CPU": 128.0, "GPU": 8.0}}])
    monkeypatch.setattr(sharing, "gpus", lambda: 8)
    monkeypatch.setattr(sharing, "places_for_trials", lambda experiment, storage: 64)
    measure = SimpleNamespace(remote=lambda *arguments: Needs(4 * GIB, 0.1))
    task = SimpleNamespace(options=lambda **resources: measure)
    ray = SimpleNamespace(remote=lambda function: task, get=lambda answer: answer)
    monkeypatch.setattr(sharing, "ray", ray)
    said: list[str] = []

    def go_on(record: Any) -> Any:
        prepared: Any = Planned(record.experiment)
        found, record = settled(prepared, record, Storage(str(tmp_path)), said.append, said.clear)
        assert found.experiment == record.experiment
        write_record(Storage(str(tmp_path)), record)
        return read_record(Storage(str(tmp_path)), record.name)

    begun = go_on(finished_search([], {"search": {"trials": 64}}))
    assert begun.experiment.resources.written == {"cpus": 2, "gpus": 0.125}
    assert begun.sharing == Sharing(
        trials=8,
        cpus=2,
        gpu=BOX.gpu,
        gpu_bytes=80 * GIB,
        trial_bytes=4 * GIB,
        busy=0.1,
        limit="most",
    )
    assert said == [f"share    {begun.sharing}"]
    again = go_on(begun)
    assert again == begun.model_copy(update={"updated": again.updated})
    assert len(said) == 1, "decided once"
    there[:] = [replace(BOX, gpu="Tesla T4", gpu_bytes=16 * GIB)]
    refused = r"8 trials a GPU, each with about 5 GiB, were decided for NVIDIA A100 with 80 GiB, "
    with pytest.raises(ClusterError, match=refused + r"but Tesla T4 has 16 GiB; .*resources=auto"):
        go_on(begun)
    with pytest.raises(ClusterError, match="16 GiB; another --name decides anew"):
        go_on(begun.model_copy(update={"reproduces": "a pair"}))
    # One of an earlier version, and one that was asked for so, stay as they were.
    for resources in ({"cpus": 1, "gpus": 0}, {"cpus": 2, "gpus": 0.5}):
        given = finished_search([], {"resources": resources})
        assert go_on(given).experiment.resources.written == resources
        assert go_on(given).sharing is None
    assert len(said) == 1


@pytest.mark.parametrize("asked", [None, 2])
def test_a_cluster_without_machines_is_waited_for_only_if_it_will_grow(
    asked: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[dict[str, Any]] = []
    waited: list[str] = []
    arrives = SimpleNamespace(remote=lambda: there.append({"Resources": {"CPU": 2.0}}))
    task = SimpleNamespace(options=lambda **resources: arrives)
    ray = SimpleNamespace(remote=lambda function: task, get=lambda answer: answer)
    monkeypatch.setattr(sharing, "ray", ray)
    monkeypatch.setattr(sharing, "machines", lambda: there)
    monkeypatch.setattr(sharing, "machines_with_gpus", list)
    monkeypatch.setattr(sharing, "gpus", lambda: 0)
    monkeypatch.setattr("search.cluster.machines.ray.nodes", list)
    monkeypatch.setattr("search.cluster.connection.growth", lambda: None)
    record = finished_search([], {"search": {"trials": 4, "concurrent_trials": asked}})
    prepared: Any = Planned(record.experiment)
    storage = Storage(str(tmp_path))

    def go_on() -> Any:
        return settled(prepared, record, storage, waited.append, lambda: waited.append("waits"))

    if asked is None:
        with pytest.raises(ClusterError, match=r"a trial needs 1 CPUs .* if the cluster will grow"):
            go_on()
        assert not waited
        return
    checked = sharing.decided_on_ray(prepared, storage)
    assert checked.words == "share    the first machine that comes decides it"
    assert not checked.experiment.resources.is_decided
    found, _ = go_on()
    assert found.experiment.resources.written == {"cpus": 1, "gpus": 0.0}
    assert waited == ["waits", "share    trials compute on the CPU, 1 core each: there is no GPU"]
