"""Exported files: they classify as the student does, and altered ones are refused."""

import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import build_backbone
from kdcore.contract import plugged
from kdcore.data.image_data import ImageData
from kdcore.data.split import Split
from kdcore.networks.classifier import (
    Classifier,
    build_classifier,
    describe_classifier,
    load_card,
    load_classifier,
    load_student,
    save_classifier,
)
from kdcore.training.evaluation import Evaluation, evaluate
from search.errors import SearchError, StorageError
from search.export.choice import Candidate
from search.export.export import export_best, replacing
from search.export.file_table import graphs_in_words
from search.export.files import Measured, check_features, check_loss, describe_files, measure_files
from search.export.graph_formats import GRAPHS, graph_accuracy, load_onnx, measure_graph
from search.export.int8 import CALIBRATION_IMAGES, INT8, _CalibrationImages, write_int8
from search.record.storage import Storage
from tests.own_code import TRANSFORMERS
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
    known = picked.heldout_accuracy
    heldout = measure_files(folder, digits.heldout, "held-out", known, "7")
    test = measure_files(folder, digits.test, "test", picked.test_accuracy, "7")
    assert (test.weights.accuracy, test.graph) == (picked.test_accuracy, picked.test_accuracy)
    files = describe_files(folder, heldout, test, digits)
    assert [file.name for file in files] == ["student.safetensors", path.name]
    for file in files:
        assert (file.heldout_accuracy, file.test_accuracy) == (known, picked.test_accuracy)
        assert file.sha256 == sha256((folder / file.name).read_bytes()).hexdigest()
        assert file.latency_ms > 0
    words = graphs_in_words(files, heldout, test, digits)
    assert words.startswith(f"{path.name}: held-out {100 * accuracy:.2f} %, test ")


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
    assert_becomes_a_graph(backbone, size, form, tmp_path)


@pytest.mark.parametrize("form", GRAPHS)
def test_a_transformer_becomes_a_graph(form: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TRANSFORMERS)
    with plugged.declared([plugged.read_plugin("tiny.py", tmp_path)]):
        backbone = build_backbone("tiny_distilled_vit", num_classes=10, in_channels=3, seed=0)
    assert_becomes_a_graph(backbone, 8, form, tmp_path)


def assert_becomes_a_graph(backbone: Backbone, size: int, form: str, tmp_path: Path) -> None:
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
        measure_files(folder, digits.heldout, "held-out", picked.heldout_accuracy, "7")


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
        measure_files(folder, digits.heldout, "held-out", picked.heldout_accuracy, "7")


def test_a_graph_without_a_head_gives_the_features(
    folder: Path, student: Classifier, digits: ImageData
) -> None:
    card = load_card(folder, "student").model_copy(update={"has_head": False})
    save_classifier(folder, "student", student, card)
    alone = load_student(folder)
    form = next(form for form in GRAPHS if form != "onnx")
    path = folder / GRAPHS[form].file
    GRAPHS[form].write(alone, digits.heldout.images[:2], path)
    images = digits.test.images[:3]
    torch.testing.assert_close(GRAPHS[form].load(path)(images), student.embed(images))
    check_features(folder, form, digits.heldout)
    other = build_classifier("resnet8", digits, seed=2).eval()
    other.has_head = False
    GRAPHS[form].write(other, digits.heldout.images[:2], path)
    with pytest.raises(SearchError, match=r"the features of .* differ"):
        check_features(folder, form, digits.heldout)


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


# Int8


def calibration_images(split: Split) -> torch.Tensor:
    """All that ONNX Runtime is given."""
    reader, taken = _CalibrationImages(split), []
    while (batch := reader.get_next()) is not None:
        taken.append(torch.from_numpy(batch["images"]))
    return torch.cat(taken)


@pytest.fixture(scope="module")
def quantised(
    teacher_dir: Path, digits: ImageData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Classifier]:
    """A folder with both graphs of a trained network, and the network."""
    folder, network = tmp_path_factory.mktemp("int8"), load_classifier(teacher_dir, "teacher")
    source = folder / GRAPHS["onnx"].file
    GRAPHS["onnx"].write(network, digits.heldout.images[:2], source)
    write_int8(source, digits.heldout, folder / INT8)
    return folder, network


