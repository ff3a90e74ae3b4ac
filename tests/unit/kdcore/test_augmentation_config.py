"""What a configuration may say about augmentation, and what it means for each data set."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from kdcore import DataConfig, TrialConfig
from kdcore.data.augmentation.steps import PRESETS
from kdcore.data.image_data import open_data
from kdcore.data.split import TableSplit
from kdcore.data.streamed_split import StreamedSplit
from kdcore.methods import CATALOGUE
from tests.cases import Case
from tests.unit.kdcore.photographs import write_folders

MISTAKES: dict[str, tuple[Any, str]] = {
    "unknown preset": (
        "stronk",
        r"unknown preset 'stronk'; did you mean 'strong'\? The presets are",
    ),
    "a step as a preset": (
        "mixup",
        r"'mixup' is a step, and steps stand in a list; write \[mixup\]",
    ),
    "a number": (3, "is 3, but must be a preset's name or a list of steps"),
    "unknown step": (
        ["flop"],
        r"unknown step 'flop'; did you mean 'flip'\? The steps are random_r",
    ),
    "a step of two": ([{"flip": {}, "gray": {}}], "must be a name or a name with its parameters"),
    "unknown parameter": ([{"flip": {"q": 1}}], "step flip: unknown parameter 'q'. It has p"),
    "out of range": ([{"random_erasing": {"p": 2}}], "step random_erasing: p is 2, but must be le"),
    "order of a range": (
        [{"random_resized_crop": {"scale": [0.9, 0.1]}}],
        r"step random_resized_crop: scale is \[0.9, 0.1\], but the first must not be above",
    ),
    "beyond the bins": (
        [{"rand_augment": {"magnitude": 31}}],
        "step rand_augment: magnitude is 31, but must be below num_magnitude_bins, which is 31",
    ),
    "nothing to jitter": (["color_jitter"], "step color_jitter: brightness, .* are all 0, which"),
    "missing": (["blur"], "step blur: kernel_size is missing; write {blur: {kernel_size: ...}}"),
    "even": ([{"blur": {"kernel_size": 4}}], "step blur: kernel_size is 4, but must be odd"),
    "mixing first": (["mixup", "flip"], "flip stands after mixup, but mixing must come last"),
    "mixing twice": (["mixup", "mixup"], "mixup is listed twice, but an image is mixed once"),
    "two crops": (["pad_crop", "random_resized_crop"], "both crop; an image is cropped once"),
    "late crop": (["flip", "pad_crop"], "pad_crop stands after flip, but a crop must come first"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_has_one_clear_message(mistake: str) -> None:
    augmentation, message = MISTAKES[mistake]
    with pytest.raises(ValidationError, match=message) as caught:
        DataConfig.model_validate({"name": "digits", "augmentation": augmentation})
    (error,) = caught.value.errors()
    assert error["loc"] == ("augmentation",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "imagenet", "augmentation": ["flip"]},
            "augmentation has no random_resized_crop, but imagenet has images of any size; begin",
        ),
        (
            {"name": "image_folder", "augmentation": ["flip"], "image_size": (32, 32)},
            r"image_size is \(32, 32\), but augmentation is a list of steps, which takes images",
        ),
    ],
)
def test_augmentations_that_do_not_fit_the_images_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(changes)


def test_a_kernel_that_is_larger_than_the_images_of_a_table_is_refused(tmp_path: Path) -> None:
    config = DataConfig.model_validate(
        {"name": "digits", "augmentation": [{"blur": {"kernel_size": 17}}]}
    )
    with pytest.raises(ValueError, match="kernel_size is 17, but must be below 16 for images of 8"):
        open_data(config, tmp_path)


def test_a_configuration_is_written_as_it_is_read() -> None:
    for augmentation in (
        *PRESETS[1:],
        [],
        ["flip", {"random_erasing": {"p": 0.25, "value": 9}}, "mixup"],
        [{"color_jitter": {"brightness": [0.5, 1.5], "hue": 0.1}}],
    ):
        with Case(str(augmentation)):
            config = DataConfig.model_validate({"name": "digits", "augmentation": augmentation})
            dumped = config.model_dump(mode="json")
            assert dumped["augmentation"] == augmentation
            assert DataConfig.model_validate(dumped) == config
            assert DataConfig.model_validate_json(config.model_dump_json()) == config


def test_basic_views_are_those_of_before() -> None:
    for name in ("digits", "cifar10", "imagenet", "image_folder", "tiny_imagenet"):
        usual = DataConfig.model_validate({"name": name})
        basic = DataConfig.model_validate({"name": name, "augmentation": "basic"})
        assert basic == usual
        assert "augmentation" not in basic.model_dump(mode="json")
        assert basic.steps() is None


def test_a_list_with_a_resized_crop_streams_and_any_other_is_decoded_once(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "root", {"train": 4})
    for path in root.rglob("*.jpg"):
        with Image.open(path) as image:
            small = image.resize((20, 24))
        small.save(path)
    streamed = ("imagenet", "strong", "patient", ["random_resized_crop", "gray"], "resized_crop")
    decoded = (["pad_crop", "flip"], ["flip", "mixup"], [], "pad_crop")
    for kind, choices in ((StreamedSplit, streamed), (TableSplit, decoded)):
        for augmentation in choices:
            content = {"name": "image_folder", "root": root, "augmentation": augmentation}
            if kind is StreamedSplit:
                content["image_size"] = (16, 16)
            with Case(str(augmentation)):
                config = DataConfig.model_validate(content)
                assert config.decodes_once == (kind is TableSplit)
                assert isinstance(open_data(config, tmp_path).train, kind)


def test_steps_and_their_parameters_are_part_of_the_recipe(tmp_path: Path) -> None:
    recipes = set()
    for augmentation in (
        None,
        "strong",
        "patient",
        ["flip"],
        [{"flip": {"p": 0.4}}],
        ["flip", "gray"],
        ["gray", "flip"],
        ["pad_crop"],
        [{"pad_crop": {"padding": 2}}],
    ):
        config = DataConfig.model_validate({"name": "digits", "augmentation": augmentation})
        recipes.add(open_data(config, tmp_path).train.view_recipe)
    assert len(recipes) == 9
    padded = DataConfig.model_validate({"name": "digits", "augmentation": ["pad_crop"]})
    (crop,) = open_data(padded, tmp_path).train.all_steps()
    assert str(crop) == "pad_crop(padding=1)"  # that of digits


def test_a_method_that_cannot_learn_of_mixed_images_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = {
        "data": {"name": "digits", "augmentation": "patient"},
        "teacher": {"backbone": "resnet14", "training": {"epochs": 2}},
        "student": "resnet8",
        "objective": [{"method": "kd"}, {"method": "crd"}],
        "training": {"epochs": 2},
    }
    assert TrialConfig.model_validate(content).data.mixes
    monkeypatch.setattr(CATALOGUE["crd"], "mixing", "refused")
    with pytest.raises(ValidationError, match=r"objective has crd, but data\.augmentation mixes"):
        TrialConfig.model_validate(content)
    content["data"] = {"name": "digits", "augmentation": "imagenet"}
    TrialConfig.model_validate(content)
