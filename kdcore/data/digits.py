"""Scikit-learn's digits: 1,797 scans of handwritten digits, 8x8, 17 grey levels, bundled.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test
set).
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
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
    package = find_spec("sklearn")  # found, not imported, which would take seconds
    assert package is not None
    assert package.submodule_search_locations
    file = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    table = torch.from_numpy(np.loadtxt(file, delimiter=","))
    levels = table[:, :-1].reshape(-1, 1, 8, 8)  # 0 to 16
    images = (levels * 255 / 16).round().to(torch.uint8)
    labels = table[:, -1].long()
    is_test = stratified_mask(labels, round(_TEST_SHARE * len(labels)), _TEST_SEED)
    return RawImages(images, labels, is_test)


SOURCE = TableSource(
    class_names=tuple("0123456789"),
    crop_padding=1,
    flip=False,
    files=_files,
    read=_read,
)
