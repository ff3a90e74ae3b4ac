"""Samplers and rules of early stopping, on the same table of learning curves.

    python -m tests.benchmarks.searchers [--budgets N ...] [--slots N ...] [--seeds N] [--only NAME]

Whole searches are simulated on `tests.benchmarks.curves`'s table: a trial's curve, and its seconds,
are those of the table's trial of the same methods whose settings are nearest to what was proposed,
and which this search has not had yet, as long as there is one. Each seed has two thirds of the
table, by chance, so that no single trial, which may have been lucky, decides who looks good.
A budget of N is the time of N whole trials of the table's mean, shared by so many slots; trials
begin as long as it is not spent. Everyone searches with the same budgets and seeds: every sampler
of `search.sampler` with every rule of `search.stopping`, ASHA also with earlier rungs, and what
comes from a shelf, which does not begin with published settings: random search without stopping,
with which all are compared, and with Ray's ASHA, and Optuna's TPE with its pruners.

Regret is how far the best held-out accuracy that a search has seen lies below the table's best, in
percentage points. Beside the mean at the end of the budget, with its 95 % interval (bootstrap over
seeds), stands the share of the time after which the mean is as low as that of random search without
stopping at its end. The first pair of the table is where defaults may be chosen; the second judges
them. A table is printed, and `runs/bench/searchers.json` written.
"""

import argparse
import heapq
import json
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from pyarrow import parquet
from ray.tune.schedulers import AsyncHyperBandScheduler
from rich.console import Console

from kdcore.distillation.distill import network_pair
from search.experiment.reading import parse_experiment
from search.experiment.schema import Experiment
from search.experiment.search_config import SamplerName, SearchConfig
from search.experiment.space.derivation import derive_space
from search.experiment.space.fields import NumberField, SearchedField
from search.experiment.space.point import IS_CONTROL, Point, slot
from search.experiment.space.space import Space
from search.record.record import METRIC, TIME
from search.session.sampler import OptunaSampler
from search.stopping.named import rule_of
from tests.benchmarks import report
from tests.benchmarks.curves import TABLE
from tests.benchmarks.throughput import synthetic

SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)
RULES: Mapping[str, Mapping[str, Any]] = {
    "asha": {},
    "asha from 1": {"asha": {"grace_epochs": 1, "reduction": 3}},
    "asha from 3": {"asha": {"grace_epochs": 3, "reduction": 3}},
    "hyperband": {"stopping": "hyperband"},
    "median": {"stopping": "median"},
    "none": {"stopping": "none"},
}
BASIS = "stock random, none"
STOCK = (BASIS, "stock random, asha", "stock TPE, median", "stock TPE, halving")
STOCK += ("stock TPE, hyperband",)

MOMENTS = 200  # of a budget, at which regret is looked at
PART = 2 / 3  # of the table, that a search has


@dataclass(frozen=True)
class Entry:
    """A trial of the table: its settings, curve, seconds of an epoch, and epochs on top."""

    point: Point
    accuracies: tuple[float, ...]
    epoch_seconds: float
    on_top: int

    def is_whole(self, epochs: int) -> bool:
        """Whether it came to its end."""
        return len(self.accuracies) == epochs + self.on_top


def _best(entries: Iterable[Entry], epochs: int) -> float:
    return max(max(each.accuracies) for each in entries if each.is_whole(epochs))


