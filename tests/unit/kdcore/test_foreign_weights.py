"""Weights from elsewhere: the wrappings that occur, and refusals that explain."""

import argparse
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import build_backbone
from kdcore.backbones.foreign_weights import load_weights, read_weights
from kdcore.errors import WeightsError

State = dict[str, Tensor]


def network(num_classes: int = 5, seed: int = 1) -> Backbone:
    return build_backbone("resnet8", num_classes=num_classes, in_channels=3, seed=seed)


def loaded(content: object, path: Path, target: nn.Module | None = None) -> State:
    torch.save(content, path)
    target = target or network(seed=2)
    load_weights(target, read_weights(path), source=f"weights file {path}")
    return target.state_dict()


def same(given: State, expected: State) -> bool:
    return given.keys() == expected.keys() and all(
        torch.equal(given[name], expected[name]) for name in expected
    )


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


# Wrappings


@pytest.mark.parametrize(
    "wrap",
    [
        OrderedDict,
        lambda state: {"state_dict": state},
        lambda state: {"model_state_dict": state, "epoch": 3},
        lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, path="x")},
        lambda state: {"net": prefixed(state, "module."), "acc": 0.9, "epoch": 7},
        lambda state: {"network": {"state_dict": prefixed(state, "_orig_mod.module.")}},
        lambda state: {"student": state, "best": {"epoch": 1}, "random_state": torch.zeros(4)},
        lambda state: prefixed(state, "model."),
        lambda state: prefixed(state, "module._orig_mod.model."),
        lambda state: state | {"epoch": 3, "names": ["a"]},
    ],
    ids=[
        "ordered",
        "state_dict",
        "epoch",
        "arguments",
        "parallel",
        "nested",
        "ours",
        "model",
        "prefixes",
        "flat",
    ],
)
def test_a_state_dict_is_found_in_its_wrapping(
    wrap: Callable[[State], object], tmp_path: Path
) -> None:
    state = network().state_dict()
    assert same(loaded(wrap(state), tmp_path / "weights.pt"), state)


def test_a_checkpoint_with_its_optimiser_is_read(tmp_path: Path) -> None:
    source = network()
    optimizer = torch.optim.AdamW(source.parameters())
    source(torch.zeros(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 12,
        "state_dict": source.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": {"milestones": [1, 2], "gamma": 0.1, "last": None},
    }
    assert same(loaded(checkpoint, tmp_path / "last.pth.tar"), source.state_dict())


def test_a_network_of_a_library_takes_the_librarys_file_and_its_own(tmp_path: Path) -> None:
    source, target = (
        build_backbone("timm/test_resnet", num_classes=5, in_channels=3, seed=seed)
        for seed in (1, 2)
    )
    expected = source.state_dict()
    theirs = source.get_submodule("network").state_dict()
    for number, state in enumerate((theirs, expected)):
        save_file(state, tmp_path / f"{number}.safetensors")
        for parameter in target.parameters():
            parameter.data.zero_()
        load_weights(target, read_weights(tmp_path / f"{number}.safetensors"), source="weights")
        assert same(target.state_dict(), expected)


def test_half_precision_is_widened_and_uncounted_batches_are_no_fault(tmp_path: Path) -> None:
    state = network().state_dict()
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    given = loaded(half, tmp_path / "weights.pt")
    assert all(tensor.dtype == state[name].dtype for name, tensor in given.items())
    assert all(torch.equal(given[name], tensor.to(given[name])) for name, tensor in half.items())


class _WithAuxiliary(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, 5)
        if name:
            self.add_module(name, nn.ModuleDict({"stage1": nn.Linear(2, 5)}))


@pytest.mark.parametrize("theirs", ["", "aux1", "AuxLogits", "auxiliary"])
@pytest.mark.parametrize("ours", ["", "auxiliary"])
def test_auxiliary_classifiers_may_be_there_or_not(theirs: str, ours: str, tmp_path: Path) -> None:
    source = _WithAuxiliary(theirs).state_dict()
    given = loaded(source, tmp_path / "weights.pt", _WithAuxiliary(ours))
    shared = source.keys() & given.keys()
    assert {"fc.weight", "norm1.weight"} <= shared
    assert ("auxiliary.stage1.weight" in shared) == (ours == theirs == "auxiliary")
    assert all(torch.equal(given[name], source[name]) for name in shared)


def test_names_with_dots_of_old_files_are_understood(tmp_path: Path) -> None:
    source = _WithAuxiliary("").state_dict()
    old = {name.replace("norm1.", "norm.1."): tensor for name, tensor in source.items()}
    assert same(loaded(old, tmp_path / "weights.pt", _WithAuxiliary("")), source)


# Refusals


def refusal(state: object, path: Path) -> str:
    with pytest.raises(WeightsError, match=f"weights file {path} does not fit: ") as caught:
        loaded(state, path)
    return str(caught.value).partition(" does not fit: ")[2]


def test_other_classes_are_named_as_the_likely_reason(tmp_path: Path) -> None:
    assert refusal(network(1000).state_dict(), tmp_path / "w.pt") == (
        "2 of another shape (fc.weight 1000x64 instead of 5x64, fc.bias 1000 instead of 5). "
        "It was probably trained on 1000 classes; the data has 5. Add training, which adapts the "
        "weights"
    )


def test_names_that_are_missing_and_unexpected_are_counted_and_three_are_shown(
    tmp_path: Path,
) -> None:
    state = network().state_dict()
    for name in ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "fc.bias"):
        del state[name]
    state |= {"head.bias": torch.zeros(3)}
    assert refusal(state, tmp_path / "w.pt") == (
        "5 missing (conv1.weight, bn1.weight, bn1.bias and 2 more); 1 unexpected (head.bias)"
    )


