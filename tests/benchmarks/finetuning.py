"""A search against what its user would do without it: fine-tune the pretrained student.

    python -m tests.benchmarks.finetuning FOLDER --backbone timm/tf_efficientnet_lite0
        --weights FILE --file EXPERIMENT.yaml [--seeds 0 1 2]

For each seed `kdsearch launch EXPERIMENT.yaml` runs as it is, with that seed, and `kdsearch best`
opens the test split for its winner. Then a plain loop has as many seconds and all cores: timm's own
views, AdamW without decay of norms and biases, a cosine over the time that it has, label smoothing,
nothing of kdsearch. Both see the folder's `train` in the size that the experiment says, and are
judged on its `test`; the loop needs no held-out images, and has them for training. One row a seed,
then the mean difference with its 95 % interval (paired, Student's t). `runs/bench/finetuning.json`
keeps them.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_data_config
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from search.experiment.reading import read_experiment
from search.record.paired_gain import paired_gain
from tests.benchmarks import report

BATCH, RATE, DECAY, SMOOTHING = 64, 1e-3, 0.05, 0.1


def pretrained(backbone: str, weights: Path, classes: int) -> nn.Module:
    """The network with the file's weights and a new head. Files of other authors name the same
    tensors otherwise, so they are taken in order."""
    network: Any = timm.create_model(backbone.removeprefix("timm/"))
    content: Mapping[str, torch.Tensor] = torch.load(weights, weights_only=True)
    own = network.state_dict()
    network.load_state_dict(dict(zip(own, content.values(), strict=True)))
    network.reset_classifier(classes)
    return network


def fine_tuned(
    folder: Path,
    backbone: str,
    weights: Path,
    size: tuple[int, int],
    seconds: float,
    seed: int,
) -> dict[str, Any]:
    """Trains for that many seconds; the accuracy on `test`, and how many epochs that were."""
    torch.manual_seed(seed)
    train = ImageFolder(str(folder / "train"))
    network = pretrained(backbone, weights, len(train.classes))
    settings = resolve_data_config({"input_size": (3, *size)}, model=network)
    train.transform = create_transform(**settings, is_training=True)
    test = ImageFolder(str(folder / "test"), create_transform(**settings))
    workers = report.cores()
    loader = DataLoader(
        train, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True
    )
    network = network.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(network, opt="adamw", lr=RATE, weight_decay=DECAY)
    loss_of = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    started, epochs = time.monotonic(), 0.0
    network.train()
    while (share := (time.monotonic() - started) / seconds) < 1:
        for images, labels in loader:
            for group in optimizer.param_groups:
                group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * share))
            optimizer.zero_grad()
            loss_of(network(images.to(memory_format=torch.channels_last)), labels).backward()
            optimizer.step()
            epochs += 1 / len(loader)
            share = (time.monotonic() - started) / seconds
            if share >= 1:
                break
    return {"accuracy": accuracy(network, test, workers), "epochs": epochs}


@torch.no_grad()
def accuracy(network: nn.Module, data: ImageFolder, workers: int) -> float:
    """Of the network, from 0 to 1."""
    network.eval()
    right = 0
    for images, labels in DataLoader(data, 128, num_workers=workers):
        logits = network(images.to(memory_format=torch.channels_last))
        right += int((logits.argmax(1) == labels).sum())
    return right / len(data)


def searched(file: Path, seed: int) -> dict[str, Any]:
    """Launches the experiment in a storage of its own, where no teacher is found, picks its best
    student, and reads its card."""
    name = f"finetuning-{seed}"
    command = [sys.executable, "-m", "search"]
    with tempfile.TemporaryDirectory() as storage:
        words = ["launch", str(file), "--set", f"seed={seed}", "--name", name]
        started = time.monotonic()
        subprocess.run([*command, *words, "--storage", storage], check=True)
        seconds = time.monotonic() - started
        subprocess.run([*command, "best", name, "--storage", storage], check=True)
        card = json.loads((Path(storage) / "searches" / name / "best" / "student.json").read_text())
    return {"seconds": seconds, "accuracy": card["metrics"]["test_accuracy"], "student": card}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="with train/<class> and test/<class>")
    parser.add_argument("--backbone", required=True, help="like timm/tf_efficientnet_lite0")
    parser.add_argument("--weights", type=Path, required=True, help="its ImageNet weights")
    parser.add_argument("--file", type=Path, required=True, help="experiment to launch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    size = read_experiment(options.file).data.image_size
    assert size is not None, "the images have one size"
    with report.Benchmark("finetuning", torch.device("cpu"), report.cores()) as benchmark:
        for seed in options.seeds:
            benchmark.doing(f"seed {seed}: the search")
            ours = searched(options.file, seed)
            benchmark.doing(f"seed {seed}: the plain loop, {ours['seconds']:.0f} s")
            plain = fine_tuned(
                options.folder,
                options.backbone,
                options.weights,
                size,
                ours["seconds"],
                seed,
            )
            benchmark.add(
                {
                    "seed": seed,
                    "seconds": ours["seconds"],
                    "search %": 100 * ours["accuracy"],
                    "student": ours["student"]["backbone"],
                    "fine-tuning %": 100 * plain["accuracy"],
                    "epochs": plain["epochs"],
                }
            )
        benchmark.shown(title="best student of a search against plain fine-tuning", decimals=1)
        ours, plain = (
            {row["seed"]: row[which] for row in benchmark.rows}
            for which in ("search %", "fine-tuning %")
        )
        if gain := paired_gain(ours, plain):
            benchmark.facts["difference"] = [gain.mean, gain.low, gain.high]
            print(
                f"difference {gain.mean:+.1f} points, 95 % from {gain.low:+.1f} to {gain.high:+.1f}"
            )


if __name__ == "__main__":
    main()