class Table:
    """The trials of a pair.

    Args:
        experiment: that they are of.
        entries: in the order of their numbers.

    Attributes:
        space: of the search.
        epochs: of a whole trial.
        best: the highest accuracy of all.
        trial_seconds: mean of the whole trials.
    """

    def __init__(self, experiment: Experiment, entries: Sequence[Entry]) -> None:
        student, teacher = experiment.pairs[0]
        pair = network_pair(student, teacher, synthetic(2))
        self.experiment = experiment
        self.space: Space = derive_space(experiment, {(student, teacher): pair}, "")
        self.epochs = experiment.training.epochs
        self.best = _best(entries, self.epochs)
        seconds = [
            len(each.accuracies) * each.epoch_seconds
            for each in entries
            if each.is_whole(self.epochs)
        ]
        self.trial_seconds = float(np.mean(seconds))
        self._pair = student, teacher
        self._by_methods: dict[str, list[Entry]] = {}
        for each in entries:
            self._by_methods.setdefault(each.point[slot(1)], []).append(each)

    def part(self, seed: int) -> "Table":
        """A part of it, by chance, with at least one trial of each method."""
        chance, part = random.Random(seed), copy(self)
        part._by_methods = {
            method: [each for each in all_of_it if chance.random() < PART]
            or [chance.choice(all_of_it)]
            for method, all_of_it in self._by_methods.items()
        }
        kept = chain.from_iterable(part._by_methods.values())
        part.best = _best(kept, self.epochs)
        return part

    def at(self, point: Point, had: Container[int] = ()) -> Entry:
        """The trial of the same method whose settings are nearest; of the controls too.

        Args:
            point: the settings.
            had: trials, by `id`, that are taken only where the method has no others.
        """
        method = point[slot(1)]
        fields = (*self.space.shared, *self.space.fields.get((*self._pair, method), ()))

        def distance(entry: Entry) -> tuple[bool, float]:
            return id(entry) in had, sum(_distance(each, point, entry.point) for each in fields)

        return min(self._by_methods[method], key=distance)


def _distance(field: SearchedField, one: Point, other: Point) -> float:
    """Squared, as a share of the field's range; 1 between options."""
    mine, theirs = one.get(field.name), other.get(field.name)
    if mine is None or theirs is None or not isinstance(field, NumberField):
        return float(mine != theirs)
    low, high = field.low, field.high
    if field.log:
        low, high, mine, theirs = (math.log(each) for each in (low, high, mine, theirs))
    return float(((mine - theirs) / (high - low)) ** 2)


@cache
def tables(path: Path) -> dict[str, Table]:
    """By pair, what a file holds."""
    content = parquet.read_table(path)
    experiments = json.loads(content.schema.metadata[b"kdsearch"])["experiments"]
    entries: dict[str, list[Entry]] = {pair: [] for pair in experiments}
    for row in content.to_pylist():
        if row["accuracies"]:
            entry = Entry(
                json.loads(row["point"]),
                tuple(row["accuracies"]),
                row["epoch_seconds"],
                row["epochs_on_top"],
            )
            entries[row["pair"]].append(entry)
    return {
        pair: Table(parse_experiment(experiment, "table"), entries[pair])
        for pair, experiment in experiments.items()
    }


class Searcher(ABC):
    """Proposes points, and decides after each epoch whether a trial goes on."""

    @abstractmethod
    def start(self, trial: int) -> Point:
        """What a trial is."""

    @abstractmethod
    def goes_on(self, trial: int, epoch: int, best: float, accuracy: float) -> bool:
        """Whether it does after an epoch, from 1, without those on top."""

    @abstractmethod
    def end(self, trial: int, epochs: int, best: float) -> None:
        """A trial has ended, by itself or not, after so many epochs with those on top."""


class Kdsearch(Searcher):
    """A sampler with a rule, both as `search` has them by name."""

    def __init__(
        self, table: Table, sampler: SamplerName, rule: str, *, budget: int, slots: int, seed: int
    ) -> None:
        self._table, self._spared = table, set[int]()
        self._sampler = OptunaSampler(
            table.space,
            trials=budget,
            parallel=slots,
            epochs=table.epochs,
            seed=seed,
            sampler=sampler,
            on_top=lambda point: table.at(point).on_top,
        )
        settings = SearchConfig.model_validate({"trials": budget, **RULES[rule]}).rule
        self._rule = None if settings is None else rule_of(settings, epochs=table.epochs)

    def start(self, trial: int) -> Point:
        point = self._sampler.suggest(str(trial))
        if IS_CONTROL in point:
            self._spared.add(trial)
        return point

    def goes_on(self, trial: int, epoch: int, best: float, accuracy: float) -> bool:
        if self._rule is None:
            return True
        self._rule.add(trial, epoch, best, accuracy)
        return trial in self._spared or self._rule.keeps(trial, epoch)

    def end(self, trial: int, epochs: int, best: float) -> None:
        self._sampler.on_trial_complete(str(trial), {METRIC: best, TIME: epochs})


