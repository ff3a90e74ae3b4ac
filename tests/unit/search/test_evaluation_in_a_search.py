"""Evaluation that is left to weights: from the file to check, launch, record and card."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from kdcore import DataConfig
from kdcore.data.centre_crop import USUAL_CROP, CentreCrop
from kdcore.data.image_data import ImageData, open_data
from search.cli.launching import check
from search.errors import ExperimentError, SearchError
from search.experiment.pair import Pair
from search.experiment.reading import parse, parse_experiment, read_experiment
from search.export.choice import candidates
from search.export.model_card import Score, model_card
from search.leaderboard.comparison import compare
from search.record.looks import looks_at, record_look
from search.record.record import SearchRecord
from search.record.storage import Storage
from search.session import launch as launching
from search.session.preflight import Plan, evaluation, plan
from search.tracking.model_registry import heldout_digest
from tests.cases import Case
from tests.synthetic import finished_search, made_up_search
from tests.unit.kdcore.photographs import write_folders

BICUBIC = {"crop_share": 0.9, "interpolation": "bicubic"}
# Of a network of a megabyte, which timm has for tests; it is never fetched.
TEACHER = {"backbone": "timm/test_efficientnet", "weights": "r160_in1k", "training": {"epochs": 1}}
WORDS = (
    "evaluate resized to cover 168x168 (bicubic, antialiased), then the centre 160x160; crop_share "
    "0.95, as weights r160_in1k of timm/test_efficientnet are evaluated"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("photographs"), {"train": 12, "test": 2})


def content(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "task",
        "data": {"name": "image_folder", "root": str(root), "evaluation": "weights"},
        "teacher": TEACHER,
        "student": "resnet8",
        "objective": [["none", "kd"]],
        "training": {"epochs": 1, "batch_size": 8, "acceleration": "off"},
        "search": {"trials": 2},
    } | changes


def planned(folder: Path, root: Path, **changes: Any) -> Plan:
    experiment = parse_experiment(content(root, **changes), "")
    return plan(experiment, Storage(str(folder)), "task.yaml")


def test_a_plan_has_numbers_and_says_whose_they_are(root: Path, tmp_path: Path) -> None:
    prepared = planned(tmp_path, root)
    assert evaluation(prepared) == [WORDS]
    data = prepared.experiment.data
    assert data.image_size == prepared.data.image_size == (160, 160)
    assert data.evaluation == CentreCrop(crop_share=0.95, interpolation="bicubic")
    assert prepared.data.config == data
    # What it says belongs to the teacher and to the record, and a resumed search asks nobody.
    written = prepared.experiment.model_dump(mode="json")
    assert written["data"]["evaluation"] == {"crop_share": 0.95, "interpolation": "bicubic"}
    numbers = planned(tmp_path, root, data=written["data"])
    assert numbers.teachers == prepared.teachers
    assert numbers.experiment == prepared.experiment
    assert evaluation(numbers) == []
    plain = {key: value for key, value in written["data"].items() if key != "evaluation"}
    assert planned(tmp_path, root, data=plain).teachers != prepared.teachers


def test_a_file_that_is_sent_elsewhere_still_asks_there(root: Path) -> None:
    experiment = parse_experiment(content(root), "")
    again = parse_experiment(experiment.model_dump(mode="json"), "")
    assert again == experiment
    assert (again.data.evaluation, again.data.image_size) == ("weights", None)


def test_check_and_launch_say_it_in_one_line(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "task.yaml").write_text(
        f"data: {{name: image_folder, root: {root}, evaluation: weights, image_size: [64, 64]}}\n"
        "teacher: {backbone: timm/test_efficientnet, weights: r160_in1k, training: {epochs: 1}}\n"
        "student: resnet8\nobjective: [[none, kd]]\nsearch: {trials: 2}\n"
        "training: {epochs: 1, batch_size: 8, acceleration: 'off'}\n"
    )
    cover = "resized to cover 67x67 (bicubic, antialiased), then the centre 64x64; crop_share 0.95"
    line = f"evaluate {cover}, as weights r160_in1k of timm/test_efficientnet are evaluated"
    threads = torch.get_num_threads()
    check(tmp_path / "task.yaml", storage=str(tmp_path))
    torch.set_num_threads(threads)
    assert f"\n{line}\n" in capsys.readouterr().out

    said: list[str] = []

    @contextmanager
    def display(*arguments: object) -> Any:
        yield Mock(say=said.append)

    class NoRayError(Exception):
        pass

    monkeypatch.setattr(launching, "output_to", display)
    monkeypatch.setattr(launching, "LiveDisplay", display)
    monkeypatch.setattr(launching, "on_ray", Mock(side_effect=NoRayError))
    fresh_record = Mock(wraps=launching.fresh_record)
    monkeypatch.setattr(launching, "fresh_record", fresh_record)
    experiment = read_experiment(tmp_path / "task.yaml")
    with pytest.raises(NoRayError):
        launching.launch(experiment, source="task.yaml", storage=Storage(str(tmp_path)))
    assert said.count(line) == 1
    recorded = fresh_record.call_args.args[0].data
    assert recorded.evaluation == CentreCrop(crop_share=0.95, interpolation="bicubic")


def test_what_weights_do_not_tell_is_refused_under_its_key(root: Path, tmp_path: Path) -> None:
    fresh = {"backbone": "resnet8", "training": {"epochs": 1}}
    unknown = {"backbone": "timm/test_efficientnet", "weights": "r161_in1k"}
    squashed = {"backbone": "timm/convnext_tiny", "weights": "in12k_ft_in1k_384"}
    own = {"backbone": "resnet8", "weights": str(tmp_path / "resnet8.pth")}
    for changes, key, words in (
        ({"teacher": fresh}, "data", "neither the teacher nor a student begins with weights; give"),
        ({"teacher": own}, "data", "resnet8 is no network of torchvision or timm, which say it of"),
        ({"teacher": squashed}, "data", "timm evaluates convnext_tiny with crop mode 'squash', wh"),
        ({"teacher": unknown}, "teacher.weights", "has no such weights; did you mean 'r160_in1k'"),
        ({"teacher": fresh, "student": [unknown]}, "student", "has no such weights; did you mean"),
    ):
        with Case(words):
            with pytest.raises(ExperimentError) as caught:
                planned(tmp_path, root, **changes)
            (problem,) = caught.value.problems
            assert problem.key == key
            assert words in problem.message
    for said, key, words in (
        ({"crop_share": 2}, "data.evaluation.crop_share", "is 2, but input should be less than or"),
        (
            {"crop_shar": 1},
            "data.evaluation.crop_shar",
            "unknown key 'crop_shar'; did you mean 'crop_share'? Known here: crop_share, interpo",
        ),
        ("wieghts", "data.evaluation", "is 'wieghts', but must be numbers, like {crop_share: 0.8"),
    ):
        data = {"name": "image_folder", "root": str(root), "evaluation": said}
        with Case(said), pytest.raises(ExperimentError) as caught:
            parse_experiment(content(root, data=data), "")
        (problem,) = caught.value.problems
        assert problem.key == key
        assert words in problem.message


def test_a_published_table_has_numbers(root: Path) -> None:
    pair = {
        "name": "pair",
        "teacher": TEACHER,
        "student": "resnet8",
        "rows": {"KD": {"kd": {}}},
        "training": {"epochs": 1},
    }
    data = {"name": "image_folder", "root": str(root), "heldout_fraction": 0}
    read = parse(Pair, pair | {"data": data | {"evaluation": BICUBIC}}, "")
    assert read.data.centre_crop == CentreCrop.model_validate(BICUBIC)
    with pytest.raises(ExperimentError) as caught:
        parse(Pair, pair | {"data": data | {"evaluation": "weights"}}, "")
    (problem,) = caught.value.problems
    assert problem.key == "data"
    assert "evaluation is 'weights', but a published table was evaluated in one" in problem.message


# What is compared


def on(evaluation: Any, **changes: Any) -> SearchRecord:
    data = {"name": "image_folder", "root": "/p", "evaluation": evaluation}
    return finished_search((), {"data": data}, **changes)


def test_accuracies_of_other_crops_are_not_compared_but_looks_are_counted(tmp_path: Path) -> None:
    one, two = on(None), on(BICUBIC, name="task-2")
    assert compare(one, on({}, name="task-2")) == []
    for first, second in ((one, two), (two, one)):
        with pytest.raises(SearchError, match=r"different data: data\.evaluation .*None"):
            compare(first, second)
    storage = Storage(str(tmp_path))
    looks = tuple(record_look(storage, record, by="best", students=("a",)) for record in (one, two))
    for record in (one, two):
        assert looks_at(storage, record.experiment.data) == looks


def test_champions_are_of_the_same_crops(root: Path, tmp_path: Path) -> None:
    def data(evaluation: Any) -> ImageData:
        config = {"name": "image_folder", "root": root, "image_size": (16, 16)}
        return open_data(DataConfig.model_validate(config | {"evaluation": evaluation}), tmp_path)

    digests = [heldout_digest(data(each)) for each in (None, {}, BICUBIC, {"crop_share": 0.9})]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


# What is exported


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            {"name": "image_folder", "root": "/p", "evaluation": BICUBIC},
            "The accuracies are of upright RGB images, resized to cover 106x71 (bicubic, "
            "antialiased), then the centre 96x64; prepare yours likewise.\n",
        ),
        (
            {"name": "image_folder", "root": "/p"},
            "resized to cover 110x73 (bilinear, antialiased), then the centre 96x64; prepare",
        ),
        ({"name": "digits"}, ""),
    ],
)
def test_the_model_card_tells_how_images_were_prepared(
    data: dict[str, Any], told: str, tmp_path: Path
) -> None:
    config = DataConfig.model_validate(data)
    images: Any = SimpleNamespace(
        **{
            "config": config,
            "image_size": (96, 64),
            "num_classes": 10,
            "in_channels": 3,
            "class_names": ("a",),
        },
        **{"train": [0], "heldout": [0], "test": [0], "digest": "x", "unlabelled": None},
    )
    record = made_up_search(3)
    (picked, *_) = candidates(record)
    scores = [Score(picked.objective, picked.heldout_accuracy, None)]
    card = model_card(record, picked, scores, images, (), (), tmp_path, {})
    assert told in card
    assert ("prepare yours likewise" in card) == bool(told)
    assert (config.centre_crop == USUAL_CROP) == ("bilinear" in told)
