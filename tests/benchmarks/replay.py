"""Five ways to stop trials early, on the same recorded learning curves.

    python -m tests.benchmarks.replay [--orders N] [--trials N] [--curves FILE]

The curves are of four searches on the digits, `experiments/results/learning_curves.json`: whole
trials with a cosine schedule and with a constant learning rate, on 256 images, where the numbers
in `search/stopping/rungs.py` were chosen, and on 512, which did not choose them;
`--curves experiments/results/schedules.json` has both again, of the same settings under several
schedules, as they are and averaged. Each way runs them in many
random orders, under several reductions, on one to sixteen places; an epoch of one trial lasts up
to twice as long as that of another. `arrival` is what schedulers ship: a trial is judged once, when
it comes to a rung, among those before it. `again` is kdsearch's: judged also at each epoch after.
`promote` is the paper's: trials pause at a rung, and go on when they are among the best of it.
`hyperband` and `median` are kdsearch's other rules; the latter has no reduction.

Tables are printed, and `runs/bench/replay.json` written: epochs trained, how often the best trial
of all came to its end, how many points were lost on average, and each way's difference from
`arrival` in the same order, with its standard error. Where no trial came to its end, the best
accuracy of the epochs that were trained counts. The exit status is 1 if, on either half of the
curves, `again` trains more, finds the best trial less often, or loses more, by over two standard
errors.
"""

import argparse
import heapq
import json
import math
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from search.experiment.search_config import Asha, Hyperband, Median
from search.stopping.hyperband import Brackets
from search.stopping.median import RunningAverages
from search.stopping.replay import Curves, simulate
from search.stopping.rule import StoppingRule
from search.stopping.rungs import Rungs
from tests.benchmarks import report

CURVES = Path(__file__).parents[2] / "experiments" / "results" / "learning_curves.json"

# By the key of its curves, what a half has to do with the numbers of the rule.
HALVES = {"256 images": "the rule was chosen here", "512 images": "the rule was not chosen here"}

GRACE_EPOCHS = (1, 3)
REDUCTIONS = (2.0, 3.0, 4.0)
PLACES = (1, 2, 4, 16)

WAYS = ("arrival", "again", "promote", "hyperband", "median")

FIGURES = ("epochs", "same winner", "points lost")
"""Of one order: epochs trained, 100 if the best trial of all ended, percentage points lost."""

Figures = NDArray[np.float64]
"""[orders, 3]."""


class Arrival(Rungs):
    """Judges a trial once at each rung, by the percentile of the results before it."""

    def __init__(self, asha: Asha, *, epochs: int) -> None:
        super().__init__(asha, epochs=epochs)
        self._share = 1 - 1 / asha.reduction

    def keeps(self, trial: int, epoch: int) -> bool:
        results = dict(self.results.get(epoch, {}))
        accuracy = results.pop(trial, None)
        if accuracy is None or not results:
            return True
        # As numpy.percentile, which takes most of the time on lists so short.
        ordered = sorted(results.values())
        position = self._share * (len(ordered) - 1)
        below, above = ordered[math.floor(position)], ordered[math.ceil(position)]
        return accuracy >= below + (position - math.floor(position)) * (above - below)


def promote(
    curves: Curves, asha: Asha, *, slots: int, epoch_seconds: Mapping[int, float]
) -> dict[int, int]:
    """The paper's rule: whenever a place is free, the best trial that waits at the highest rung and
    is among its best 1/reduction goes on; where there is none, a new trial begins."""
    epochs = len(next(iter(curves.values())))
    best = {trial: list(accumulate(curve, max)) for trial, curve in curves.items()}
    rungs = Rungs(asha, epochs=epochs)
    ends = [*rungs.results, epochs]
    new = iter(curves)
    ran = dict.fromkeys(curves, 0)
    promoted: dict[int, set[int]] = {rung: set() for rung in rungs.results}
    running: list[tuple[float, int]] = []  # when it comes to its next rung, and which trial

    def end_of(trial: int) -> int:
        return next(rung for rung in ends if rung > ran[trial])

    def next_job() -> int | None:
        for rung in reversed(rungs.results):
            results = rungs.results[rung]
            places = math.floor(len(results) / asha.reduction)
            for trial in heapq.nlargest(places, results, key=results.__getitem__):
                if trial not in promoted[rung]:
                    promoted[rung].add(trial)
                    return trial
        return next(new, None)

    now = 0.0
    while True:
        while len(running) < slots and (trial := next_job()) is not None:
            lasts = (end_of(trial) - ran[trial]) * epoch_seconds[trial]
            heapq.heappush(running, (now + lasts, trial))
        if not running:
            return ran
        now, trial = heapq.heappop(running)
        ran[trial] = end_of(trial)
        rungs.add(trial, ran[trial], best[trial][ran[trial] - 1])


def _rule(way: str, asha: Asha, epochs: int) -> StoppingRule:
    """The rule of a way, other than `promote`, as near to the settings of ASHA as it can be."""
    match way:
        case "arrival":
            return Arrival(asha, epochs=epochs)
        case "hyperband":
            return Brackets(Hyperband(**asha.model_dump()), epochs=epochs)
        case "median":
            return RunningAverages(Median(grace_epochs=asha.grace_epochs), epochs=epochs)
        case _:
            return Rungs(asha, epochs=epochs)