class Stock(Searcher):
    """Optuna's random sampler or TPE, with one of its pruners or Ray's ASHA, as they come."""

    def __init__(self, table: Table, sampler: str, rule: str, *, seed: int) -> None:
        samplers = {
            "random": optuna.samplers.RandomSampler,
            "TPE": optuna.samplers.TPESampler,
        }
        pruners = {
            "median": optuna.pruners.MedianPruner,
            "halving": optuna.pruners.SuccessiveHalvingPruner,
            "hyperband": optuna.pruners.HyperbandPruner,
        }
        self._table = table
        self._study = optuna.create_study(
            sampler=samplers[sampler](seed=seed),
            pruner=pruners.get(rule, optuna.pruners.NopPruner)(),
            direction="maximize",
        )
        self._asha = None
        if rule == "asha":
            self._asha = AsyncHyperBandScheduler(TIME, METRIC, "max", max_t=table.epochs)
        self._trials: dict[int, optuna.Trial] = {}
        self._whole: set[int] = set()

    def start(self, trial: int) -> Point:
        self._trials[trial] = self._study.ask()
        if self._asha is not None:
            self._asha.on_trial_add(None, SimpleNamespace(trial_id=str(trial)))
        return self._table.space.propose(self._trials[trial])

    def goes_on(self, trial: int, epoch: int, best: float, accuracy: float) -> bool:
        if epoch >= self._table.epochs:
            self._whole.add(trial)
        if self._asha is not None:
            of = SimpleNamespace(trial_id=str(trial))
            told = self._asha.on_trial_result(None, of, {TIME: epoch, METRIC: best})
            return bool(told == AsyncHyperBandScheduler.CONTINUE)
        self._trials[trial].report(best, epoch)
        return not self._trials[trial].should_prune()

    def end(self, trial: int, epochs: int, best: float) -> None:
        if trial in self._whole:
            self._study.tell(self._trials[trial], best)
        else:
            self._study.tell(self._trials[trial], state=optuna.trial.TrialState.PRUNED)


def searcher_of(name: str, table: Table, *, budget: int, slots: int, seed: int) -> Searcher:
    """By its name, like `tpe, asha`."""
    sampler, rule = name.split(", ")
    if name in STOCK:
        return Stock(table, sampler.removeprefix("stock "), rule, seed=seed)
    assert sampler in SAMPLERS, name
    return Kdsearch(table, sampler, rule, budget=budget, slots=slots, seed=seed)


def regrets(
    table: Table, searcher: Searcher, *, budget: int, slots: int
) -> tuple[NDArray[np.float64], int]:
    """Percentage points of regret at each moment of the budget, and how many trials began."""
    end = budget * table.trial_seconds / slots
    trials: dict[int, tuple[Entry, list[float]]] = {}
    ran: dict[int, int] = {}
    had: set[int] = set()
    reports: list[tuple[float, int]] = []  # when the next epoch ends, and of which trial

    def begin(now: float) -> None:
        trial = len(trials)
        entry = table.at(searcher.start(trial), had)
        had.add(id(entry))
        trials[trial] = entry, list(accumulate(entry.accuracies, max))
        ran[trial] = 0
        heapq.heappush(reports, (now + entry.epoch_seconds, trial))

    seen: list[tuple[float, float]] = [(0.0, 0.0)]  # since when, the best accuracy
    for _ in range(slots):
        begin(0.0)
    while reports:
        now, trial = heapq.heappop(reports)
        if now > end:
            break
        entry, bests = trials[trial]
        ran[trial] = done = ran[trial] + 1
        best, judged = bests[done - 1], done - entry.on_top
        if best > seen[-1][1]:
            seen.append((now, best))
        goes_on = judged < 1 or searcher.goes_on(trial, judged, best, entry.accuracies[done - 1])
        if done < len(bests) and goes_on:
            heapq.heappush(reports, (now + entry.epoch_seconds, trial))
        else:
            searcher.end(trial, done, best)
            begin(now)
    times, bests_seen = (np.array(each) for each in zip(*seen, strict=True))
    moments = np.linspace(0, end, MOMENTS + 1)[1:]
    known = bests_seen[np.searchsorted(times, moments, side="right") - 1]
    return 100 * (table.best - known), len(trials)


