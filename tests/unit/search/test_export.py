"""Exported files: they classify as the student does, and altered ones are refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdcore.backbones.catalogue import build_backbone
from kdcore.data.image_data import ImageData
from kdcore.networks.classifier import (
    Classifier,
    build_classifier,
    describe_classifier,
    load_student,
    save_classifier,
)
from kdcore.training.evaluation import evaluate
from search.errors import SearchError, StorageError
from search.export.choice import Candidate
from search.export.export import export_best, measure_files, replacing
from search.export.graph_formats import GRAPHS, measure_graph
from search.record.storage import Storage
from tests.synthetic import made_up_search


@pytest.fixture(scope="module")
def student(digits: ImageData) -> Classifier:
    return build_classifier("resnet8", digits, seed=1).eval()


@pytest.fixture
def picked(student: Classifier, digits: ImageData) -> Candidate:
    """What a search would have recorded of this student."""
    return Candidate(
        label="7",
        trial=7,
        student="resnet8",
        objective="kd",
        point={},
        seed=1,
        heldout_accuracy=evaluate(student, digits.heldout)[0],
        best_epoch=1,
        test_accuracy=evaluate(student, digits.test)[0],
        checkpoint="",
    )


@pytest.fixture
def folder(student: Classifier, digits: ImageData, tmp_path: Path) -> Path:
    card = describe_classifier(student, "resnet8", digits, metrics={}, made_by={})
    save_classifier(tmp_path, "student", student, card)
    return tmp_path


@pytest.mark.parametrize("form", GRAPHS)
def test_a_graph_takes_any_number_of_stored_images_and_gives_the_students_logits(
    form: str, folder: Path, student: Classifier, picked: Candidate, digits: ImageData
) -> None:
    path = folder / GRAPHS[form].file
    GRAPHS[form].write(student, digits.heldout.images[:2], path)
    predict = GRAPHS[form].load(path)
    for count in (1, 2, 5):
        images = digits.test.images[:count]
        assert images.dtype == torch.uint8
        torch.testing.assert_close(predict(images), student(images), rtol=1e-4, atol=1e-5)
    accuracy, difference = measure_graph(predict, student, digits.heldout)
    assert accuracy == picked.heldout_accuracy
    assert difference < 1e-4
    score, words = measure_files(folder, form, picked, digits)
    assert score.test_accuracy == picked.test_accuracy
    assert words.startswith(f"{path.name}: held-out {100 * accuracy:.2f} %")


# One network of each family whose operations differ from resnet8's. ONNX takes PyTorch's own graph
# and then some seconds more, so it has those whose operations it must translate one by one.
@pytest.mark.parametrize(
    ("name", "size", "form"),
    [
        ("vgg8", 32, "onnx"),
        ("mobilenetv2", 32, "torch_export"),
        ("shufflenetv2", 32, "torch_export"),
        ("inception_v2", 80, "torch_export"),
        ("resnet8+fpn", 32, "torch_export"),
        ("torchvision/mobilenet_v3_small", 32, "onnx"),
        ("timm/test_efficientnet", 32, "torch_export"),
    ],
)
def test_every_family_of_networks_becomes_a_graph(
    name: str, size: int, form: str, tmp_path: Path
) -> None:
    backbone = build_backbone(name, num_classes=10, in_channels=3, seed=0)
    backbone.drop_auxiliary()
    student = Classifier(backbone, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)).eval()
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=draw)
    path = tmp_path / GRAPHS[form].file
    GRAPHS[form].write(student, images[:2], path)
    predict = GRAPHS[form].load(path)
    for count in (1, 3):
        expected = student(images[:count])
        difference = (predict(images[:count]) - expected).abs().max() / expected.abs().max()
        assert difference < 1e-4


def test_altered_weights_are_refused_with_both_figures(
    folder: Path, picked: Candidate, digits: ImageData
) -> None:
    path = folder / "student.safetensors"
    weights = load_file(path)
    weights["fc.weight"].mul_(-1)
    save_file(weights, path)
    now = evaluate(load_student(folder), digits.heldout)[0]
    assert now != picked.heldout_accuracy
    with pytest.raises(
        SearchError,
        match=f"{100 * now:.2f} %, but {100 * picked.heldout_accuracy:.2f} % was recorded for 7",
    ):
        measure_files(folder, "safetensors", picked, digits)


def test_a_graph_of_another_student_is_refused(
    folder: Path, picked: Candidate, digits: ImageData
) -> None:
    form = next(form for form in GRAPHS if form != "onnx")  # the one that is written in no time
    other = build_classifier("resnet8", digits, seed=2).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-1)
    GRAPHS[form].write(other, digits.heldout.images[:2], folder / GRAPHS[form].file)
    with pytest.raises(SearchError, match=GRAPHS[form].file):
        measure_files(folder, form, picked, digits)


@pytest.mark.parametrize("form", GRAPHS)
def test_a_damaged_graph_is_told(form: str, folder: Path) -> None:
    path = folder / GRAPHS[form].file
    path.write_bytes(b"PK no graph")
    with pytest.raises(SearchError, match=f"{path.name} is damaged"):
        GRAPHS[form].load(path)


def test_a_missing_package_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(SearchError, match=r"needs onnxruntime.*kdsearch\[export\]"):
        GRAPHS["onnx"].load(tmp_path / "student.onnx")


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_replaced(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"cannot write to .*/file/best: "),
        replacing(tmp_path / "file" / "best"),
    ):
        pytest.fail("nothing can be written there")


def test_a_failed_export_leaves_an_earlier_one_as_it_was(tmp_path: Path) -> None:
    def failing() -> None:
        with replacing(tmp_path / "best") as partial:
            (partial / "README.md").write_text("new")
            raise SearchError("refused")

    with pytest.raises(SearchError, match="refused"):
        failing()
    assert not list(tmp_path.iterdir())
    with replacing(tmp_path / "best") as partial:
        (partial / "README.md").write_text("old")
    with pytest.raises(SearchError, match="refused"):
        failing()
    assert (tmp_path / "best" / "README.md").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_an_unknown_format_is_told_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="no export format 'onx'; did you mean 'onnx'"):
        export_best(made_up_search(3), Storage(str(tmp_path)), tmp_path / "best", form="onx")
