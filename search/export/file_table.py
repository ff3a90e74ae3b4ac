"""What is said of exported files: by the command, and in the model card."""

from collections.abc import Sequence

import torch

from kdcore.data.image_data import ImageData
from kdcore.networks.measurement import device_name
from search.export.files import ExportedFile, Measured
from search.export.int8 import CALIBRATION_IMAGES, INT8
from search.record.wording import cost_figure, markdown_table, percent


def graphs_in_words(
    files: Sequence[ExportedFile], heldout: Measured, test: Measured | None, data: ImageData
) -> str:
    """The scores of the graphs, a line each; empty without a graph."""
    lines = []
    for file in files[1:]:
        tested = "" if test is None else f", test {percent(file.test_accuracy)} %"
        line = f"{file.name}: held-out {percent(file.heldout_accuracy)} %{tested}; "
        if file.name == INT8:
            line += f"{_loss(heldout, test)}, {_calibration(data)}"
        else:
            images = len(data.heldout) + (len(data.test) if test else 0)
            difference = max(heldout.difference, test.difference if test else 0.0)
            line += (
                f"its logits on {images:,} images differ from PyTorch's by at most "
                f"{difference:.0e} of the largest"
            )
        lines.append(line)
    if lines:
        latencies = (f"{file.name} {cost_figure('latency_ms', file.latency_ms)}" for file in files)
        lines.append(f"ms an image ({_where()}): {', '.join(latencies)}")
    return "\n".join(lines)


def file_section(
    files: Sequence[ExportedFile],
    heldout: Measured,
    test: Measured | None,
    data: ImageData,
    max_loss: float | None,
) -> list[str]:
    """The card's lines about the files.

    Args:
        files: weights, then graphs.
        heldout: what they do with the held-out images.
        test: and with the test split; None where that stayed shut.
        data: the images.
        max_loss: percentage points of held-out accuracy that int8 was allowed; None without it.
    """
    names = ["file", "bytes", "held-out %", *(["test %"] if test else []), "ms an image", "SHA-256"]
    rows = [
        [
            file.name,
            f"{file.size:,}",
            percent(file.heldout_accuracy),
            *([percent(file.test_accuracy)] if test else []),
            cost_figure("latency_ms", file.latency_ms),
            f"`{file.sha256}`",
        ]
        for file in files
    ]
    lines = [
        "## Files",
        "",
        markdown_table([names, *rows]),
        "",
        f"The latencies are medians on the CPU of the machine that exported ({_where()}), of "
        f"PyTorch for {files[0].name} and of the graph's own runtime otherwise.",
        "",
    ]
    if max_loss is not None:
        lines += [
            f"`{INT8}` has int8 weights, one scale a channel, and uint8 activations, "
            f"{_calibration(data)}; normalisation of the images, what is not a product with "
            f"weights, and logits are in float32. By ONNX Runtime on the same images, "
            f"{_loss(heldout, test)}; {max_loss:g} held out were allowed. On x86-64 processors "
            "without VNNI instructions set ONNX Runtime's session option "
            "`session.x64quantprecision` to 1, as was done here if need be, or sums may overflow.",
            "",
        ]
    return lines


def _loss(heldout: Measured, test: Measured | None) -> str:
    """What int8 costs; less than nothing where it happens to be better."""
    tested = "" if test is None else f" and {test.lost:.2f} on the test split"
    return f"int8 costs {heldout.lost:.2f} points held out{tested}"


def _calibration(data: ImageData) -> str:
    images = min(CALIBRATION_IMAGES, len(data.heldout))
    return f"calibrated by the smallest and largest values on {images} held-out images"


def _where() -> str:
    threads = torch.get_num_threads()
    counted = f"{threads} thread{'s' if threads > 1 else ''}"
    return f"{device_name(torch.device('cpu'))}, {counted}"
