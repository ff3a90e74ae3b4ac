"""Published settings, as a point of the search space names them."""

from collections.abc import Mapping

from kdcore.contract.published import Benchmark, Published
from kdcore.data.config import Judge
from kdcore.methods import CATALOGUE
from search.experiment.schema import Experiment
from search.experiment.searched import Option

UNLESS_NAMED: Mapping[str, Option] = {"cross_entropy": 1.0}
"""What a point means that does not name a setting, where that is not the default of today: in
version 0.1.0 the factor of cross-entropy was 1."""


def published_settings(
    method: str, benchmark: Benchmark | None, *, judge: Judge | None = None
) -> dict[str, Option]:
    """All settings of a method that are published for a benchmark.

    Args:
        method: its name.
        benchmark: none: as in searches of version 0.1.0.
        judge: of the data; with one, there is no cross-entropy.
    """
    params, without_labels = CATALOGUE[method].Params, dict[str, Option]()
    if judge is not None and CATALOGUE[method].needs:  # the control keeps its cross-entropy
        without_labels["cross_entropy"] = 0.0
    if benchmark is None:
        return {**dict(params()), **UNLESS_NAMED, **without_labels}
    settings = params.model_validate(CATALOGUE[method].published_on(benchmark).settings)
    return {**dict(settings), **without_labels}


def accompanied(experiment: Experiment) -> dict[str, Published]:
    """The candidates that are published beside other methods, with what is published of them."""
    if experiment.published is None:
        return {}
    published = {
        name: CATALOGUE[name].published_on(experiment.published)
        for slot in experiment.objective
        for name in slot
        if name in CATALOGUE  # in a record, the code of a plugin is not run
    }
    return {name: each for name, each in published.items() if each.beside}
