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
them.

All of it takes long, most of that for `gp`, `cmaes` and 256 trials, so it may be done in parts:
`experiments/results/searchers.parquet` keeps what has been found on the same table, and what is
there of as many seeds is not simulated again. Who changes a sampler or a rule deletes the file, or
says `--again`. Tables are printed, and `runs/bench/searchers.json` written.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cached_property
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import optuna
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyarrow import parquet
from ray.tune.schedulers import AsyncHyperBandScheduler
from rich.console import Console
from rich.markup import escape

from search.experiment.search_config import SamplerName, SearchConfig
from search.experiment.space.point import IS_CONTROL, Point
from search.record.record import METRIC, TIME
from search.session.sampler import OptunaSampler
from search.stopping.named import rule_of
from tests.benchmarks import report
from tests.benchmarks.curves import TABLE, write_table
from tests.benchmarks.simulation import Searcher, Table, regrets, tables

FOUND = TABLE.with_name("searchers.parquet")

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


Cell = tuple[str, int, int, str]
"""Pair, budget, slots and searcher."""

_COLUMNS = pa.schema(
    [
        ("pair", pa.string()),
        ("budget", pa.int32()),
        ("slots", pa.int32()),
        ("searcher", pa.string()),
        ("seeds", pa.int32()),
        *((f"regret{end}", pa.float32()) for end in ("", "_low", "_high")),
        *((f"share{end}", pa.float32()) for end in ("", "_low", "_high")),
        ("trials", pa.float32()),
        ("curve", pa.list_(pa.float32())),
    ]
)


class Found:
    """What has been found on a table of curves, kept in a file.

    Args:
        path: of the file.
        table: of the curves; what was found on another is not taken.
        again: begins without what is there.
    """

    def __init__(self, path: Path, table: Path, *, again: bool = False) -> None:
        self._path, self._rows = path, dict[Cell, dict[str, Any]]()
        self._table = hashlib.sha256(table.read_bytes()).hexdigest()
        if path.exists() and not again:
            content = parquet.read_table(path)
            if json.loads(content.schema.metadata[b"kdsearch"])["table"] == self._table:
                self._rows = {_cell(row): row for row in content.to_pylist()}

    def row(self, cell: Cell, seeds: int) -> dict[str, Any] | None:
        """The figures of at least so many seeds; none where there are fewer."""
        row = self._rows.get(cell)
        return row if row is not None and row["seeds"] >= seeds else None

    def add(self, row: dict[str, Any]) -> None:
        """Keeps figures, instead of those of fewer seeds."""
        self._rows[_cell(row)] = row
        rows = [self._rows[cell] for cell in sorted(self._rows)]
        write_table(self._path, _COLUMNS, rows, table=self._table)


def _cell(row: Mapping[str, Any]) -> Cell:
    return row["pair"], row["budget"], row["slots"], row["searcher"]


class Simulations:
    """Of one pair, budget and number of slots, by many searchers with the same seeds."""

    def __init__(
        self, pool: Executor, table: Path, pair: str, budget: int, slots: int, seeds: int
    ) -> None:
        self._pool, self._seeds = pool, seeds
        self._each = table, pair, budget, slots

    def row(self, name: str) -> dict[str, Any]:
        """The figures of a searcher."""
        _, pair, budget, slots = self._each
        regret, trials = self._basis if name == BASIS else self._simulated(name)
        return {
            "pair": pair,
            "budget": budget,
            "slots": slots,
            "searcher": name,
            "seeds": self._seeds,
            **compared(regret, self._basis[0]),
            "trials": trials,
            "curve": regret.mean(0).round(4).tolist(),
        }

    @cached_property
    def _basis(self) -> tuple[NDArray[np.float64], float]:
        return self._simulated(BASIS)

    def _simulated(self, name: str) -> tuple[NDArray[np.float64], float]:
        """Regrets, [seeds, moments], and the mean number of trials."""
        table, pair, budget, slots = self._each
        runs = [
            self._pool.submit(_simulated, table, pair, name, budget, slots, seed)
            for seed in range(self._seeds)
        ]
        found, trials = zip(*(run.result() for run in runs), strict=True)
        return np.stack(found), float(np.mean(trials))


def _cells(figures: Mapping[str, Any]) -> list[str]:
    def share(name: str) -> str:
        return "never" if math.isinf(figures[name]) else f"{100 * figures[name]:.0f} %"

    return [
        f"{figures['regret']:.3f} [{figures['regret_low']:.3f}, {figures['regret_high']:.3f}]",
        # Rich takes [never, never] for a style.
        escape(f"{share('share')} [{share('share_low')}, {share('share_high')}]"),
        f"{figures['trials']:.0f}",
        f"{figures['seeds']}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--found", type=Path, default=FOUND, help="where the figures are kept")
    parser.add_argument("--again", action="store_true", help="begins without what is kept")
    parser.add_argument("--budgets", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 8, 64])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="like 'tpe, asha'")
    options = parser.parse_args()
    names = [*STOCK, *map(", ".join, product(SAMPLERS, RULES))]
    wanted = [name for name in names if name in (options.only or names)]
    found = Found(options.found, options.table, again=options.again)
    with (
        report.Benchmark(
            "searchers", torch.device("cpu"), 1, table=str(options.table)
        ) as benchmark,
        ProcessPoolExecutor(report.cores()) as pool,
    ):
        columns = ("sampler, stopping", "regret, points", "share of random's time", "trials")
        for number, pair in enumerate(tables(options.table)):
            for budget, slots in product(options.budgets, options.slots):
                use = "judges" if number else "may choose"
                title = f"{pair} ({use}): budget {budget} trials, {slots} slots"
                shown = benchmark.table(*columns, "seeds", title=title)
                simulations = Simulations(pool, options.table, pair, budget, slots, options.seeds)
                for name in wanted:
                    row = found.row((pair, budget, slots, name), options.seeds)
                    if row is None:
                        benchmark.doing(f"{title}: {name}")
                        row = simulations.row(name)
                        found.add(row)
                    shown.add_row(name, *_cells(row))
                    benchmark.add(row)
                Console(width=100).print(shown)


if __name__ == "__main__":
    main()
