"""The trial that a point of the space describes."""

from kdcore import Recipe, TermConfig, TrialConfig
from search.experiment.schema import CONTROL, Experiment
from search.experiment.space.point import LEARNING_RATE, STUDENT, Point, plain_name, slot
from search.experiment.space.published import UNLESS_NAMED


def epochs_on_top(experiment: Experiment, point: Point) -> int:
    """Epochs of a trial's preparatory stages that come on top of `training.epochs`."""
    if not experiment.training.preparation_on_top:
        return 0
    return trial_config(experiment, point).epochs_on_top


def trial_config(experiment: Experiment, point: Point) -> TrialConfig:
    """The trial that a point describes."""
    terms = []
    for number in range(1, len(experiment.objective) + 1):
        method = point[slot(number)]
        if method != CONTROL:
            prefix = f"{method}."
            named = {
                plain_name(key).removeprefix(prefix): value
                for key, value in point.items()
                if key.startswith(prefix)
            }
            params = {**UNLESS_NAMED, **named}
            terms.append(TermConfig.model_validate({"method": method, "params": params}))
    recipe = experiment.training.model_dump()
    if LEARNING_RATE in point:
        recipe["learning_rate"] = point[LEARNING_RATE]
    return TrialConfig(
        data=experiment.data,
        teacher=experiment.teacher,
        student=experiment.student_configs[point.get(STUDENT, experiment.students[0])],
        objective=tuple(terms),
        training=Recipe.model_validate(recipe),
        seed=experiment.seed,
        cache=experiment.cache,
        metric=experiment.search.metric,
    )