def _simulated(
    path: Path, pair: str, name: str, budget: int, slots: int, seed: int
) -> tuple[NDArray[np.float64], int]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    table = tables(path)[pair].part(seed)
    searcher = searcher_of(name, table, budget=budget, slots=slots, seed=seed)
    return regrets(table, searcher, budget=budget, slots=slots)


def share_of_time(mean: NDArray[np.float64], goal: float) -> float:
    """After which share of a budget a mean regret is as low as a goal; infinite: never."""
    reached = np.flatnonzero(mean <= goal)
    return math.inf if len(reached) == 0 else float(reached[0] + 1) / len(mean)


def compared(
    found: NDArray[np.float64], basis: NDArray[np.float64], resamples: int = 1000
) -> dict[str, float]:
    """Of regrets, [seeds, moments], beside those of random search with the same seeds: the mean at
    the end, and the share of the time after which random search's is reached, with 95 % intervals
    of a bootstrap over seeds."""
    chance = np.random.default_rng(0)
    drawn = chance.integers(len(found), size=(resamples, len(found)))
    ends = found[:, -1][drawn].mean(1)
    shares = [share_of_time(found[d].mean(0), basis[d, -1].mean()) for d in drawn]
    low, high = np.quantile(ends, (0.025, 0.975))
    soon, late = np.quantile(shares, (0.025, 0.975), method="nearest")
    return {
        "regret": float(found[:, -1].mean()),
        "regret_low": float(low),
        "regret_high": float(high),
        "share": share_of_time(found.mean(0), float(basis[:, -1].mean())),
        "share_low": float(soon),
        "share_high": float(late),
    }


def _cells(figures: Mapping[str, float]) -> list[str]:
    def share(name: str) -> str:
        return "never" if math.isinf(figures[name]) else f"{100 * figures[name]:.0f} %"

    return [
        f"{figures['regret']:.3f} [{figures['regret_low']:.3f}, {figures['regret_high']:.3f}]",
        f"{share('share')} [{share('share_low')}, {share('share_high')}]",
        f"{figures['trials']:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--budgets", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 8, 64])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="like 'tpe, asha'")
    options = parser.parse_args()
    names = [*map(", ".join, product(SAMPLERS, RULES)), *STOCK]
    wanted = [name for name in names if name in {BASIS, *(options.only or names)}]
    wanted.sort(key=lambda name: name != BASIS)
    facts: dict[str, Any] = {"table": str(options.table), "seeds": options.seeds}
    with (
        report.Benchmark("searchers", torch.device("cpu"), 1, **facts) as benchmark,
        ProcessPoolExecutor(report.cores()) as pool,
    ):
        columns = ("sampler, stopping", "regret, points", "share of random's time", "trials")
        for number, pair in enumerate(tables(options.table)):
            for budget, slots in product(options.budgets, options.slots):
                use = "judges" if number else "may choose"
                title = f"{pair} ({use}): budget {budget} trials, {slots} slots"
                shown = benchmark.table(*columns, title=title)
                basis = None
                for name in wanted:
                    benchmark.doing(f"{title}: {name}")
                    runs = pool.map(
                        _simulated,
                        *zip(
                            *(
                                (options.table, pair, name, budget, slots, seed)
                                for seed in range(options.seeds)
                            ),
                            strict=True,
                        ),
                    )
                    found, trials = zip(*runs, strict=True)
                    regret = np.stack(found)
                    basis = regret if basis is None else basis
                    figures = compared(regret, basis) | {"trials": float(np.mean(trials))}
                    shown.add_row(name, *_cells(figures))
                    benchmark.add(
                        {
                            "pair": pair,
                            "budget": budget,
                            "slots": slots,
                            "searcher": name,
                            **figures,
                            "curve": regret.mean(0).round(4).tolist(),
                        }
                    )
                Console(width=100).print(shown)


if __name__ == "__main__":
    main()
