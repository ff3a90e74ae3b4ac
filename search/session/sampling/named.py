"""The samplers by the names of `search.sampler`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec

import optuna

from search.errors import Problem
from search.experiment.schema import Experiment
from search.experiment.search_config import SamplerName
from search.experiment.space.point import STUDENT, Point
from search.experiment.space.space import Space
from search.record.decisions import Proposal
from search.session.sampling.by_combination import ByCombination
from search.session.sampling.fresh_study import FreshStudy
from search.session.sampling.front import TowardsFront
from search.session.sampling.grid import Grid
from search.session.sampling.proposer import Proposer
from search.session.sampling.qmc import QuasiRandom

# Of Optuna's samplers, what comes with no other package that this one needs.
_PACKAGES = {"cmaes": "cmaes"}

# Results of a student before a model is used, where the front is sought, in a short search.
_FEWEST_OF_A_STUDENT = 4


def proposer_of(
    name: SamplerName,
    space: Space,
    *,
    grid_steps: int,
    startup: int,
    seed: int,
    first: int,
    running: Callable[[], list[Point]],
    learns_from: int,
    costs: Mapping[str, float] | None = None,
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
        learns_from: the largest number of ended trials of a student, where the front is sought.
        costs: by student, where the front of accuracy against them is sought.
    """
    if costs is not None:
        share = max(_FEWEST_OF_A_STUDENT, round(startup / len(space.students)))

        def alone(student: str) -> Proposer:
            of_it = replace(space, students=(student,))
            found = proposer_of(
                name,
                of_it,
                grid_steps=grid_steps,
                startup=share,
                seed=seed,
                first=first,
                running=lambda: [each for each in running() if each[STUDENT] == student],
                learns_from=learns_from,
            )
            return found or _fresh_study(name, of_it, startup=share, seed=seed)

        samplers = {student: alone(student) for student in space.students}
        return TowardsFront(costs, samplers, learns_from=learns_from, seed=seed)
    if name in ("gp", "cmaes"):
        return ByCombination(space, model=name, startup=startup, seed=seed, running=running)
    if name == "qmc":
        return QuasiRandom(space, seed=seed, first=first)
    if name == "grid":
        return Grid(space, steps=grid_steps, seed=seed)
    return None


def _fresh_study(name: SamplerName, space: Space, *, startup: int, seed: int) -> FreshStudy:
    """Of a sampler that Optuna's study is."""
    proposal = Proposal(by="random")
    if name == "tpe":
        proposal = Proposal(by="tpe", needed=startup)
    return FreshStudy(
        space, lambda each: study_sampler(name, startup=startup, seed=each), proposal, seed
    )


def study_sampler(name: SamplerName, *, startup: int, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of the study that keeps all trials; its args are those of `proposer_of`.

    - `tpe`: TPE, of each field by the trials that have it. Optuna's multivariate TPE in groups of
      conditional fields finds nothing better here (`python -m tests.benchmarks.sampler`), and
      samples the fields of all methods for each proposal.
    - all others: independent random values, which only `random` asks for.
    """
    if name != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed)


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