def test_another_width_is_not_taken_for_other_classes(tmp_path: Path) -> None:
    state = network().state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(16, 8, 3, 3)
    message = refusal(state, tmp_path / "w.pt")
    assert message == "1 of another shape (layer1.0.conv1.weight 16x8x3x3 instead of 16x16x3x3)"


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"state_dict": {}}, 7], ids=repr)
def test_a_file_without_tensors_by_name_is_refused(content: object, tmp_path: Path) -> None:
    assert refusal(content, tmp_path / "w.pt") == "it has no named tensors"


class _Foreign:
    """An object of a class that reading does not know."""


def test_objects_of_other_classes_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model": network().state_dict(), "config": _Foreign()}, path)
    with pytest.raises(WeightsError, match=f"{path} cannot be read: .* save its state dict alone"):
        read_weights(path)


def _weights(suffix: str, folder: Path) -> bytes:
    """A file with weights, as it should be."""
    path = folder / f"right{suffix}"
    if suffix == ".safetensors":
        save_file(network().state_dict(), path)
    else:
        torch.save(network().state_dict(), path)
    return path.read_bytes()


NO_WEIGHTS: dict[str, Callable[[bytes], bytes]] = {
    "text": lambda right: b"epoch,accuracy\n1,0.5\n",
    "prose": lambda right: b"The weights are on the other disk.\n",
    "pickle's opcodes": lambda right: b"(lp0\n.",
    "empty": lambda right: b"",
    "random": lambda right: random.Random(0).randbytes(10_000),
    "random after a zip's magic": lambda right: b"PK\x03\x04" + random.Random(1).randbytes(5_000),
    "cut in half": lambda right: right[: len(right) // 2],
    "without its end": lambda right: right[:-10],
    "one byte": lambda right: right[:1],
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("change", NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_whatever_is_no_weights_file_is_refused_by_its_name(
    change: Callable[[bytes], bytes], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(change(_weights(suffix, tmp_path)))
    with pytest.raises(WeightsError, match=f"^weights file {path} ") as caught:
        load_weights(network(), read_weights(path), source=f"weights file {path}")
    assert "\n" not in str(caught.value)