def test_weights_have_8_bits_and_a_scale_for_each_channel_with_their_batch_norm(
    quantised: tuple[Path, Classifier],
) -> None:
    folder, network = quantised
    graph = onnx.load(folder / INT8).graph
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    inputs = {node.output[0]: node.input for node in graph.node}
    assert not {node.op_type for node in graph.node} & {"BatchNormalization"}
    scales = {}  # by the number of the layer
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weights, scale, zero = (values[name] for name in inputs[node.input[1]])
            assert (weights.dtype, weights.shape[:1]) == ("int8", scale.shape)
            assert not zero.any()
            assert abs(weights.astype(int)).max() <= 127
            scales[len(scales)] = torch.from_numpy(scale).double()
            quantised_input = inputs[node.input[0]]
            assert values[quantised_input[2]].dtype == "uint8"
    state = {name: each.double() for name, each in network.backbone.state_dict().items()}
    first, last = state["conv1.weight"], state["fc.weight"]
    norm = state["bn1.weight"] / (state["bn1.running_var"] + 1e-5).sqrt()
    folded = (first * norm[:, None, None, None]).flatten(1)
    # int8 without -128, so that it is symmetric
    torch.testing.assert_close(scales[0], folded.abs().amax(1) / 127, rtol=1e-5, atol=0)
    torch.testing.assert_close(scales[len(scales) - 1], last.abs().amax(1) / 127, rtol=1e-5, atol=0)


def test_the_range_of_an_activation_is_that_of_the_calibration_images(
    quantised: tuple[Path, Classifier], digits: ImageData
) -> None:
    folder, network = quantised
    graph = onnx.load(folder / INT8).graph
    assert [each.type.tensor_type.elem_type for each in graph.input] == [onnx.TensorProto.UINT8]
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    scale, zero = (values[name].item() for name in first.input[1:])
    pixels = network.normalize(calibration_images(digits.heldout)).double()
    lowest, highest = min(0.0, pixels.min().item()), max(0.0, pixels.max().item())
    assert scale == pytest.approx((highest - lowest) / 255, rel=1e-5)
    assert zero == round(-lowest / scale)


def test_an_int8_graph_is_near_the_network_and_comes_out_the_same_again(
    quantised: tuple[Path, Classifier],
    digits: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, network = quantised
    predict = load_onnx(folder / INT8)
    accuracy, difference = measure_graph(predict, network, digits.test)
    assert 1e-4 < difference < 0.25
    assert graph_accuracy(predict, digits.test) == accuracy
    assert (folder / INT8).stat().st_size < (folder / GRAPHS["onnx"].file).stat().st_size / 2
    monkeypatch.setattr("search.export.graph_formats._has_vnni", lambda: False)
    images = digits.test.images
    torch.testing.assert_close(load_onnx(folder / INT8)(images), predict(images))
    again = tmp_path / "again.onnx"
    write_int8(folder / GRAPHS["onnx"].file, digits.heldout, again)
    assert again.read_bytes() == (folder / INT8).read_bytes()
    for file in folder.iterdir():
        assert str(Path(__file__).parents[3]).encode() not in file.read_bytes()


def test_calibration_takes_some_images_of_the_whole_split_once(digits: ImageData) -> None:
    assert len(digits.train) > CALIBRATION_IMAGES
    images = [bytes(image.numpy()) for image in digits.train.images]
    taken = calibration_images(digits.train)
    assert len(taken) == CALIBRATION_IMAGES
    places = [images.index(bytes(image.numpy())) for image in taken]
    assert places == sorted(set(places))
    assert places[-1] >= CALIBRATION_IMAGES


def test_int8_that_costs_more_than_allowed_is_refused_with_both_figures() -> None:
    weights = Evaluation(torch.zeros(1), torch.zeros(1), 2, 0.0, None)

    def cost(graph: float, int8: float | None) -> Measured:
        return Measured(weights, graph, int8=int8)

    for held, allowed in ((cost(0.96, 0.95), 1.0), (cost(0.9, 0.91), 0.0), (cost(0.9, None), 0.0)):
        check_loss(held, allowed)
    with pytest.raises(
        SearchError,
        match=r"costs 1\.25 points .* \(95\.00 % instead of 96\.25 %\), but --max-loss is 1; "
        "allow more, or export without --int8",
    ):
        check_loss(cost(0.9625, 0.95), 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"int8": True}, "--format is safetensors; use onnx"),
        ({"int8": True, "form": "torch_export"}, "--format is torch_export; use onnx"),
        ({"max_loss": 2.0}, "add --int8"),
        ({"int8": True, "form": "onnx", "max_loss": -1.0}, "is -1, but must be >= 0"),
        ({"int8": True, "form": "onnx", "max_loss": math.nan}, "is nan, but must be >= 0"),
    ],
)
def test_options_of_int8_that_do_not_fit_are_told_before_anything_else(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(SearchError, match=words):
        export_best(made_up_search(3), Storage(str(tmp_path)), tmp_path / "best", **options)
