"""Scikit-learn's digits: 1,797 scans of handwritten digits, 8x8, 17 grey levels, bundled.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test
set).
"""

from pathlib import Path

import torch

from kdcore.data.image_table import RawImages, TableSource
from kdcore.data.stratified import stratified_mask
from kdcore.errors import ConfigError

# The bundled data has no test split. This one never changes, so that scores stay comparable.
_TEST_SHARE = 0.2
_TEST_SEED = 1998


def _files(root: Path | None) -> tuple[Path, ...]:
    if root is not None:
        raise ConfigError(f"root is {str(root)!r}, but digits is bundled; leave root out")
    return ()


def _read(files: tuple[Path, ...]) -> RawImages:
    from sklearn.datasets import load_digits  # slow to import, and only needed once

    bunch = load_digits()
    levels = torch.from_numpy(bunch.images)  # 0 to 16
    images = (levels * 255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    is_test = stratified_mask(labels, round(_TEST_SHARE * len(labels)), _TEST_SEED)
    return RawImages(images, labels, is_test)


SOURCE = TableSource(
    class_names=tuple("0123456789"),
    crop_padding=1,
    flip=False,
    files=_files,
    read=_read,
)
