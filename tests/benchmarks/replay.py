"""Four ways to stop trials early, on the same recorded learning curves.

    python -m tests.benchmarks.replay

The curves are of two searches on the digits, `experiments/results/learning_curves.json`: whole
trials with a cosine schedule, and with a constant learning rate. Each way runs them in many
orders, on one, two and eight places. `arrival` is what schedulers ship: a trial is judged once,
when it comes to a rung, among those before it. `again` is kdsearch's: judged at each epoch, by the
last rung that it passed. `every rung` asks that of all rungs that it passed. `promote` is the
paper's: trials pause at a rung, and go on when they are among the best of it. A table is printed:
epochs trained, how often the best trial of all came to its end, and what was lost on average where
it did not. The exit status is 1 if `again` trains more than `arrival`, or keeps the winner less
often.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from search.experiment import Asha
from search.replay import simulate
from search.rungs import Rungs

CURVES = Path(__file__).parents[2] / "experiments" / "results" / "learning_curves.json"

SETTINGS = [(1, 3.0), (2, 3.0), (3, 2.0)]
SLOTS = (1, 2, 8)


class Arrival(Rungs):
    """Judges a trial once at each rung, by the percentile of the results before it."""

    def __init__(self, asha: Asha, *, epochs: int) -> None:
        super().__init__(asha, epochs=epochs)
        self._share = 100 * (1 - 1 / asha.reduction)

    def keeps(self, trial: int, epoch: int) -> bool:
        results = dict(self.results.get(epoch, {}))
        accuracy = results.pop(trial, None)
        if accuracy is None or not results:
            return True
        return bool(accuracy >= np.percentile(list(results.values()), self._share))


class EveryRung(Rungs):
    """Judges a trial at each epoch by all rungs that it passed."""

    def keeps(self, trial: int, epoch: int) -> bool:
        return all(
            super(EveryRung, self).keeps(trial, rung) for rung in self.results if rung <= epoch
        )


def promote(curves: Mapping[int, Sequence[float]], asha: Asha, slots: int) -> dict[int, int]:
    """The paper's rule: whenever a place is free, the best trial that waits at the highest rung and
    is among its best 1/reduction goes on; where there is none, a new trial begins."""
    epochs = len(next(iter(curves.values())))
    best = {trial: list(accumulate(curve, max)) for trial, curve in curves.items()}
    rungs = Rungs(asha, epochs=epochs)
    ends = [*rungs.results, epochs]
    new = iter(curves)
    ran = dict.fromkeys(curves, 0)
    promoted: dict[int, set[int]] = {rung: set() for rung in rungs.results}
    running: list[tuple[int, int]] = []  # when it comes to its next rung, and which trial

    def next_job() -> int | None:
        for rung in reversed(rungs.results):
            results = rungs.results[rung]
            order = sorted(results, key=lambda trial: -results[trial])
            for trial in order[: math.floor(len(results) / asha.reduction)]:
                if trial not in promoted[rung]:
                    promoted[rung].add(trial)
                    return trial
        return next(new, None)

    now = 0
    while True:
        while len(running) < slots and (trial := next_job()) is not None:
            end = next(rung for rung in ends if rung > ran[trial])
            running.append((now + end - ran[trial], trial))
        if not running:
            return {trial: ran[trial] for trial in curves}
        running.sort()
        now, trial = running.pop(0)
        ran[trial] = next(rung for rung in ends if rung > ran[trial])
        rungs.add(trial, ran[trial], best[trial][ran[trial] - 1])


def compare(curves: Sequence[Sequence[float]], orders: int) -> list[dict[str, float | str]]:
    """A row for each setting, number of places and way; means over the orders."""
    epochs = len(curves[0])
    finals = {trial: max(curve) for trial, curve in enumerate(curves)}
    winner = max(finals.values())
    rows: list[dict[str, float | str]] = []
    for grace, reduction in SETTINGS:
        asha = Asha(grace_epochs=grace, reduction=reduction)
        for slots in SLOTS:
            figures: dict[str, list[tuple[int, float]]] = {}
            for seed in range(orders):
                order = list(range(len(curves)))
                random.Random(seed).shuffle(order)
                shuffled = {trial: curves[trial] for trial in order}
                ways = {
                    name: simulate(shuffled, rule(asha, epochs=epochs), slots=slots)
                    for name, rule in (
                        ("arrival", Arrival),
                        ("again", Rungs),
                        ("every rung", EveryRung),
                    )
                }
                ways["promote"] = promote(shuffled, asha, slots)
                for name, ran in ways.items():
                    whole = [finals[trial] for trial in order if ran[trial] == epochs]
                    lost = winner - max(whole, default=0.0)
                    figures.setdefault(name, []).append((sum(ran.values()), lost))
            for name, pairs in figures.items():
                trained, losses = zip(*pairs, strict=True)
                rows.append(
                    {
                        "setting": f"grace {grace}, reduction {reduction:g}",
                        "places": slots,
                        "way": name,
                        "epochs": float(np.mean(trained)),
                        "kept": float(np.mean([loss == 0 for loss in losses])),
                        "lost": float(np.mean(losses)),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--orders", type=int, default=200, help="of the trials; default 200")
    options = parser.parse_args()
    failed = False
    for schedule, curves in json.loads(CURVES.read_text()).items():
        whole = sum(map(len, curves))
        table = Table(title=f"{schedule}: {len(curves)} trials, {whole} epochs")
        for column in ("setting", "places", "way", "epochs", "winner kept", "points lost"):
            table.add_column(column, justify="right")
        totals: dict[str, list[float]] = {}
        for row in compare(curves, options.orders):
            epochs, kept, lost = float(row["epochs"]), float(row["kept"]), float(row["lost"])
            table.add_row(
                str(row["setting"]),
                str(row["places"]),
                str(row["way"]),
                f"{epochs:.0f}",
                f"{100 * kept:.0f} %",
                f"{100 * lost:.2f}",
            )
            sums = totals.setdefault(str(row["way"]), [0.0, 0.0])
            sums[0] += epochs
            sums[1] += kept
        Console(width=100).print(table)
        failed |= totals["again"][0] > totals["arrival"][0]
        failed |= totals["again"][1] < totals["arrival"][1]
    sys.exit(failed)


if __name__ == "__main__":
    main()
