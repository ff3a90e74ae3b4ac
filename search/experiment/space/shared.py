"""The fields that trials of all methods have: those of the recipe and of the views."""

from collections.abc import Mapping

from search.experiment.schema import Experiment
from search.experiment.searched import Leaf, Option, SearchedRange
from search.experiment.space.fields import ChoiceField, NumberField, SearchedField
from search.experiment.space.point import TRAINING, VIEWS


def shared_fields(experiment: Experiment) -> tuple[SearchedField, ...]:
    """What is searched of `training` and `data.augmentation`; what a field needs is before it."""
    fields: list[SearchedField] = []
    if experiment.training.space is not None:
        for name, leaf, beside in experiment.training.space.fields():
            needs = {f"{TRAINING}{other}": options for other, options in beside.items()}
            fields.append(_field(f"{TRAINING}{name}", leaf, needs))
    if (views := experiment.searched_views) is not None:
        if len(views.options) > 1:
            fields.append(ChoiceField(VIEWS, views.options, views.options[0]))
        for name, leaf, choices in views.fields():
            needs = {} if len(choices) == len(views.options) else {VIEWS: choices}
            fields.append(_field(f"{VIEWS}.{name}", leaf, needs))
    return tuple(fields)


def _field(name: str, leaf: Leaf, needs: Mapping[str, tuple[Option, ...]]) -> SearchedField:
    beside = tuple(needs.items())
    if isinstance(leaf, SearchedRange):
        return NumberField(name, leaf.low, leaf.high, leaf.log, leaf.integer, leaf.first, beside)
    return ChoiceField(name, leaf.options, leaf.first, beside=beside)
