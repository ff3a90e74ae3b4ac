"""The students of a search that take over their teacher's classifier."""

from collections.abc import Mapping
from typing import NamedTuple

from kdcore.backbones.probe import probe_shapes
from kdcore.backbones.reused_classifier import with_classifier_of
from kdcore.contract.network_pair import Shapes
from kdcore.data.image_data import ImageData
from kdcore.methods import CATALOGUE
from search.experiment.schema import Experiment
from search.record.costs import reused_key


class Reused(NamedTuple):
    """A student with a projector to a teacher's classifier.

    Args:
        method: which asks for it.
        network: the name of the whole.
    """

    method: str
    network: str


def reused_students(experiment: Experiment, data: ImageData) -> Mapping[str, Reused]:
    """By the keys of what they cost, the students that have their teacher's classifier.

    Raises:
        NetworkError: one of the networks has no classifier of a map's mean.
    """

    def shapes(network: str) -> Shapes:
        return probe_shapes(
            network,
            num_classes=data.num_classes,
            in_channels=data.in_channels,
            image_size=data.image_size,
        )

    students, teachers = experiment.student_configs, experiment.teacher_configs
    methods = sorted({name for slot in experiment.objective for name in slot})
    return {
        reused_key(student, method, teacher): Reused(
            method,
            with_classifier_of(
                shapes(students[student].backbone), shapes(teachers[teacher].network)
            ),
        )
        for method in methods
        if CATALOGUE[method].reuses_classifier
        for student, teacher in experiment.pairs
    }
