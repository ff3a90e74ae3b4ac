"""Evaluation as weights were made for it: what libraries and cards say, and what they cannot."""

from pathlib import Path
from typing import Any

import pytest
import timm
from timm.data import create_transform, resolve_data_config
from torchvision import models
from torchvision.models import get_model_weights

from kdcore import DataConfig, StudentConfig, TeacherConfig
from kdcore.data.centre_crop import USUAL_CROP, CentreCrop
from kdcore.data.image_data import ImageData, open_data
from kdcore.distillation.evaluation import evaluated_as_weights, weights_evaluation
from kdcore.errors import ConfigError, WeightsError
from kdcore.networks.classifier import build_classifier, describe_classifier, save_classifier
from tests.cases import Case
from tests.unit.kdcore.photographs import write_folders

RECIPE = {"epochs": 1}
PHOTOGRAPHS = {"name": "image_folder", "root": "/photographs", "evaluation": "weights"}


def one_of_each_kind() -> dict[str, dict[str, Any]]:
    """One name of timm's weights for each way of evaluation that they have, with its settings."""
    kinds: dict[tuple[Any, ...], str] = {}
    settings = {}
    keys = ("input_size", "test_input_size", "interpolation", "crop_pct", "test_crop_pct")
    for full in timm.list_pretrained():
        found = timm.get_pretrained_cfg(full).to_dict()
        kind = tuple(found.get(key) for key in (*keys, "crop_mode"))
        if kind not in kinds:
            kinds[kind] = full
            settings[full] = found
    return settings


def test_timm_and_we_evaluate_in_the_same_way() -> None:
    """Of every kind of its weights, by the parameters of the transforms that timm makes itself."""
    refused = 0
    for full, settings in one_of_each_kind().items():
        config = resolve_data_config(pretrained_cfg=settings, use_test_size=True)
        name, _, tag = full.partition(".")
        if config["crop_mode"] != "center" or config["crop_pct"] > 1:
            refused += 1
            with Case(full), pytest.raises(ConfigError, match=f"timm evaluates {name} with crop "):
                weights_evaluation(f"timm/{name}", tag)
            continue
        resize, crop, *_ = create_transform(**config).transforms
        with Case(full):
            found = weights_evaluation(f"timm/{name}", tag)
            assert found.image_size == tuple(crop.size)
            assert {found.crop.covered(side) for side in found.image_size} == {resize.size}
            assert found.crop.interpolation == resize.interpolation.value
            assert found.origin == f"as weights {tag} of timm/{name} are evaluated"
    assert refused >= 2


def test_torchvision_and_we_evaluate_in_the_same_way() -> None:
    seen = set()
    for name in models.list_models(module=models):
        for weights in get_model_weights(name):
            preset = weights.transforms()
            kind = (*preset.crop_size, *preset.resize_size, preset.interpolation)
            if kind in seen or not weights.meta["categories"]:
                continue
            seen.add(kind)
            with Case(name, weights.name):
                found = weights_evaluation(f"torchvision/{name}", weights.name)
                assert found.image_size == (*preset.crop_size, *preset.crop_size)
                assert [found.crop.covered(found.image_size[0])] == preset.resize_size
                assert found.crop.interpolation == preset.interpolation.value


def test_a_given_size_has_the_share_of_the_weights_but_not_that_of_the_larger_test() -> None:
    tested = weights_evaluation("timm/resnet50", "a1_in1k")
    settings = timm.get_pretrained_cfg("resnet50.a1_in1k")
    assert (tested.image_size, tested.crop.crop_share) == ((288, 288), settings.test_crop_pct)
    assert settings.crop_pct != settings.test_crop_pct
    assert weights_evaluation("timm/resnet50", "a1_in1k", (288, 288)) == tested
    for size in ((224, 224), (160, 192)):
        found = weights_evaluation("timm/resnet50", "a1_in1k", size)
        assert (found.image_size, found.crop.crop_share) == (size, settings.crop_pct)
    # Of 299 pixels timm's 0.875 takes 341, not the 342 of our default.
    floored = weights_evaluation("timm/inception_v3", "tf_in1k")
    assert floored.image_size == (299, 299)
    assert floored.crop.covered(299) == 341
    # torchvision does not round, as its weights have one size: of others the default stays.
    usual = weights_evaluation("torchvision/resnet18", "IMAGENET1K_V1", (160, 160))
    assert usual.crop == USUAL_CROP
    newer = weights_evaluation("torchvision/resnet50", "IMAGENET1K_V2", (160, 160))
    assert newer.crop.crop_share == 224 / 232


def test_an_alias_and_a_file_have_the_librarys_default(tmp_path: Path) -> None:
    for name, aliases in (
        ("timm/resnet18", ("DEFAULT", "pretrained", tmp_path / "x.pth")),
        ("torchvision/resnet50", ("DEFAULT", "IMAGENET1K_V2", tmp_path / "x.pth")),
    ):
        found = [weights_evaluation(name, weights) for weights in aliases]
        assert len({(each.image_size, each.crop) for each in found}) == 1
        assert len({each.origin for each in found[:2]}) == 1
        assert found[-1].origin.startswith("as the default weights ")
    assert "IMAGENET1K_V2 of torchvision/resnet50" in found[-1].origin


