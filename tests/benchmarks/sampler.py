"""Samplers on objectives by formula, and what it costs that TPE forgets, and models each field by
itself: time of a proposal, and how good its trials are.

    python -m tests.benchmarks.sampler [--trials N] [--seeds N] [--learns-from N ...] [--untimed]

Searches through the sampler and early stopping of a real search, on objectives by formula: two
slots of methods, each with a best setting somewhere in its ranges, weights in their logarithm,
choices of layers, pairs of methods that suit each other or not, curves that cross, and noise. Every
seed is another objective, on which each sampler runs once: TPE that learns from all trials, TPE
that learns from so many, Optuna's multivariate TPE in groups of conditional fields, which learns
from all, and the other samplers of `search.sampler` as searches have them. Regret is how much worse
than the objective's best the trial is that a search would pick, in percentage points; its
difference from that of TPE from all trials, on the same objectives, is given with a 95 % interval
of its mean (bootstrap). Seconds of a proposal are processor seconds, after so many recorded trials,
with the study's renewals. A table is printed, and `runs/bench/sampler.json` written.
"""

import argparse
import math
import os
import random
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
from rich.console import Console

from kdcore import DataConfig
from kdcore.data.image_data import open_data
from kdcore.distillation.distill import network_pair
from kdcore.training.evaluation import default_device
from search.experiment.reading import parse_experiment
from search.experiment.search_config import Asha, SamplerName
from search.experiment.space.derivation import derive_space
from search.experiment.space.fields import NumberField
from search.experiment.space.point import IS_CONTROL, NUMBER, Point, slot
from search.experiment.space.space import Space
from search.record.record import METRIC, TIME, TrialRecord
from search.session.sampler import LEARNS_FROM, OptunaSampler
from search.session.sampling.named import study_sampler
from search.stopping.rungs import Rungs
from tests.benchmarks import report

EPOCHS = 30
ASHA = Asha(grace_epochs=3, reduction=3)
NOISE = 0.002

# Where regret is looked at, as shares of the trials, and after how many trials a proposal is timed.
SHARES = (1 / 4, 1 / 2, 1)
TIMED_AFTER = (100, 1000, 3000, 10_000)

ALL, GROUPS, EVERYTHING = "tpe from all", "tpe from all, in groups", 10**9
OTHERS: tuple[SamplerName, ...] = ("random", "qmc", "cmaes", "gp")

TITLE = "Median regret (quartiles), mean difference from TPE from all [95 % interval]"

CONTENT: dict[str, Any] = {
    "name": "sampler",
    "data": {"name": "digits"},
    "teacher": {"backbone": "resnet14", "training": {"epochs": 1}},
    "student": "resnet8",
    "objective": [["none", "kd", "dkd"], ["none", "at", "fitnet", "rkd"]],
    "training": {"epochs": EPOCHS, "learning_rate": {"low": 0.01, "high": 0.5, "log": True}},
    "search": {"trials": 100},
}


def space() -> Space:
    with tempfile.TemporaryDirectory() as folder:
        data = open_data(DataConfig(name="digits"), Path(folder))
    experiment = parse_experiment(CONTENT, "benchmark")
    pair = network_pair("resnet8", "resnet14", data)
    return derive_space(experiment, {experiment.pairs[0]: pair}, "")


class Objective:
    """The accuracy of a point, whose best value is known."""

    def __init__(self, searched: Space, seed: int) -> None:
        chance = random.Random(seed)
        fields = {field.name: field for each in searched.fields.values() for field in each}
        fields |= {field.name: field for field in searched.shared}
        self._fields = fields
        # Of a number its place in the range, of a choice what each option loses.
        self._targets: dict[str, Any] = {}
        for name, field in fields.items():
            if isinstance(field, NumberField):
                self._targets[name] = chance.random()
            else:
                losses = [0.0] + [chance.uniform(0.1, 1) for _ in field.options[1:]]
                self._targets[name] = dict(
                    zip(chance.sample(field.options, len(losses)), losses, strict=True)
                )
        self._weights = {name: 0.02 * chance.random() for name in fields}
        first, second = searched.slots
        self._pairs = {(a, b): 0.7 + 0.05 * chance.random() for a in first for b in second}
        self.best = max(self._pairs.values())

    def accuracy(self, point: Point) -> float:
        value = self._pairs[point[slot(1)], point[slot(2)]]
        for name in point.keys() & self._fields.keys():
            field, target = self._fields[name], self._targets[name]
            if isinstance(field, NumberField):
                low, high, chosen = field.low, field.high, point[name]
                if field.log:
                    low, high, chosen = math.log(low), math.log(high), math.log(chosen)
                loss = min(1.0, 4 * ((chosen - low) / (high - low) - target) ** 2)
            else:
                loss = target[point[name]]
            value -= self._weights[name] * loss
        return value


def sampler_of(searched: Space, variant: str, **settings: Any) -> OptunaSampler:
    """A search's sampler, as a variant has it."""

    def in_groups(name: str, *, startup: int, seed: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                multivariate=True, group=True, n_startup_trials=startup, seed=seed
            )

    if variant.isdecimal():
        settings["learns_from"] = int(variant)
    elif variant in (ALL, GROUPS):
        settings["learns_from"] = EVERYTHING
    else:
        settings["sampler"] = variant
    instead = in_groups if variant == GROUPS else study_sampler
    with patch("search.session.sampler.study_sampler", instead):
        return OptunaSampler(searched, parallel=1, epochs=EPOCHS, **settings)


