"""Which map of the student learns from which map of the teacher."""

from functools import cache
from itertools import pairwise, product

import pytest

from kdcore.backbones.probe import probe_shapes
from kdcore.contract.layer_pairs import (
    ALL,
    MIDDLE,
    LayerPair,
    equal_depth_pairs,
    layer_options,
    resolve_layers,
)
from kdcore.contract.network_pair import Shapes
from kdcore.contract.searched import LayerChoice
from kdcore.methods import CATALOGUE
from tests.cases import Case


def network(stages: int, name: str = "net") -> Shapes:
    names = tuple(f"stage{number}" for number in range(1, stages + 1))
    maps = dict.fromkeys(("stem", *names), (8, 4, 4))
    return Shapes(name, "stem", names, maps, embedding_width=8, num_classes=10)


@cache
def shapes(name: str) -> Shapes:
    return probe_shapes(name, num_classes=10, in_channels=3, image_size=(96, 96))


def written(pairs: tuple[LayerPair, ...]) -> list[str]:
    return [str(pair) for pair in pairs]


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        ("resnet8", "resnet20", ["stage1:stage1", "stage2:stage2", "stage3:stage3"]),
        ("resnet8", "resnet50", ["stage1:stage1", "stage2:stage3", "stage3:stage4"]),
        ("resnet50", "resnet8", ["stage1:stage1", "stage3:stage2", "stage4:stage3"]),
    ],
)
def test_stages_of_equal_relative_depth_are_paired(
    student: str, teacher: str, pairs: list[str]
) -> None:
    assert written(equal_depth_pairs(shapes(student), shapes(teacher))) == pairs


def test_every_stage_of_the_shallower_network_is_paired_once() -> None:
    for student, teacher in product(range(1, 7), range(1, 7)):
        with Case(student, teacher):
            assert_paired_once(student, teacher)


def assert_paired_once(student: int, teacher: int) -> None:
    here, there = network(student), network(teacher)
    pairs = equal_depth_pairs(here, there)
    assert len(pairs) == min(student, teacher)
    places = [(here.stages.index(pair.student), there.stages.index(pair.teacher)) for pair in pairs]
    for (student_before, teacher_before), (student_after, teacher_after) in pairwise(places):
        assert student_before < student_after
        assert teacher_before < teacher_after
    assert places[-1] == (student - 1, teacher - 1)
    for student_stage, teacher_stage in places:
        difference = (student_stage + 1) / student - (teacher_stage + 1) / teacher
        assert abs(difference) <= 0.5 / max(student, teacher) + 1e-12
    mirrored = {(pair.teacher, pair.student) for pair in equal_depth_pairs(there, here)}
    assert {(pair.student, pair.teacher) for pair in pairs} == mirrored


@pytest.mark.parametrize("student", ["resnet8", "resnet50"])
@pytest.mark.parametrize("teacher", ["resnet20", "resnet50"])
def test_options_are_different_and_resolve_and_hold_all(student: str, teacher: str) -> None:
    here, there = shapes(student), shapes(teacher)
    options = layer_options(here, there)
    assert options[0] == ALL
    assert len(set(options)) == len(options)
    for option in options:
        assert resolve_layers(option, here, there)
    for pair in equal_depth_pairs(here, there):
        assert str(pair) in options


def test_options_reach_one_stage_to_either_side() -> None:
    assert set(layer_options(network(3), network(4))) == {
        ALL,
        *("stage1:stage1", "stage1:stage2"),
        *("stage2:stage2", "stage2:stage3", "stage2:stage4"),
        *("stage3:stage3", "stage3:stage4"),
    }


def test_every_published_layer_choice_resolves_whatever_the_number_of_stages() -> None:
    published = {
        getattr(method.Params(), field)
        for method in CATALOGUE.values()
        for field, mark in method.Params.searched().items()
        if isinstance(mark, LayerChoice)
    }
    assert len(published) > 1
    for layers, student, teacher in product(published, range(1, 7), range(1, 7)):
        with Case(layers, student, teacher):
            assert resolve_layers(layers, network(student), network(teacher))


def test_all_is_every_pair_of_equal_depth() -> None:
    assert resolve_layers(ALL, network(3), network(4)) == equal_depth_pairs(network(3), network(4))


@pytest.mark.parametrize(
    ("stages", "pair"),
    [
        ((3, 3), "stage2:stage2"),
        ((3, 4), "stage2:stage3"),
        ((4, 4), "stage2:stage2"),
        ((4, 5), "stage2:stage3"),
        ((5, 5), "stage3:stage3"),
        ((2, 2), "stage1:stage1"),
        ((1, 1), "stage1:stage1"),
    ],
)
def test_middle_is_the_middle_pair(stages: tuple[int, int], pair: str) -> None:
    student, teacher = stages
    assert written(resolve_layers(MIDDLE, network(student), network(teacher))) == [pair]


@pytest.mark.parametrize("pair", ["stage1:stage3", "stem:stem", "stage3:stem", "stem:stage1"])
def test_a_pair_may_name_any_tap_with_the_stem(pair: str) -> None:
    assert written(resolve_layers(pair, network(3), network(3))) == [pair]


@pytest.mark.parametrize("separator", [",", ", ", " , "])
def test_several_pairs_keep_the_order_in_which_they_are_given(separator: str) -> None:
    for pairs in (
        ["stage1:stage1", "stage2:stage3"],
        ["stage3:stage4", "stem:stem", "stage3:stage1", "stage2:stage4"],
    ):
        assert written(resolve_layers(separator.join(pairs), network(3), network(4))) == pairs


@pytest.mark.parametrize(
    "layers", ["stem:stem,stem:stem", "stem:stem, stage1:stage2, stem:stage1 , stem:stem"]
)
def test_a_pair_that_is_listed_twice_is_refused(layers: str) -> None:
    message = f"^layers is '{layers}', which lists 'stem:stem' twice; list each pair once$"
    with pytest.raises(ValueError, match=message):
        resolve_layers(layers, network(3), network(4))


@pytest.mark.parametrize(
    "layers",
    [
        *("", "stage1", "ALL", "stage1:stage1:stage1", "stage1-stage1"),
        *("stage1:stage1,", "stage1:stage1, all", "stage1:stage1;stage2:stage2"),
    ],
)
def test_a_layer_choice_of_another_form_is_refused_with_an_example(layers: str) -> None:
    with pytest.raises(ValueError, match=f"^layers is '{layers}', but must be .*'stage3:stage4'"):
        resolve_layers(layers, network(3), network(4))


@pytest.mark.parametrize(
    ("layers", "role", "name"),
    [
        ("stge2:stage1", "student small", "stge2"),
        ("stage2:stge2", "teacher large", "stge2"),
        ("stage2: stage2", "teacher large", " stage2"),
        ("stage1:stage1, stge2:stage1", "student small", "stge2"),
    ],
)
def test_an_unknown_tap_is_refused_with_the_one_that_was_meant(
    layers: str, role: str, name: str
) -> None:
    message = f"layers is '{layers}', but the {role} has no tap '{name}'; did you mean 'stage2'?"
    with pytest.raises(ValueError, match="stem, stage1, stage2, stage3") as caught:
        resolve_layers(layers, network(3, "small"), network(4, "large"))
    assert message in str(caught.value)


@pytest.mark.parametrize("layers", [":", "stage1:", ":stage1", "stage4:stage1"])
def test_a_pair_that_names_no_tap_is_refused(layers: str) -> None:
    with pytest.raises(ValueError, match="has no tap"):
        resolve_layers(layers, network(3), network(4))