def test_a_folder_has_what_its_card_says(digits: ImageData, tmp_path: Path) -> None:
    root = write_folders(tmp_path / "root", {".": 4})
    crop = {"crop_share": 0.9, "interpolation": "bicubic"}
    content = {"name": "image_folder", "root": root, "image_size": (24, 16), "evaluation": crop}
    photographs = open_data(DataConfig.model_validate(content), tmp_path)
    for data, expected in ((photographs, CentreCrop.model_validate(crop)), (digits, USUAL_CROP)):
        folder = tmp_path / data.config.name
        student = build_classifier("resnet8", data, seed=0)
        card = describe_classifier(student, "resnet8", data, {}, {})
        save_classifier(folder, "student", student, card)
        found = weights_evaluation("resnet8", folder)
        assert (found.image_size, found.crop) == (data.image_size, expected)
        assert str(folder) in found.origin
    with pytest.raises(WeightsError, match="which has a resnet8, but backbone is resnet14"):
        weights_evaluation("resnet14", folder)


def evaluated(
    teacher: dict[str, Any], *students: Any, **changes: Any
) -> tuple[DataConfig, str | None]:
    data, found = evaluated_as_weights(
        DataConfig.model_validate(PHOTOGRAPHS | changes),
        TeacherConfig.model_validate(teacher),
        [StudentConfig.model_validate(student) for student in students],
    )
    return data, found and str(found)


FRESH = {"backbone": "resnet18", "training": RECIPE}
OLD = {"backbone": "torchvision/resnet18", "weights": "IMAGENET1K_V1"}
NEW = {"backbone": "torchvision/resnet50", "weights": "IMAGENET1K_V2"}
BICUBIC = {"backbone": "timm/resnet50", "weights": "a1_in1k"}


def test_the_teachers_weights_decide_else_the_first_students() -> None:
    data, words = evaluated(BICUBIC, NEW)
    assert data.image_size == (288, 288)
    assert data.centre_crop == CentreCrop(crop_share=1.0, interpolation="bicubic")
    assert words == (
        "resized to cover 288x288 (bicubic, antialiased), then the centre 288x288; crop_share 1, "
        "as weights a1_in1k of timm/resnet50 are evaluated"
    )
    data, _ = evaluated(FRESH, "resnet8", NEW, BICUBIC)
    assert (data.image_size, data.centre_crop) == ((224, 224), CentreCrop(crop_share=224 / 232))
    data, _ = evaluated(BICUBIC | {"training": RECIPE}, image_size=(96, 64))
    assert data.image_size == (96, 64)
    assert data.centre_crop == CentreCrop(crop_share=0.95, interpolation="bicubic")
    assert DataConfig.model_validate(data.model_dump(mode="json")) == data


def test_weights_of_the_usual_way_change_no_identity() -> None:
    data, _ = evaluated(OLD, "resnet8")
    plain = DataConfig.model_validate(PHOTOGRAPHS | {"evaluation": None})
    assert data.model_dump(mode="json") == plain.model_dump(mode="json")


def test_numbers_stay_whatever_the_weights() -> None:
    for numbers in (None, {"crop_share": 0.7}):
        data = DataConfig.model_validate(PHOTOGRAPHS | {"evaluation": numbers})
        teacher = TeacherConfig.model_validate(BICUBIC)
        assert evaluated_as_weights(data, teacher, ()) == (data, None)


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ((FRESH, "resnet8"), "but neither the teacher nor a student begins with weights; give num"),
        (
            ({"backbone": "resnet18", "weights": "/absent/resnet18.pth"}, NEW),
            "but resnet18 is no network of torchvision or timm, which say it of theirs; give num",
        ),
        (
            ({"backbone": "timm/volo_d4_448", "weights": "sail_in1k"},),
            "but timm evaluates volo_d4_448 with crop percentage 1.15, above 1, which kdsearch "
            "does not have; give numbers, like {crop_share: 0.875, interpolation: bilinear}",
        ),
        (
            ({"backbone": "timm/convnext_tiny", "weights": "in12k_ft_in1k_384"},),
            "but timm evaluates convnext_tiny with crop mode 'squash', which kdsearch does no",
        ),
    ],
)
def test_what_weights_do_not_tell_has_one_clear_message(
    networks: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluated(*networks)
    assert str(caught.value).startswith(f"evaluation is 'weights', {message}")


def test_an_interpolation_that_we_do_not_have_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = timm.get_pretrained_cfg("resnet18")
    settings.interpolation = "lanczos"
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: settings)
    with pytest.raises(ConfigError, match="its interpolation is 'lanczos', which kdsearch does no"):
        weights_evaluation("timm/resnet18", Path("x.pth"))


def test_weights_that_do_not_exist_are_told_as_ever() -> None:
    with pytest.raises(WeightsError, match="weights is 'a1', but timm/resnet50 has no such weigh"):
        evaluated({"backbone": "timm/resnet50", "weights": "a1"})
    with pytest.raises(ConfigError, match=r"unknown backbone 'timm/resnet5O'; did you mean"):
        weights_evaluation("timm/resnet5O", Path("x.pth"))


def test_data_whose_evaluation_nobody_resolved_is_not_opened(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "root", {".": 4})
    data = DataConfig.model_validate(PHOTOGRAPHS | {"root": root})
    with pytest.raises(
        ConfigError, match=r"evaluation is 'weights', which .* must be numbers, lik"
    ):
        open_data(data, tmp_path)