def regrets(searched: Space, variant: str, trials: int, seed: int) -> list[float]:
    """The regret after each share of the trials, in percentage points."""
    objective, chance = Objective(searched, seed), random.Random(seed)
    sampler = sampler_of(searched, variant, trials=trials, seed=seed)
    rungs = Rungs(ASHA, epochs=EPOCHS)
    picked, regret = -math.inf, math.inf
    after = []
    for number in range(trials):
        point = sampler.suggest(str(number))
        accuracy = objective.accuracy(point)
        final, slowness = accuracy + chance.gauss(0, NOISE), chance.uniform(2, 4)
        for epoch in range(1, EPOCHS + 1):
            shown = final * (1 - math.exp(-(epoch + 3) / slowness))
            rungs.add(number, epoch, shown)
            spared = IS_CONTROL in point
            if epoch == EPOCHS or not (spared or rungs.keeps(number, epoch)):
                break
        sampler.on_trial_complete(str(number), {METRIC: shown, TIME: epoch})
        if epoch == EPOCHS and shown > picked:
            picked, regret = shown, 100 * (objective.best - accuracy)
        if number + 1 in {round(share * trials) for share in SHARES}:
            after.append(regret)
    return after


def proposal_seconds(searched: Space, variant: str, known: int) -> float:
    """Processor seconds of a proposal and its trial's end, after so many recorded trials."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    objective, chance = Objective(searched, 0), random.Random(0)
    recorded = []
    for number in range(known):
        point = searched.propose(study.ask())
        epochs = chance.choice((3, 9, 27, EPOCHS))
        accuracy = objective.accuracy(point) * epochs / EPOCHS
        recorded.append(
            TrialRecord(
                number=number,
                student="resnet8",
                point=point,
                objective="",
                state="finished" if epochs == EPOCHS else "stopped",
                epochs_done=epochs,
                epochs=EPOCHS,
                accuracies=(accuracy,) * epochs,
                heldout_accuracy=accuracy,
            )
        )
    sampler = sampler_of(searched, variant, trials=known, seed=0, recorded=recorded)
    # Where the study is renewed, over some renewals.
    proposals = int(variant) if variant.isdecimal() and int(variant) < known else 20
    started = time.process_time()
    for number in range(proposals):
        point = sampler.suggest(str(number))
        accuracy = objective.accuracy({**point, NUMBER: 0})
        sampler.on_trial_complete(str(number), {METRIC: accuracy, TIME: EPOCHS})
    return (time.process_time() - started) / proposals


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the mean, by bootstrap."""
    drawn = np.random.default_rng(0).choice(differences, (10_000, len(differences))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=10, help="of as many objectives")
    parser.add_argument("--learns-from", type=int, nargs="*", default=[LEARNS_FROM])
    parser.add_argument("--untimed", action="store_true", help="regret alone")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    searched, seeds = space(), range(options.seeds)
    after = [round(share * options.trials) for share in SHARES]
    facts = {"trials": options.trials, "seeds": options.seeds}
    timed_after = () if options.untimed else TIMED_AFTER
    columns = ("sampler", *(f"regret at {number}" for number in after))
    times = [f"ms at {number}" for number in timed_after]
    with (
        report.Benchmark("sampler", default_device(), 1, **facts) as benchmark,
        ProcessPoolExecutor(report.cores()) as pool,
    ):
        table = benchmark.table(*columns, *times, title=TITLE)
        base: list[tuple[float, ...]] = []
        for name in (ALL, *map(str, options.learns_from), GROUPS, *OTHERS):
            benchmark.doing(f"searches by {name}")
            jobs = [pool.submit(regrets, searched, name, options.trials, seed) for seed in seeds]
            found = list(zip(*(job.result() for job in jobs), strict=True))
            base = base or found
            seconds = []
            for known in timed_after:
                benchmark.doing(f"proposals by {name} after {known} trials")
                seconds.append(proposal_seconds(searched, name, known))
            row: dict[str, Any] = {"sampler": name}
            cells = []
            for number, mine, theirs in zip(after, found, base, strict=True):
                low, _, high = quantiles(mine, n=4)
                differences = [a - b for a, b in zip(mine, theirs, strict=True)]
                row[f"regrets_at_{number}"] = mine
                row[f"median_regret_at_{number}"] = median(mine)
                row[f"difference_at_{number}"] = sum(differences) / len(differences)
                row[f"interval_at_{number}"] = interval(differences)
                cells.append(f"{median(mine):.2f} ({low:.2f} to {high:.2f})")
                if name != ALL:
                    low, high = row[f"interval_at_{number}"]
                    mean = row[f"difference_at_{number}"]
                    cells[-1] += f"\n{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
            row |= {
                f"ms_at_{known}": 1000 * each
                for known, each in zip(timed_after, seconds, strict=True)
            }
            benchmark.add(row)
            table.add_row(name, *cells, *(f"{1000 * each:.1f}" for each in seconds))
        Console(width=130).print(table)


if __name__ == "__main__":
    main()
