"""The keys below `search`: what proposes trials, what stops them, and their budgets."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from kdcore.networks.cost import CostName
from kdcore.training.metric import Metric
from search.experiment.closed import Closed
from search.experiment.points_file import read_points
from search.experiment.searched import Option

SamplerName = Literal["tpe", "gp", "cmaes", "random", "qmc", "grid"]
StoppingName = Literal["asha", "hyperband", "median", "none"]

# They propose the same, whatever is known of other trials.
_LEARNS_NOTHING = ("random", "qmc", "grid")

# Keys that came after version 0.1.0. At their defaults they are not written, and a rule of early
# stopping that was there before is not named beside its settings.
_LATER_KEYS = (
    "sampler",
    "grid_steps",
    "goal",
    "cost",
    "points",
    "prior",
    "stopping",
    "hyperband",
    "median",
    "budget",
)


class _Rule(Closed):
    """What all rules of early stopping have.

    Args:
        grace_epochs: no trial is stopped before this epoch; null: a third of a whole trial's,
            before which accuracies tell little, see `tests.benchmarks.searchers`.
        among: the trials that one is compared with: those of its `student`, or `all`. Null: a
            search that begins takes `student` where it has several; in a record, which then is of
            an earlier version, it means `all`.
    """

    grace_epochs: int | None = Field(None, ge=1)
    among: Literal["student", "all"] | None = None

    def first_epoch(self, epochs: int) -> int:
        """The first epoch after which a trial may be stopped.

        Args:
            epochs: of a whole trial.
        """
        return self.grace_epochs or math.ceil(epochs / 3)

    def by_student(self) -> Self:
        """The same, comparing the trials of each student where nothing else is said."""
        return self if self.among else self.model_copy(update={"among": "student"})

    @model_serializer(mode="wrap")
    def _without_what_is_not_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        if self.among is None:
            written.pop("among", None)
        return written


class Asha(_Rule):
    """Asynchronous successive halving: Li et al., MLSys 2020, arXiv:1810.05934.

    Args:
        grace_epochs, among: as in every rule.
        reduction: at each rung the best 1/reduction continue, at least two; each rung is that
            factor above the one before.
    """

    reduction: float = Field(2.0, gt=1)


class Hyperband(_Rule):
    """Brackets of successive halving, each with a later first rung: Li et al., JMLR 2018,
    arXiv:1603.06560.

    Args:
        grace_epochs: as in every rule; the first rung of the first bracket.
        among: as in every rule.
        reduction: as in `Asha`; also the factor between the first rungs of two brackets.
    """

    grace_epochs: int | None = Field(1, ge=1)
    reduction: float = Field(3.0, ge=2)


class Median(_Rule):
    """The median stopping rule: Golovin et al., KDD 2017, section 3.2.2.

    Args:
        grace_epochs, among: as in every rule.
        min_trials: number of trials that must have ended whole before any is stopped.
    """

    min_trials: int = Field(5, ge=1)


StoppingSettings = Asha | Hyperband | Median
"""The settings of a rule of early stopping."""


class AskedPoint(Closed):
    """A trial that the user asks for.

    Args:
        place: where it is written, like `points.yaml, line 3`.
        values: its settings by plain names, like `method`, `kd.temperature`, `learning_rate`.
    """

    place: str
    values: dict[str, bool | int | float | str]


class PriorPoint(Closed):
    """Settings that did well in an earlier search.

    Args:
        place: which trial of it, like `digits-1, trial 7, rank 2 of 40`.
        point: what a trial here has of them.
    """

    place: str
    point: dict[str, Option]


class SearchConfig(Closed):
    """How the space is searched.

    Args:
        trials: number of trials, including the control and the published settings.
        seed: of the sampler.
        sampler: what proposes trials after the first ones, see `search.session.sampling`.
        grid_steps: values of a range on the grid, both ends among them, even on its scale.
        goal: `best`: trials go where the most accurate student may be found; `pareto`: to the
            students with which the front of accuracy against cost can move most.
        cost: of a student, for that front.
        points: a file of trials that run after the controls; a record keeps what it says.
        prior: names of earlier searches, on whatever data, whose best settings run after the
            published ones, or `catalogue`, for those that come with kdsearch; a record keeps the
            settings.
        stopping: the rule of early stopping, whose settings stand beside it; `none` runs every
            trial to its end.
        asha: settings of that rule; null alone also means `stopping: none`.
        hyperband: settings of that rule.
        median: settings of that rule.
        concurrent_trials: largest number of trials at a time; null: as many as the cluster holds.
        hours: wall-clock hours for the trials, in all sessions together; null: no limit.
        gpu_hours: GPU-hours of the trials; null: no limit.
        cpu_hours: core-hours of the trials, where they use no GPU; null: no limit.
        budget: money for the trials, by `prices` and in their currency; null: no limit.
        warm_start: names of earlier searches on the same data. The sampler learns from their
            trials, where these fit into the space.
        metric: what trials are ranked and stopped by, on the held-out images: `accuracy`,
            `balanced_accuracy` (the mean of the classes' recalls) or, from 20 classes on, `top5`.
        combinations: candidates of different slots that also run together at the start, at their
            published settings, after each has run alone.
        teacher_must_lead: end the search once a control has finished that has passed the teacher,
            or is within noise of it: then there may be nothing to teach.
    """

    trials: int = Field(ge=1)
    seed: int = Field(0, ge=0, lt=2**32)
    sampler: SamplerName = "tpe"
    grid_steps: int = Field(3, ge=2)
    goal: Literal["best", "pareto"] = "best"
    cost: CostName = "parameters"
    points: tuple[AskedPoint, ...] = ()
    prior: tuple[PriorPoint | str, ...] = ()
    stopping: StoppingName = "asha"
    asha: Asha | None = Asha()
    hyperband: Hyperband | None = None
    median: Median | None = None
    concurrent_trials: int | None = Field(None, ge=1)
    hours: float | None = Field(None, gt=0)
    gpu_hours: float | None = Field(None, gt=0)
    cpu_hours: float | None = Field(None, gt=0)
    budget: float | None = Field(None, gt=0)
    warm_start: tuple[str, ...] = ()
    metric: Metric = "accuracy"
    combinations: tuple[tuple[str, ...], ...] = ()
    teacher_must_lead: bool = False

    @property
    def rule(self) -> StoppingSettings | None:
        """The settings of the rule of early stopping; none where every trial runs to its end."""
        return self._settings.get(self.stopping)

    def stopping_by_student(self) -> Self:
        """The same, comparing the trials of each student where nothing else is said."""
        if self.rule is None:
            return self
        return self.model_copy(update={self.stopping: self.rule.by_student()})

    @property
    def _settings(self) -> dict[str, StoppingSettings | None]:
        return {"asha": self.asha, "hyperband": self.hyperband, "median": self.median}

    @model_validator(mode="before")
    @classmethod
    def _rule_by_name(cls, value: Any) -> Any:
        """Names the rule where only `asha` is written, and gives the named one its defaults."""
        if not isinstance(value, Mapping):
            return value  # which pydantic refuses
        keys = dict(value)
        is_off = "asha" in keys and keys["asha"] is None
        named = keys.setdefault("stopping", "none" if is_off else "asha")
        if named != "asha":
            keys.setdefault("asha", None)
        if named in ("hyperband", "median") and keys.get(named) is None:
            keys[named] = {}
        return keys

    @field_validator("points", mode="before")
    @classmethod
    def _from_a_file(cls, points: Any) -> Any:
        return read_points(Path(points).expanduser()) if isinstance(points, str) else points

    @field_validator("prior", mode="before")
    @classmethod
    def _one_or_several(cls, prior: Any) -> Any:
        return [prior] if isinstance(prior, str) else prior

    @model_validator(mode="after")
    def _settings_of_the_rule_alone(self) -> Self:
        for rule, settings in self._settings.items():
            if rule == self.stopping and settings is None:
                raise ValueError(f"stopping is {rule}, but {rule} is null; leave one of them out")
            if rule != self.stopping and settings is not None:
                raise ValueError(
                    f"{rule} is given, but stopping is {self.stopping}, which does not use it; "
                    f"leave {rule} out, or set it to null"
                )
        return self

    @model_validator(mode="after")
    def _only_what_the_sampler_uses(self) -> Self:
        if "grid_steps" in self.model_fields_set and self.sampler != "grid":
            raise ValueError(
                f"grid_steps is {self.grid_steps}, but only sampler grid uses it, and sampler is "
                f"{self.sampler}; leave it out"
            )
        if self.goal == "pareto" and self.sampler == "grid":
            raise ValueError(
                "goal is pareto, but sampler grid has a fixed set of points, whatever the front "
                "is; use tpe, gp, cmaes, random or qmc, or leave goal out"
            )
        if "cost" in self.model_fields_set and self.goal != "pareto":
            raise ValueError(
                f"cost is {self.cost}, but only goal pareto uses it, and goal is {self.goal}; "
                f"leave it out"
            )
        if self.warm_start and self.sampler in _LEARNS_NOTHING:
            raise ValueError(
                f"warm_start is {list(self.warm_start)}, but sampler {self.sampler} learns from "
                f"no trial; leave it out, or use tpe, gp or cmaes"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        named = {"stopping"} if self.stopping in ("asha", "none") else set()
        return {
            key: value
            for key, value in written.items()
            if key not in _LATER_KEYS
            or (key not in named and getattr(self, key) != fields[key].default)
        }
