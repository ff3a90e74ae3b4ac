"""The trial that a point of the space describes."""

from kdcore import DataConfig, TermConfig, TrialConfig
from search.experiment.schema import CONTROL, Experiment
from search.experiment.space.point import STUDENT, TEACHER, TRAINING, VIEWS, Point, plain_name, slot
from search.experiment.space.published import UNLESS_NAMED
from search.experiment.views import with_augmentation


def epochs_on_top(experiment: Experiment, point: Point) -> int:
    """Epochs of a trial's preparatory stages that come on top of `training.epochs`."""
    if not experiment.training.preparation_on_top:
        return 0
    return trial_config(experiment, point).epochs_on_top


def trial_config(experiment: Experiment, point: Point) -> TrialConfig:
    """The trial that a point describes; a control has the first teacher, which it does not need."""
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
    recipe = {
        key.removeprefix(TRAINING): value
        for key, value in point.items()
        if key.startswith(TRAINING)
    }
    data = _data(experiment, point)
    return TrialConfig(
        data=data,
        teacher=experiment.teacher_configs[point.get(TEACHER, experiment.teachers[0])],
        student=experiment.student_configs[point.get(STUDENT, experiment.students[0])],
        objective=tuple(terms),
        training=experiment.training.at(recipe),
        seed=experiment.seed,
        cache=experiment.cache,
        metric=experiment.search.metric,
        teacher_data=None if data == experiment.data else experiment.data,
    )


def _data(experiment: Experiment, point: Point) -> DataConfig:
    """The images as the trial sees them; the teacher learned from those of the first trials."""
    if experiment.searched_views is None:
        return experiment.data
    chosen = {
        key.removeprefix(VIEWS).removeprefix("."): value
        for key, value in point.items()
        if key.startswith(VIEWS)
    }
    return with_augmentation(experiment.data, experiment.searched_views.at(chosen))
