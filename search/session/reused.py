"""The students of a search that take over their teacher's classifier."""

from collections.abc import Mapping
from typing import NamedTuple

from kdcore.backbones.reused_classifier import with_classifier_of
from kdcore.data.image_data import ImageData
from kdcore.methods import CATALOGUE
from kdcore.networks.classifier import probe_for
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

    students, teachers = experiment.student_configs, experiment.teacher_configs
    methods = sorted({name for slot in experiment.objective for name in slot})
    return {
        reused_key(student, method, teacher): Reused(
            method,
            with_classifier_of(
                probe_for(students[student].backbone, data).shapes,
                probe_for(teachers[teacher].network, data).shapes,
            ),
        )
        for method in methods
        if CATALOGUE[method].reuses_classifier
        for student, teacher in experiment.pairs
    }
