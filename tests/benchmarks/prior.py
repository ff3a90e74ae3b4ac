"""What `search.prior: catalogue` is worth on images that did not make it.

    python -m tests.benchmarks.prior [--seeds N ...] [--trials N] [--set KEY=VALUE ...]

Real searches on scikit-learn's digits, of which 200 are learnt from; `--set data.name=image_folder
--set data.root=FOLDER ...` takes others. Each seed searches twice, with the prior and without. What
counts is the best held-out accuracy among the first trials, and how much further the prior brought
it: the mean over the seeds, with a 95 % interval. A search that was done in an earlier run is not
done again. `runs/bench/prior.json` holds each search's accuracies.
"""

import argparse
import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import yaml
from rich.console import Console
from scipy import stats

import search
from tests.benchmarks import report

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.5, "train_images": 200},
    "teacher": {"backbone": "resnet20", "training": {"epochs": 60, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd", "dkd", "dist", "sp", "rkd", "srd", "crd", "reviewkd", "wkd_l"]],
    "training": {"epochs": 27, "learning_rate": {"low": 0.01, "high": 0.3}},
}
STORAGE = "runs/bench/prior"


def accuracies(overrides: Sequence[str], seed: int, trials: int, prior: bool) -> list[float]:
    """The held-out accuracy of each trial of a search, in percent."""
    own = (f"search.trials={trials}", f"search.seed={seed}")
    own += ("search.prior=catalogue",) if prior else ()
    file = Path(STORAGE) / "prior.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(EXPERIMENT))
    experiment = search.read_experiment(file, (*own, *overrides))
    name = f"{experiment.data.name}-{trials}-{seed}-{'with' if prior else 'without'}"
    if name not in search.search_names(STORAGE):
        record = search.launch(experiment, name=name, storage=STORAGE).record
    else:
        found = search.open_search(name, storage=STORAGE)
        if found.state != "finished":
            found.resume()
        record = found.record
    return [100 * (trial.score or 0.0) for trial in record.trials]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    facts = {"trials": options.trials, "set": options.set}
    with report.Benchmark("prior", torch.device("cpu"), 1, **facts) as benchmark:
        bests: dict[bool, list[list[float]]] = {True: [], False: []}
        for seed in options.seeds:
            for prior in (False, True):
                benchmark.doing(f"seed {seed}, {'with' if prior else 'without'} the prior")
                found = accuracies(options.set, seed, options.trials, prior)
                bests[prior].append(list(accumulate(found, max)))
                benchmark.add(
                    {"seed": seed, "prior": prior, "best": max(found), "accuracies": found}
                )
        title = f"best held-out accuracy, %, {len(options.seeds)} seeds"
        table = benchmark.table("after trials", "without", "with", "difference", title=title)
        for after in sorted({*range(8, options.trials, 8), options.trials}):
            without, with_it = ([each[after - 1] for each in bests[p]] for p in (False, True))
            gains = [one - other for one, other in zip(with_it, without, strict=True)]
            error = math.inf
            if len(gains) > 1:
                error = stats.t.ppf(0.975, len(gains) - 1) * stdev(gains) / math.sqrt(len(gains))
            table.add_row(
                str(after),
                f"{fmean(without):.2f}",
                f"{fmean(with_it):.2f}",
                f"{fmean(gains):+.2f} [{fmean(gains) - error:+.2f}, {fmean(gains) + error:+.2f}]",
            )
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
