"""What recipes and views ask for in vain: of networks, of images, of the search."""

from collections.abc import Iterable

import torch

from kdcore.backbones.catalogue import constructor_of
from kdcore.data.augmentation.steps import check_size
from kdcore.data.image_data import ImageData
from kdcore.errors import ConfigError
from kdcore.methods import CATALOGUE
from search.errors import Problem
from search.experiment.schema import Experiment
from search.experiment.space.fields import NumberField
from search.experiment.space.point import LEARNING_RATE, VIEWS
from search.experiment.space.shared import shared_fields
from search.experiment.views import with_augmentation


def drop_path_problems(
    experiment: Experiment, students: Iterable[str], data: ImageData
) -> list[Problem]:
    """Networks without the stochastic depth that their recipe asks for."""
    rates = [recipe.drop_path for recipe in experiment.training.variants("drop_path")]
    rate = next((each for each in rates if each is not None), None)
    asked = [("training", name, rate) for name in students]
    for label in experiment.teachers:
        for key, teacher in experiment.members(label).items():
            if teacher.training is not None:
                rate = teacher.training.drop_path
                networks = teacher.networks
                asked += [(f"{key}.training", name, rate) for name in networks]
    problems = []
    for key, name, rate in asked:
        if rate is None:
            continue
        try:
            with torch.device("meta"):
                constructor_of(name)(data.num_classes, data.in_channels).set_drop_path(rate)
        except ConfigError as error:
            problems.append(Problem(key=f"{key}.drop_path", message=f"{name}: {error}"))
    return problems


def view_problems(experiment: Experiment, data: ImageData) -> list[Problem]:
    """Views that the search may choose, and that the images are too small for."""
    for views in () if experiment.searched_views is None else experiment.searched_views.variants():
        steps = with_augmentation(experiment.data, views).steps() or ()
        try:
            check_size(steps, *data.image_size)
        except ConfigError as error:
            return [Problem(key="data.augmentation", message=str(error))]
    return []


def redundancies(experiment: Experiment) -> list[str]:
    """Directions of the space in which nothing changes."""
    fields = shared_fields(experiment)
    rate = next((field.name for field in fields if field.name == LEARNING_RATE), None)
    found = []
    for method in {name: None for slot in experiment.objective for name in slot}:
        weight, labels = f"{method}.weight", f"{method}.cross_entropy"
        fixed = len(experiment.narrow.get(weight, (0, 1))) < 2
        searched = "weight" in CATALOGUE[method].Params.searched() and not fixed
        if rate and searched and len(experiment.narrow.get(labels, ())) > 1:
            found.append(
                f"{weight}, {labels} and {rate} are searched together, but a common factor of the "
                f"first two is a learning rate, so that trials differ in nothing but how it is "
                f"written; fix {labels} with one value in narrow"
            )
    return found


def views_of_one_trial(experiment: Experiment) -> list[str]:
    """What becomes of cached outputs where nearly every trial has views of its own."""
    ranges = [
        field.name
        for field in shared_fields(experiment)
        if field.name.startswith(VIEWS) and isinstance(field, NumberField)
    ]
    if not ranges or experiment.cache is None:
        return []
    are = "is a range" if len(ranges) == 1 else "are ranges"
    return [
        f"{' and '.join(ranges)} {are}, so that nearly every trial has views of its own, and the "
        f"teacher's cached outputs of one are of no use to another; choices instead of a range are "
        f"shared, and cache: null keeps nothing"
    ]
