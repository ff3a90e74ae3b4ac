"""What trials take in money: its keys, how it is counted, the budget that ends a search, and the
most that a search can take."""

import heapq
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from rich.console import Console

from kdcore.methods import CATALOGUE
from kdcore.networks.cost import TrainingCost
from search.cluster import machines
from search.cluster.connection import check_prices
from search.errors import ClusterError, ExperimentError
from search.experiment.prices import Prices
from search.experiment.reading import parse_experiment, with_budgets
from search.experiment.schema import Resources
from search.experiment.space.point import NUMBER
from search.experiment.space.trial_config import epochs_on_top
from search.leaderboard.tables import leaderboard_table
from search.record.files import read_record
from search.record.live_record import LiveRecord
from search.record.record import SearchRecord
from search.record.storage import Storage
from search.report.summary import summary
from search.session import estimate
from search.session import recorder as recording
from search.session.estimate import Measured, at_most, in_words, most_epochs_on_top
from search.session.recorder import Recorder
from search.tracking.tracker import _costs
from tests.cases import Case
from tests.records import write_record
from tests.synthetic import SMALL, finished_search
from tests.unit.search.test_preflight import planned

STEP = 0.005  # hours, in which a spent budget is noticed

GPU, CPU = {"gpus": 0.5}, {"gpus": 0, "cpus": 2}


def asked(**changes: Any) -> Any:
    return parse_experiment({**SMALL, **changes}, "")


def test_prices_are_known_legal_and_those_of_what_trials_use() -> None:
    machine = {"machine_hour": {"worker": 1.0}}
    both = {"gpu_hour": 1.2, "cpu_hour": 0.05}
    budget = {"trials": 4, "budget": 50}
    for changes, words in (
        ({"search": budget}, "search.budget is given, but no prices; add them, like prices: {"),
        ({"search": {"trials": 4, "budget": 0}}, "search.budget: is 0, but"),
        ({"prices": {"gpu_hour": -1}}, "prices.gpu_hour: is -1, but"),
        ({"prices": {"gpu_hour": float("inf")}}, "prices.gpu_hour: is inf, but"),
        ({"prices": {"machine_hour": {"worker": -1}}}, "prices.machine_hour.worker: is -1, but"),
        ({"prices": {}}, "prices: has no price; give gpu_hour, cpu_hour or machine_hour"),
        ({"prices": {"currency": "EUR"}}, "prices: has no price"),
        ({"prices": {"gpu_hour": 1, **machine}}, "prices: has machine_hour beside gpu_hour"),
        ({"prices": {"gpu_hour": 1, "currency": "[red]"}}, "prices.currency: is '[red]', but"),
        ({"prices": {"gpu": 1}}, "prices.gpu: unknown key 'gpu'"),
        ({"prices": {"gpu_hour": 1}, "resources": CPU}, "prices has no cpu_hour, but the trials"),
        ({"prices": {"cpu_hour": 1}, "resources": GPU}, "prices has no gpu_hour, but the trials"),
    ):
        with Case(words), pytest.raises(ExperimentError) as refused:
            asked(**changes)
        assert words in str(refused.value)
        assert len(refused.value.problems) == 1
    for prices in (both, machine):
        for resources in (GPU, CPU, {}, {"cpus": 4}):
            assert asked(prices=prices, resources=resources, search=budget).search.budget == 50
    # As soon as it is known what trials use.
    assert asked(prices={"cpu_hour": 1}, resources="auto").wrong_budget == ""


def test_without_prices_nothing_is_written_of_them(tmp_path: Path) -> None:
    assert "prices" not in (written := json.loads(asked().model_dump_json()))
    assert "budget" not in written["search"]
    assert "spent" not in json.loads(finished_search([]).model_dump_json())
    content = {"prices": {"gpu_hour": 1.2, "currency": "EUR"}}
    content["search"] = {"trials": 4, "budget": 50}
    record = finished_search([], content, spent=3.5)
    again = read_record(Storage(str(tmp_path)), write_record(Storage(str(tmp_path)), record).name)
    assert (again.spent, again.experiment) == (3.5, record.experiment)
    assert again.experiment.prices == Prices(gpu_hour=1.2, currency="EUR")


