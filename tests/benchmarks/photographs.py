"""Views of photographs per second, decoded in each epoch and kept decoded (`data.decoded_gb`).

    python -m tests.benchmarks.photographs [--images N] [--side N] [--threads N] [--student NAME]

Synthetic JPEGs of 500x375 pixels, and, where Debian's package openclipart-png is installed, its
transparent PNGs. Decoding and keeping take turns. Then an epoch of a student trains on each, which
says what part of it images take. A table is printed, and `runs/bench/photographs.json` written.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch.nn.functional import interpolate

from kdcore import DataConfig, Recipe, TeacherConfig, TrialConfig, distill
from kdcore.data.image_data import ImageData, open_data
from tests.benchmarks import report
from tests.benchmarks.openclipart import CATEGORIES, chance

CLASSES = 2
TURNS = 3
_MOST_PIXELS = 4_000_000  # a few of openclipart's are posters


def write_jpegs(root: Path, images: int) -> Iterator[Path]:
    """Pictures with some detail: about 50 kB each."""
    generator = torch.Generator().manual_seed(0)
    for number in range(images):
        pixels = torch.zeros(1, 3, 375, 500)
        for side, strength in ((4, 140.0), (32, 60.0), (256, 40.0)):
            coarse = torch.rand(1, 3, side, side, generator=generator) * strength
            pixels += interpolate(coarse, (375, 500), mode="bilinear")
        path = root / f"class{number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].byte().permute(1, 2, 0).numpy()).save(path, quality=90)
        yield path


def link_clipart(root: Path, images: int) -> Iterator[Path]:
    """Some of the package's pictures, drawn evenly."""
    found = sorted(CATEGORIES.rglob("*.png"), key=lambda file: chance(str(file)))
    number = 0
    for file in found:
        with Image.open(file) as image:
            if image.width * image.height > _MOST_PIXELS or image.width * image.height == 0:
                continue
        path = root / f"class{number % CLASSES}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(file)
        yield path
        number += 1
        if number == images:
            return


def views_per_second(data: ImageData, view: int) -> float:
    order = torch.randperm(len(data.train))
    started = time.perf_counter()
    for _ in data.train.views(order, view, 64):
        pass
    return len(order) / (time.perf_counter() - started)


def measure(root: Path, files: list[Path], options: argparse.Namespace, workspace: Path) -> Any:
    """A row of the table."""
    side = (options.side, options.side)
    common = {"name": "image_folder", "root": root, "image_size": side}
    plain = open_data(DataConfig.model_validate(common), workspace)
    started = time.perf_counter()
    config = DataConfig.model_validate(common | {"decoded_gb": options.gb})
    kept = open_data(config, workspace)
    filling = time.perf_counter() - started
    size = sum(path.stat().st_size for path in (workspace / "data").glob("*.pixels"))
    speeds: dict[str, list[float]] = {"decoded": [], "kept": []}
    for turn in range(TURNS + 1):
        for name, data in (("decoded", plain), ("kept", kept)):
            speed = views_per_second(data, turn)
            if turn:  # the first starts processes and reads files from the disk
                speeds[name].append(speed)
    row: dict[str, Any] = {
        "images": len(files),
        "file_mb": sum(path.stat().st_size for path in files) / 1e6,
        "pixel_mb": size / 1e6,
        "filling_seconds": filling,
        "decoded_views_per_second": statistics.median(speeds["decoded"]),
        "kept_views_per_second": statistics.median(speeds["kept"]),
    }
    row["times_faster"] = row["kept_views_per_second"] / row["decoded_views_per_second"]
    for name, data in (("decoded", plain), ("kept", kept)):
        recipe = Recipe(epochs=2, batch_size=32, acceleration="off")
        trial = TrialConfig(
            data=data.config,
            teacher=TeacherConfig(backbone="resnet8", training=recipe),
            student=options.student,
            training=recipe,
        )
        *_, last = distill(trial, workspace=workspace, device=torch.device("cpu"))
        row[f"{name}_epoch_seconds"] = last.epoch_seconds
        row[f"{name}_seconds_by_part"] = dict(last.seconds_by_part)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--side", type=int, default=224, help="of a view, in pixels")
    parser.add_argument("--threads", type=int, default=report.cores())
    parser.add_argument("--student", default="torchvision/mobilenet_v3_small")
    parser.add_argument("--gb", type=float, default=20.0, help="decoded_gb")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    kinds = {"JPEG 500x375": write_jpegs}
    if CATEGORIES.is_dir():
        kinds["openclipart PNG"] = link_clipart
    columns = ("photographs", "files MB", "pixels MB", "decoded views/s", "kept views/s")
    columns += (
        "times",
        f"{options.student}: decoded s",
        "kept s",
        "images: decoded",
        "kept",
    )
    facts = {"side": options.side, "student": options.student}
    with report.Benchmark(
        "photographs", torch.device("cpu"), options.threads, **facts
    ) as benchmark:
        table = benchmark.table(*columns, title="Photographs, decoded and kept decoded")
        for kind, write in kinds.items():
            benchmark.doing(kind)
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder, "root")
                files = list(write(root, options.images))
                row = {"photographs": kind} | measure(root, files, options, Path(folder, "work"))
            benchmark.add(row)
            parts = [row[f"{name}_seconds_by_part"] for name in ("decoded", "kept")]
            shares = [f"{100 * images_share(seconds):.0f} %" for seconds in parts]
            table.add_row(
                kind,
                *(f"{row[name]:.0f}" for name in ("file_mb", "pixel_mb")),
                *(f"{row[f'{name}_views_per_second']:.0f}" for name in ("decoded", "kept")),
                f"{row['times_faster']:.1f}",
                *(f"{row[f'{name}_epoch_seconds']:.1f}" for name in ("decoded", "kept")),
                *shares,
            )
        Console(width=160).print(table)


def images_share(seconds: dict[str, float]) -> float:
    """The share of an epoch in which training waits for images."""
    return (seconds["decoding"] + seconds["augmenting"]) / sum(seconds.values())


if __name__ == "__main__":
    main()