def compare(
    curves: Sequence[Sequence[float]], asha: Asha, places: int, trials: int, seeds: Iterable[str]
) -> dict[str, Figures]:
    """By way, the figures of one order for each seed, which also draws so many of the trials."""
    epochs = len(curves[0])
    figures: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
    for seed in seeds:
        generator = random.Random(seed)
        order = generator.sample(range(len(curves)), min(trials, len(curves)))
        shuffled = {trial: curves[trial] for trial in order}
        seconds = {trial: generator.uniform(1, 2) for trial in order}
        winner = max(map(max, shuffled.values()))
        for way, runs in figures.items():
            if way == "promote":
                ran = promote(shuffled, asha, slots=places, epoch_seconds=seconds)
            else:
                rule = _rule(way, asha, epochs)
                ran = simulate(shuffled, rule, slots=places, epoch_seconds=seconds)
            whole = [trial for trial in order if ran[trial] == epochs]
            trained = whole or [trial for trial in order if ran[trial]]
            lost = winner - max(max(curves[trial][: ran[trial]]) for trial in trained)
            same = any(max(curves[trial]) == winner for trial in whole)
            runs.append((sum(ran.values()), 100.0 * same, 100 * lost))
    return {way: np.array(runs) for way, runs in figures.items()}


def collect(
    half: str,
    searches: Mapping[str, Sequence[Sequence[float]]],
    orders: int,
    trials: int,
    doing: Callable[[str], None],
) -> dict[tuple[str, str], dict[str, Figures]]:
    """By a setting and its value, and for all together, what `compare` gave."""
    collected: dict[tuple[str, str], dict[str, list[Figures]]] = {}
    for grace, reduction, places, (schedule, curves) in product(
        GRACE_EPOCHS, REDUCTIONS, PLACES, searches.items()
    ):
        asha = Asha(grace_epochs=grace, reduction=reduction)
        # Other orders for each setting, so that what one order happens to do counts once.
        of = f"{half}, {schedule}, {asha}, {places}"
        doing(
            f"{half}, schedule {schedule}, grace {grace}, reduction {reduction:g}, places {places}"
        )
        ways = compare(curves, asha, places, trials, (f"{of}, {n}" for n in range(orders)))
        for part in (
            ("places", str(places)),
            ("reduction", f"{reduction:g}"),
            ("schedule", schedule),
            ("all", ""),
        ):
            for way, figures in ways.items():
                collected.setdefault(part, {}).setdefault(way, []).append(figures)
    kinds = ("places", "reduction", "schedule", "all")
    return {
        part: {way: np.concatenate(figures) for way, figures in collected[part].items()}
        for part in sorted(collected, key=lambda part: kinds.index(part[0]))
    }


def summary(figures: Figures, arrival: Figures) -> dict[str, dict[str, float]]:
    """By figure, the mean, the mean difference from `arrival` and its standard error."""
    differences = figures - arrival
    errors = differences.std(0, ddof=1) / math.sqrt(len(differences))
    return {
        name: {"mean": mean, "difference": difference, "error": error}
        for name, mean, difference, error in zip(
            FIGURES,
            figures.mean(0).tolist(),
            differences.mean(0).tolist(),
            errors.tolist(),
            strict=True,
        )
    }


def cells(figures: Mapping[str, Mapping[str, float]], *, compared: bool) -> list[str]:
    """The figures for a terminal, with differences where a way is compared."""
    written = []
    for figure, digits in zip(figures.values(), (1, 1, 3), strict=True):
        mean, difference, error = (
            f"{value:{sign}.{digits}f}"
            for value, sign in zip(figure.values(), ("", "+", ""), strict=True)
        )
        written.append(f"{mean} {difference} ± {error}" if compared else mean)
    return written


def worse(figures: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether a way is worse than `arrival` in any figure, by over two standard errors."""
    signs = {"epochs": 1, "same winner": -1, "points lost": 1}
    return any(signs[name] * f["difference"] > 2 * f["error"] for name, f in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--orders", type=int, default=100, help="under each setting; default 100")
    parser.add_argument("--trials", type=int, default=40, help="of each order; default 40, or all")
    parser.add_argument("--curves", type=Path, default=CURVES)
    options = parser.parse_args()
    failed = False
    with report.Benchmark("replay", torch.device("cpu"), 1, **vars(options)) as benchmark:
        for half, searches in json.loads(options.curves.read_text()).items():
            sizes = " and ".join(
                str(min(options.trials, len(curves))) for curves in searches.values()
            )
            table = benchmark.table(title=f"{half}, {sizes} trials: {HALVES[half]}")
            for column in ("of", "", "way", *FIGURES):
                table.add_column(column, justify="right")
            parts = collect(half, searches, options.orders, options.trials, benchmark.doing)
            for (kind, value), ways in parts.items():
                for way, runs in ways.items():
                    figures = summary(runs, ways["arrival"])
                    written = cells(figures, compared=way != "arrival")
                    benchmark.add(
                        {"curves": half, "of": kind, "value": value, "way": way, **figures},
                        shown=f"{half}, {kind} {value}, {way}: "
                        + ", ".join(map(" ".join, zip(FIGURES, written, strict=True))),
                    )
                    table.add_row(kind, value, way, *written, end_section=way == WAYS[-1])
                    failed |= kind == "all" and way == "again" and worse(figures)
            Console(width=100).print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
