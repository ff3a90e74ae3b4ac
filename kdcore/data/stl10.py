"""STL-10: 13,000 labelled photographs, 96x96, in 10 classes, without the unlabelled part.

Source: Coates, Lee and Ng, An analysis of single-layer networks in unsupervised feature learning,
AISTATS 2011. Torchvision's reader insists on the checksums of the original files, those of the
unlabelled part too; this one takes any files of the format.
"""

from pathlib import Path

import torch

from kdcore.data.published_files import Part, PublishedFiles, content_of

_SHAPE = (3, 96, 96)
_BYTES = 3 * 96 * 96

_FILES = PublishedFiles(
    title="STL-10",
    kind="STL-10 file",
    names=("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"),
    below="stl10_binary",
    reader="STL10",
)


def _part(images_file: Path, labels_file: Path) -> Part:
    pixels = content_of(images_file)
    if not pixels or len(pixels) % _BYTES:
        raise _FILES.damaged(
            images_file,
            f"it has {len(pixels)} bytes, but must have a multiple of {_BYTES}, an image's",
        )
    labels = content_of(labels_file)
    columns = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(-1, *_SHAPE)
    return Part(
        columns.transpose(2, 3).contiguous(),  # the file has column after column
        torch.tensor(list(labels), dtype=torch.int64) - 1,  # and counts classes from 1
        images_file,
        labels_file,
        images_file.name.startswith("test"),
    )


SOURCE = _FILES.source(
    (
        "airplane",
        "bird",
        "car",
        "cat",
        "deer",
        "dog",
        "horse",
        "monkey",
        "ship",
        "truck",
    ),
    lambda paths: [_part(*paths[:2]), _part(*paths[2:])],
    crop_padding=12,  # an eighth of the side, as for CIFAR
    flip=True,
)
