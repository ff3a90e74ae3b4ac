"""Views a second by preset, and what share of a training step they take.

    python -m tests.benchmarks.views [--images N] [--photographs N] [--student NETWORK]

Two kinds of data: a table of random pixels, 3x32x32, and JPEG files of 500x375 pixels that are
decoded while training to 224x224, on all cores. Mixed images cost twice, because the partner has a
view of its own. The table's share is that of a step of the student with batch 64: the seconds for
the views of an epoch, by those and the seconds for its forward and backward passes, with all
threads of this process; the two take turns, figures are medians. A table is printed, and
`runs/bench/views.json` written.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from kdcore import DataConfig
from kdcore.data.augmentation.steps import PRESETS, Flip, PadCrop, expanded
from kdcore.data.image_data import ImageData, open_data
from kdcore.data.split import Split
from kdcore.execution.fastest import fastest_execution
from kdcore.networks.classifier import build_classifier
from tests.benchmarks.report import Benchmark
from tests.benchmarks.throughput import synthetic

BATCH = 64
CPU = torch.device("cpu")
BASIC = (PadCrop(padding=4), Flip())


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def shown(split: Split) -> Callable[[], None]:
    """Makes the views of an epoch, another one each time."""
    view = iter(range(10**6))

    def epoch() -> None:
        number = next(view)
        split.classes(number)
        for _ in split.views(torch.randperm(len(split)), number, BATCH):
            pass

    return epoch


def trained(name: str, data: ImageData) -> Callable[[], None]:
    """Passes forward and backward over an epoch, without its views."""
    network = build_classifier(name, data, seed=0).train()
    with tempfile.TemporaryDirectory() as workspace:
        execution = fastest_execution(
            name, network, data.image_size, CPU, Path(workspace), batch_size=BATCH
        )
    execution.place(network, CPU)
    batches: Sequence[Tensor] = list(data.train.batches(BATCH))
    labels = torch.split(data.train.labels, BATCH)

    def epoch() -> None:
        for images, classes in zip(batches, labels, strict=True):
            network.zero_grad(set_to_none=True)
            with execution.autocast(CPU):
                loss = cross_entropy(network(images).float(), classes)
            torch.autograd.backward(loss)

    return epoch


def photographs(folder: Path, images: int) -> None:
    """JPEG files like those of a camera: smooth, with some noise."""
    generator = torch.Generator().manual_seed(0)
    for number in range(images):
        coarse = torch.rand(1, 3, 12, 16, generator=generator) * 255
        smooth = interpolate(coarse, (375, 500), mode="bicubic")
        noisy = smooth + 12 * torch.randn(smooth.shape, generator=generator)
        pixels = noisy[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "JPEG", quality=90)
        path = folder / "train" / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.getvalue())


def measured(
    works: dict[str, Callable[[], None]], repetitions: int, doing: Callable[[str], None]
) -> dict[str, float]:
    """Seconds of each, which take turns; the first turn is a warm-up."""
    figures: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repetitions + 1):
        for name, work in works.items():
            doing(f"{name}, {turn} of {repetitions}")
            seconds = seconds_of(work)
            if turn:
                figures[name].append(seconds)
    return {name: statistics.median(values) for name, values in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2048, help="of the table")
    parser.add_argument("--photographs", type=int, default=192)
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    data = synthetic(options.images)
    step = f"a step of {options.student}"
    with (
        Benchmark("views", CPU, torch.get_num_threads(), student=options.student) as benchmark,
        tempfile.TemporaryDirectory() as folder,
    ):
        works = {
            f"table, {preset}": shown(replace(data.train, steps=expanded(preset, BASIC)))  # type: ignore[type-var]
            for preset in PRESETS
        }
        seconds = measured(
            works | {step: trained(options.student, data)}, options.repetitions, benchmark.doing
        )
        photographs(Path(folder), options.photographs)

        def streamed(preset: str) -> Split:
            content: dict[str, Any] = {
                "name": "image_folder",
                "root": folder,
                "augmentation": preset,
                "test_fraction": 0.02,
                "heldout_fraction": 0.02,
            }
            return open_data(DataConfig.model_validate(content), Path(folder) / "cache").train

        splits = {preset: streamed(preset) for preset in PRESETS}
        large = measured(
            {f"streamed, {preset}": shown(split) for preset, split in splits.items()},
            options.repetitions,
            benchmark.doing,
        )
        for preset in PRESETS:
            views, whole = seconds[f"table, {preset}"], seconds[step]
            benchmark.add(
                {
                    "preset": preset,
                    "views/s 3x32x32": len(data.train) / views,
                    f"% of {step}": 100 * views / (views + whole),
                    "views/s 224x224": len(splits[preset]) / large[f"streamed, {preset}"],
                }
            )
        benchmark.add(
            {
                "preset": "the step alone",
                "views/s 3x32x32": len(data.train) / seconds[step],
                f"% of {step}": 100.0,
                "views/s 224x224": 0.0,
            }
        )
        benchmark.shown(title="views a second", decimals=1)


if __name__ == "__main__":
    main()
