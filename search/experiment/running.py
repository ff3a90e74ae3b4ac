"""An experiment where it is run: the code of its plugins is in use then, and only then."""

from kdcore.contract import plugged
from kdcore.errors import ConfigError
from kdcore.methods import check_mixing
from search.errors import ExperimentError, Problem
from search.experiment.plugins import KEY
from search.experiment.schema import Experiment


def use_plugins(experiment: Experiment) -> None:
    """Runs the code of an experiment's plugins, where the experiment itself is to be run.

    Raises:
        ExperimentError: an installed package is missing, or another version; or a plugin's method
            cannot learn of mixed images.
    """
    views, key = experiment.searched_views, KEY
    try:
        plugged.use(experiment.plugins)
        key = "objective"
        if experiment.data.mixes if views is None else views.mixes:
            check_mixing(name for slot in experiment.objective for name in slot)
    except ConfigError as error:
        problem = Problem(key=key, message=str(error))
        raise ExperimentError(experiment.name, [problem]) from None


def own_data_code(experiment: Experiment) -> str:
    """The digest of the plugin that the images come from; empty for a data set of kdsearch."""
    name = experiment.data.name
    return "".join(each.digest for each in experiment.plugins if name in each.data)


def experiment_to_run(experiment_json: str) -> Experiment:
    """An experiment as it came to the process that runs a part of it; its plugins are in use."""
    experiment = Experiment.model_validate_json(experiment_json)
    use_plugins(experiment)
    return experiment
