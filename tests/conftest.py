"""What tests share: one folder for what is made once, the digits, and a small teacher."""

import signal
from pathlib import Path

import pytest
import torch

from kdcore import DataConfig, Recipe, TeacherConfig
from kdcore.data.image_data import ImageData, open_data
from kdcore.teacher.teacher import prepare_teacher, teacher_folder

# Networks this small lose by more threads, and sums come out in the same bits only for one number
# of threads.
torch.set_num_threads(1)

# A shell's job in the background ignores Ctrl-C, and so would all that tests start, and end by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image tables and teachers of the whole test session."""
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="session")
def digits_config() -> DataConfig:
    """Few enough digits that an epoch takes a tenth of a second."""
    return DataConfig(name="digits", heldout_fraction=0.2, train_images=384)


@pytest.fixture(scope="session")
def digits(digits_config: DataConfig, workspace: Path) -> ImageData:
    return open_data(digits_config, workspace)


@pytest.fixture(scope="session")
def teacher_config() -> TeacherConfig:
    """A teacher that the first test to need it trains in half a second."""
    return TeacherConfig(
        backbone="resnet14", training=Recipe(epochs=2, batch_size=32, acceleration="off")
    )


@pytest.fixture(scope="session")
def teacher_dir(teacher_config: TeacherConfig, digits: ImageData, workspace: Path) -> Path:
    """The trained teacher's folder."""
    for _ in prepare_teacher(teacher_config, digits, workspace, torch.device("cpu")):
        pass
    return teacher_folder(teacher_config, digits, workspace)
