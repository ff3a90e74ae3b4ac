"""What `search.prior: catalogue` is worth on images that did not make it.

    python -m tests.benchmarks.prior [--seeds N ...] [--trials N] [--set KEY=VALUE ...]

Real searches on scikit-learn's digits, of which 200 are learnt from; `--set data.name=image_folder
--set data.root=FOLDER ...` takes others. Each seed searches twice, with the prior and without. What
counts is the best held-out accuracy among the first trials, and how much further the prior brought
it: the mean over the seeds, with a 95 % interval. A search that was done in an earlier run is not
done again. `runs/bench/prior.json` holds each search's accuracies.
"""

import argparse
import zlib
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from rich.console import Console

import search
from search.record.paired_gain import paired_gain
from search.record.wording import gain_in_words, percent
from tests.benchmarks import report
from tests.benchmarks.kept_search import kept_search

EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0.5, "train_images": 200},
    "teacher": {"backbone": "resnet20", "training": {"epochs": 60, "learning_rate": 0.1}},
    "student": "resnet8",
    "objective": [["none", "kd", "dkd", "dist", "sp", "rkd", "srd", "crd", "reviewkd", "wkd_l"]],
    "training": {"epochs": 27, "learning_rate": {"low": 0.01, "high": 0.3}},
}
STORAGE = "runs/bench/prior"


def accuracies(overrides: Sequence[str], seed: int, trials: int, prior: bool) -> list[float]:
    """The held-out accuracy of each trial of a search, from 0 to 1."""
    own: tuple[str, ...] = (f"search.trials={trials}", f"search.seed={seed}")
    own += ("search.prior=catalogue",) if prior else ()
    file = Path(STORAGE) / "prior.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(EXPERIMENT))
    experiment = search.read_experiment(file, (*own, *overrides))
    name = f"{experiment.data.name}-{trials}-{seed}-{'with' if prior else 'without'}"
    if overrides:  # else another run's search would be taken for this one
        name += f"-{zlib.crc32(' '.join(overrides).encode()):08x}"
    record = kept_search(experiment, name, STORAGE)
    if record.state != "finished":
        raise KeyboardInterrupt
    return [trial.score or 0.0 for trial in record.trials]


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
        bests: dict[bool, dict[int, list[float]]] = {True: {}, False: {}}
        for seed in options.seeds:
            for prior in (False, True):
                benchmark.doing(f"seed {seed}, {'with' if prior else 'without'} the prior")
                found = accuracies(options.set, seed, options.trials, prior)
                bests[prior][seed] = list(accumulate(found, max))
                benchmark.add(
                    {"seed": seed, "prior": prior, "best": max(found), "accuracies": found}
                )
        title = f"best held-out accuracy, %, {len(options.seeds)} seeds"
        table = benchmark.table("after trials", "without", "with", "difference", title=title)
        for after in sorted({*range(8, options.trials, 8), options.trials}):
            without, with_it = (
                {seed: best[after - 1] for seed, best in bests[prior].items()}
                for prior in (False, True)
            )
            means = (percent(fmean(each.values())) for each in (without, with_it))
            table.add_row(str(after), *means, gain_in_words(paired_gain(with_it, without)))
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
