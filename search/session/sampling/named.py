"""The samplers by the names of `search.sampler`."""

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import optuna

from search.errors import Problem
from search.experiment.schema import Experiment
from search.experiment.search_config import SamplerName
from search.experiment.space.point import Point
from search.experiment.space.space import Space
from search.session.sampling.by_combination import ByCombination
from search.session.sampling.grid import Grid
from search.session.sampling.proposer import Proposer
from search.session.sampling.qmc import QuasiRandom

# Of Optuna's samplers, what comes with no other package that this one needs.
_PACKAGES = {"cmaes": "cmaes"}


def proposer_of(
    name: SamplerName,
    space: Space,
    *,
    grid_steps: int,
    startup: int,
    seed: int,
    first: int,
    running: Callable[[], list[Point]],
) -> Proposer | None:
    """What proposes the points; none where Optuna's study does, see `study_sampler`.

    Args:
        name: of the sampler.
        space: proposes points.
        grid_steps: values of a range on the grid.
        startup: number of results before a model is used.
        seed: of the sampler.
        first: number of the first trial that is not one of the space's first points.
        running: the settings of the trials that run.
    """
    if name in ("gp", "cmaes"):
        return ByCombination(space, model=name, startup=startup, seed=seed, running=running)
    if name == "qmc":
        return QuasiRandom(space, seed=seed, first=first)
    if name == "grid":
        return Grid(space, steps=grid_steps, seed=seed)
    return None


def study_sampler(name: SamplerName, *, startup: int, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of the study that keeps all trials; its args are those of `proposer_of`.

    - `tpe`: multivariate TPE in groups of conditional fields.
    - all others: independent random values, which only `random` asks for.
    """
    if name != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        # Grouping is what makes the model use conditional fields; it is marked experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            multivariate=True, group=True, n_startup_trials=startup, seed=seed
        )


def missing_packages(experiment: Experiment) -> list[Problem]:
    """What has to be installed for the sampler."""
    name = experiment.search.sampler
    if name not in _PACKAGES or find_spec(_PACKAGES[name]) is not None:
        return []
    message = (
        f"is {name}, which needs the package {_PACKAGES[name]}: pip install 'kdsearch[{name}]'"
    )
    return [Problem(key="search.sampler", message=message)]


def sampler_in_words(experiment: Experiment, space: Space) -> str:
    """What proposes the trials after the first ones."""
    search = experiment.search
    if search.sampler != "grid":
        return search.sampler
    grid = Grid(space, steps=search.grid_steps, seed=search.seed)
    first = len(space.first_points())
    return (
        f"grid of {grid.size:,} points with {search.grid_steps} values of a range, "
        f"{grid.size - grid.left} of them among the first {first}; {first + grid.left:,} trials "
        f"are the whole grid"
    )
