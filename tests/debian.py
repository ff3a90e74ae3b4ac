"""Real data sets, as Debian packages them."""

import os
from pathlib import Path

import pytest


def fashion_mnist() -> Path:
    """The folder of Fashion-MNIST's four files; without it a test is skipped, and fails in CI."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        missing = f"{folder} is missing; install Debian's package dataset-fashion-mnist"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return folder