def test_a_search_that_goes_on_may_have_other_prices_but_not_its_first() -> None:
    begun = asked(prices={"gpu_hour": 1.2}, resources=GPU)
    changed = with_budgets(begun, ["prices.gpu_hour=2", "search.budget=10"])
    assert (changed.prices.gpu_hour, changed.search.budget) == (2, 10)
    with pytest.raises(ExperimentError, match=r"prices has no cpu_hour.* add prices\.cpu_hour"):
        with_budgets(begun, ["resources.gpus=0"])
    both = with_budgets(begun, ["resources.gpus=0", "prices.cpu_hour=0.05"])
    assert both.prices == Prices(gpu_hour=1.2, cpu_hour=0.05)
    for override in ("prices.gpu_hour=2", "search.budget=9"):
        with pytest.raises(ExperimentError, match="began without prices, so what it has cost is"):
            with_budgets(asked(), [override])
    with pytest.raises(ExperimentError, match="only budgets and resources can change"):
        with_budgets(begun, ["prices.currency=EUR"])


class Counting:
    """A recorder whose clock and machines a test sets.

    Args:
        experiment: keys that differ from those of a small one.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **experiment: Any) -> None:
        self.now, self.machines = 1000.0, list[str]()
        monkeypatch.setattr(recording, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(recording, "machine_types", lambda: self.machines)
        self.search = LiveRecord(finished_search((), experiment))
        self.stop, self.progress = SimpleNamespace(made=False), Mock()
        fakes: Any = (Mock(pause=0.0), Mock(), Mock(ids={}), Mock(), self.progress, self.stop)
        self.recorder = Recorder(self.search, *fakes)

    def start(self, number: int) -> None:
        trial: Any = SimpleNamespace(config={"objective.1": "kd", NUMBER: number})
        self.recorder.on_trial_start(0, [], trial)

    def passes(self, seconds: float) -> SearchRecord:
        self.now += seconds
        self.recorder.on_step_end(0, [])
        return self.search.head


@pytest.mark.parametrize(
    ("resources", "prices", "an_hour_of_two"),
    [
        (GPU, {"gpu_hour": 1.2, "cpu_hour": 99}, 1.2),
        (CPU, {"gpu_hour": 99, "cpu_hour": 0.25}, 1.0),
    ],
)
def test_what_trials_occupy_is_paid_and_a_budget_of_it_ends_the_search(
    resources: dict[str, Any],
    prices: dict[str, Any],
    an_hour_of_two: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {"trials": 4, "budget": 2 * an_hour_of_two, "hours": 4}
    counting = Counting(monkeypatch, resources=resources, prices=prices, search=limits)
    assert counting.passes(3600).spent == 0, "nothing runs yet"
    for number in (0, 1):
        counting.start(number)
    assert counting.passes(1800).spent == pytest.approx(an_hour_of_two / 2)
    assert not counting.stop.made
    counting.passes(3600)
    head = counting.passes(1900)
    assert counting.stop.made
    assert head.ended == f"the budget of {2 * an_hour_of_two:g} USD is spent", "before the hours"
    in_hours = head.device_seconds / 3600 * prices["gpu_hour" if resources is GPU else "cpu_hour"]
    assert head.spent == pytest.approx(in_hours)


def test_machines_are_paid_while_they_are_there_whatever_runs_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prices = {"machine_hour": {"head": 0.5, "worker": 2}}
    limits = {"trials": 4, "budget": 100}
    counting = Counting(monkeypatch, resources=GPU, prices=prices, search=limits)
    counting.machines = ["head", "worker", "worker"]
    counting.start(0)
    assert counting.passes(3600).spent == pytest.approx(4.5)
    counting.machines = ["head", "spot"]
    for _ in range(2):
        counting.passes(1800)
    assert counting.search.head.spent == pytest.approx(4.5 + 0.5 + 2), "as the dearest"
    (said,) = [call.args[0] for call in counting.progress.say.call_args_list]
    assert "no price for a machine of type 'spot'" in said


def test_a_machine_without_a_price_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(**labels: str) -> dict[str, Any]:
        return {"Alive": True, "Resources": {"CPU": 4.0}, "Labels": labels}

    there = [machine(**{"ray.io/node-group": "worker"})]
    monkeypatch.setattr(machines.ray, "nodes", lambda: there)
    priced = asked(prices={"machine_hour": {"worker": 1, "head": 0}})
    check_prices(priced)
    for prices in ({"machine_hour": {"wroker": 1}}, {"machine_hour": {"head": 1}}):
        with pytest.raises(ClusterError, match="no price for machines of type 'worker' "):
            check_prices(asked(prices=prices))
    there[:] = [machine()]
    with pytest.raises(ClusterError, match="no price for machines of type ''"):
        check_prices(priced)
    check_prices(asked(prices={"cpu_hour": 1}))
    check_prices(asked())


def shown(record: SearchRecord) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(leaderboard_table(record))
    return capture.get()


def test_what_a_search_cost_is_told_in_its_currency() -> None:
    times = {"seconds": 7200.0, "device_seconds": 3600.0, "spent": 1234.5}
    content = {"resources": GPU, "prices": {"gpu_hour": 1234.5, "currency": "EUR"}}
    priced = finished_search([], content, **times)
    plain = finished_search([], {"resources": GPU}, **times | {"spent": 0.0})
    assert plain.cost == "2 h, 1 GPU-hours"
    assert priced.cost == "2 h, 1 GPU-hours, 1,234.50 EUR"
    assert priced.model_copy(update={"spent": 0.0123}).cost.endswith(" 0.012 EUR")
    assert f"Cost: {priced.cost}." in shown(priced)
    assert "Cost" not in shown(plain)
    assert f"Cost: {priced.cost}." in summary(priced)
    assert _costs(plain) == {"hours": 2.0, "gpu_hours": 1.0}
    assert _costs(priced) == {"hours": 2.0, "gpu_hours": 1.0, "cost_EUR": 1234.5}


def test_no_search_takes_more_than_is_said_before() -> None:
    """Beside searches with made-up durations, counted as the recorder does, and ended by it."""
    chance = random.Random(5)
    for case in range(100):
        gpus = chance.choice([0, 0.25, 1])
        search: dict[str, Any] = {"trials": (runs := chance.randint(1, 12))}
        for name in ("hours", "gpu_hours" if gpus else "cpu_hours", "budget"):
            if chance.random() < 0.4:
                search[name] = chance.uniform(0.5, 20)
        types = chance.choices(["a", "b"], k=chance.randint(1, 3))
        prices: dict[str, Any] = {"machine_hour": {"a": 1.5, "b": 0.25}}
        if chance.random() < 0.5:
            prices = {"gpu_hour": 0.75, "cpu_hour": 0.125}
        resources = {"gpus": gpus, "cpus": chance.randint(1, 3)}
        experiment = asked(search=search, prices=prices, resources=resources)
        at_a_time, longest = chance.randint(1, 5), chance.uniform(0.1, 4)
        at_a_time = min(at_a_time, runs)
        hours = [longest * chance.choice([1, chance.random()]) for _ in range(runs)]
        most, ending = at_most(experiment, runs, longest, at_a_time, types)
        record = finished_search([], {}).model_copy(update={"experiment": experiment})
        waiting, ends, now, ended = list(hours), list[float](), 0.0, ""
        an_hour = sum(prices.get("machine_hour", {}).get(each, 0) for each in types)
        price = prices.get("gpu_hour" if gpus else "cpu_hour", 0)
        while (waiting or ends) and not ended:
            while waiting and len(ends) < at_a_time:
                heapq.heappush(ends, now + waiting.pop())
            step = min(ends[0] - now, STEP)
            devices = len(ends) * (gpus or resources["cpus"])
            now += step
            record = record.model_copy(
                update={
                    "seconds": 3600 * now,
                    "device_seconds": record.device_seconds + 3600 * step * devices,
                    "spent": record.spent + step * (an_hour + devices * price),
                }
            )
            ended = record.spent_budget
            while ends and ends[0] <= now + 1e-12:
                heapq.heappop(ends)
        with Case(case):
            # A budget is noticed a step later.
            assert record.seconds / 3600 <= most.hours + STEP
            assert record.device_seconds / 3600 <= most.device_hours + STEP * 15
            assert record.spent <= most.money + STEP * 15
            if ended:
                assert ending
            if hours == [longest] * runs and not ended:
                assert record.device_seconds / 3600 == pytest.approx(most.device_hours)


def test_the_most_preparatory_epochs_are_those_of_the_longest_choice(tmp_path: Path) -> None:
    training = {"epochs": 20, "preparation_on_top": True}
    found = planned(tmp_path, training=training, objective=[["none", "kd", "fitnet"]])
    shares = next(
        field.options
        for (*_, method), fields in found.space.fields.items()
        for field in fields
        if field.name == f"{method}.preparation_share"
    )
    points = [{"objective.1": "fitnet", "fitnet.preparation_share": share} for share in shares]
    tried = [epochs_on_top(found.experiment, {**point, "fitnet.layers": "all"}) for point in points]
    assert most_epochs_on_top(found.experiment, found.space) == max(tried) > 0
    plain = planned(tmp_path, objective=[list(CATALOGUE)])
    assert most_epochs_on_top(plain.experiment, plain.space) == 0


def test_the_longest_student_and_all_teachers_that_are_to_be_trained_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    seconds = {"resnet8": 1.0, "resnet14": 2.0, "resnet20": 5.0}

    def step(
        network: str, batch: int, recipe: Any, data: Any, device: Any, workers: int
    ) -> TrainingCost:
        asked.append((network, batch))
        return TrainingCost(seconds[network] / workers, 0)

    monkeypatch.setattr(estimate, "_step", step)
    monkeypatch.setattr(estimate, "measure_latency", lambda network, images: 500.0 * len(images))
    prepared = planned(
        tmp_path,
        teacher={"backbone": "resnet20", "training": {"epochs": 3, "batch_size": 32}},
        student=["resnet8", "resnet14"],
        objective=[["none", "kd"]],
        training={"epochs": 4, "batch_size": [16, 64]},
    )
    images, cpu = len(prepared.data.train), torch.device("cpu")
    found = estimate.measured(prepared.experiment, prepared.data, cpu, ["resnet20"])
    assert found.epoch == pytest.approx(1.5 * (2.0 * (images // 64) + 0.5 * images))
    assert found.teachers == pytest.approx(1.5 * 3 * 5.0 * (images // 32))
    assert sorted(set(asked)) == [("resnet14", 64), ("resnet20", 32), ("resnet8", 64)]
    ready = estimate.measured(prepared.experiment, prepared.data, cpu, [])
    assert (ready.epoch, ready.teachers) == (found.epoch, 0)
    # Four workers share what a trial computes, and that of a teacher where they have GPUs.
    for gpus, teachers in ((0, found.teachers), (1, found.teachers / 4)):
        by_four = prepared.experiment.model_copy(
            update={"resources": Resources(gpus=gpus, workers=4)}
        )
        shared = estimate.measured(by_four, prepared.data, cpu, ["resnet20"])
        assert (4 * shared.epoch, shared.teachers) == pytest.approx((found.epoch, teachers))


def test_a_search_is_estimated_in_words(tmp_path: Path) -> None:
    content = {
        "objective": [["none", "kd"]],
        "training": {"epochs": 10},
        "resources": {"gpus": 0.5},
        "prices": {"gpu_hour": 2.0},
        "confirm": {"top": 2, "seeds": 3},
    }
    found = Measured(epoch=360.0, teachers=1800.0, device="a GPU")

    def words(places: int, **search: Any) -> list[str]:
        prepared = planned(tmp_path, **content, search={"trials": 6, **search})
        return in_words(prepared.experiment, prepared.space, found, places, [])

    assert words(4) == [
        "at once  4 trials, each for about 60 min, by a training step on a GPU and half as much "
        "again for evaluation and images; what methods compute comes on top",
        "at most  about 2 h, 3 GPU-hours, 6.00 USD for the trials, where none is stopped early",
        "before   about 30 min for what teaches",
        "after    about 3 h, 6 GPU-hours, 12.00 USD for 12 runs that confirm",
    ]
    assert words(99)[0].startswith("at once  6 trials, ")
    assert words(1, budget=5.0)[1] == (
        "at most  about 6 h, 3 GPU-hours, 5.00 USD for the trials, where none is stopped early; "
        "before all have run, the budget of 5 USD may be spent"
    )
    assert words(4, hours=1.0)[1].startswith(
        "at most  about 1 h, 2 GPU-hours, 4.00 USD for the trials,"
    )
