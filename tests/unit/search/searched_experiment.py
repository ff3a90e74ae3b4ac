"""What tests ask of an experiment whose recipe or views are searched."""

import json

import optuna
import yaml
from optuna.trial import TrialState

from search.experiment.reading import parse_experiment
from search.experiment.schema import Experiment
from search.experiment.space.point import Point
from search.experiment.space.shared import shared_fields
from search.experiment.space.space import Space


def space_of(experiment: Experiment) -> Space:
    """Its space, with methods that have no settings."""
    fields = {("resnet8", "resnet20", method): () for method in experiment.objective[0]}
    networks = ("resnet8",), ("resnet20",)
    return Space(*networks, experiment.objective, fields, shared_fields(experiment))


def sampled(experiment: Experiment, count: int = 60) -> list[Point]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space, found = space_of(experiment), []
    for point in space.first_points():
        study.enqueue_trial(point)
    for _ in range(count):
        trial = study.ask()
        found.append(space.propose(trial))
        study.tell(trial, state=TrialState.FAIL)
    return found


def stored_again(experiment: Experiment) -> Experiment:
    """As a later process reads it."""
    text = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)
    read = parse_experiment(yaml.safe_load(text), "")
    assert read == experiment
    assert shared_fields(read) == shared_fields(experiment)
    assert parse_experiment(json.loads(experiment.model_dump_json()), "") == experiment
    assert experiment.model_copy(update={"seed": 3}).searched_views == experiment.searched_views
    return read
