"""SVHN: 99,289 photographs of house numbers' digits, 32x32, without the `extra` part.

Source: Netzer et al., Reading digits in natural images with unsupervised feature learning, NIPS
workshop, 2011. Torchvision's reader insists on the checksums of the original files; this one takes
any files of the format.
"""

import io
from pathlib import Path

import numpy as np
import torch

from kdcore.data.published_files import Part, PublishedFiles, content_of

_FILES = PublishedFiles(
    title="SVHN",
    kind=".mat file",
    names=("train_32x32.mat", "test_32x32.mat"),
    below=".",
    reader="SVHN",
    settings=({"split": "train"}, {"split": "test"}),
)


def _part(path: Path) -> Part:
    from scipy.io import loadmat  # slow to import, and only needed once

    content = content_of(path)
    try:
        values = loadmat(io.BytesIO(content), variable_names=("X", "y"))
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise _FILES.damaged(path, f"scipy says {str(error) or repr(error)!r}") from None
    if not {"X", "y"} <= values.keys():
        raise _FILES.damaged(path, "it lacks the images X or the labels y")
    images, labels = values["X"], values["y"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3:
        raise _FILES.damaged(
            path, f"X is {images.shape} of {images.dtype}, but must be (32, 32, 3, N) of uint8"
        )
    if labels.dtype.kind not in "iuf":
        raise _FILES.damaged(path, f"y is of {labels.dtype}, but must be numbers")
    numbers = torch.from_numpy(labels.astype(np.int64)).flatten()
    return Part(
        torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))),
        torch.where(numbers == 10, 0, numbers),  # the file calls the digit 0 class 10
        path,
        path,
        path.name.startswith("test"),
    )


SOURCE = _FILES.source(
    tuple("0123456789"), lambda paths: list(map(_part, paths)), crop_padding=4, flip=False
)
