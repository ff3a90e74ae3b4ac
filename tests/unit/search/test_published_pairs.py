"""The field's experiments in experiments/published: each can be run, and has published figures."""

from functools import cache
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdcore.contract.published import benchmark_of
from kdcore.data.image_data import ImageData
from kdcore.distillation.distill import build_terms, network_pair
from kdcore.methods import CATALOGUE
from search.experiment.figures import Figures, read_figures
from search.experiment.pair import Pair, read_pair, read_pairs
from search.experiment.schema import CONTROL
from tests.cases import Case

PUBLISHED = Path("experiments/published")
CIFAR = ("cifar100/same", "cifar100/different")
FOLDERS = (*CIFAR, "imagenet")
FILES = [file for folder in FOLDERS for file in sorted((PUBLISHED / folder).glob("*.yaml"))]


@cache
def pairs(*folders: str) -> tuple[Pair, ...]:
    return read_pairs(PUBLISHED / folder for folder in folders or FOLDERS)


@cache
def figures() -> Figures:
    return read_figures(PUBLISHED / "figures.yaml")


def images_like(pair: Pair) -> ImageData:
    """As the networks see the images of a pair, of which there are none here."""
    size, classes = ((32, 32), 100) if pair.data.name == "cifar100" else ((224, 224), 1000)
    labels = SimpleNamespace(labels=torch.arange(classes).repeat(2))
    like: Any = SimpleNamespace(num_classes=classes, in_channels=3, image_size=size, train=labels)
    return like


def test_each_pair_compares_every_method_with_the_recipe_of_its_benchmark() -> None:
    assert [len(pairs(folder)) for folder in FOLDERS] == [7, 6, 2]
    for pair in pairs():
        with Case(pair.name):
            compared = {method for row in pair.rows.values() for method in row}
            assert compared == set(CATALOGUE) - {CONTROL}
            assert pair.seeds >= 3
            recipe = pair.training
            epochs = (240, (150, 180, 210)) if pair in pairs(*CIFAR) else (100, (30, 60, 90))
            assert (recipe.epochs, recipe.milestones) == epochs
            assert pair.trial("ab", "cifar", 0).epochs_on_top == recipe.epochs // 8
            narrow = pair.student.startswith(("mobilenetv2", "shufflenet"))
            rate = 0.1 if pair in pairs("imagenet") else 0.01 if narrow else 0.05
            assert recipe.learning_rate == rate


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_row_can_be_built_for_its_networks(file: Path) -> None:
    pair = read_pair(file)
    if "timm" in pair.student:
        pytest.importorskip("timm")
    data = images_like(pair)
    networks = network_pair(pair.student, pair.teacher.backbone, data)
    for row in (CONTROL, *pair.rows):
        with Case(row):
            trial = pair.trial(row, benchmark_of(data.image_size), seed=0)
            with torch.device("meta"):  # without the helpers' weights
                terms = build_terms(trial.objective, networks, seed=0)
            assert [term.name for term in terms] == [term.method for term in trial.objective]


def test_what_the_authors_set_for_a_pair_is_set_there() -> None:
    objectives = {
        (pair.name, row): pair.objective(row, "cifar")
        for pair in pairs(*CIFAR)
        for row in pair.rows
    }
    words = {key: " + ".join(map(str, objective)) for key, objective in objectives.items()}
    assert "nontarget_weight=2," in words["resnet56_resnet20", "dkd"]
    assert "nontarget_weight=8," in words["resnet32x4_resnet8x4", "dkd"]
    assert words["resnet56_resnet20", "reviewkd"].startswith("reviewkd(weight=0.6,")
    assert words["vgg13_vgg8", "ttm"] == "wttm(weight=45, power=0.1)"
    assert words["vgg13_vgg8", "wttm_crd"].startswith("wttm(weight=4, power=0.2) + crd(weight=0.8,")
    assert "layers=stage2_sum:stage2_sum" in words["wrn_40_2_wrn_16_2", "fitnet"]
    (ttm,) = objectives["vgg13_vgg8", "ttm"]
    assert dict(ttm.params)["weighted"] is False


def test_every_published_figure_belongs_to_a_pair_and_row_and_every_pair_has_some() -> None:
    assert set(figures().pairs) == {pair.name for pair in pairs()}
    for pair in pairs():
        with Case(pair.name):
            published = figures().of(pair.name)
            assert published.teacher
            assert published.student
            assert set(published.rows) <= set(pair.rows)
            assert len(published.rows) >= 8
            for figure in chain(published.teacher, published.student, *published.rows.values()):
                assert 0.5 < figure.accuracy < 0.8
                assert figure.source


def test_figures_are_those_of_the_tables() -> None:
    of = figures().of("resnet32x4_resnet8x4")
    assert [each.accuracy for each in (of.teacher[0], of.student[0])] == [0.7942, 0.7250]
    (kd,) = of.of("kd")
    assert (kd.accuracy, kd.seeds, kd.epoch) == (0.7333, 5, "last")
    (dkd,) = of.of("dkd")
    assert (dkd.accuracy, dkd.epoch) == (0.7632, "best")
    (dist,) = of.of("dist")
    assert (dist.accuracy, dist.spread) == (0.7631, 0.0019)
    assert len(figures().of("resnet34_resnet18").of("kd")) == 2
