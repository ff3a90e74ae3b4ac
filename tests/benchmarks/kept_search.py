"""A search of a benchmark, which its next run does not search again."""

import search
from search.experiment.schema import Experiment
from search.record.record import SearchRecord


def kept_search(experiment: Experiment, name: str, storage: str) -> SearchRecord:
    """The search of a name, run as far as it had not been; after Ctrl-C it is not finished."""
    if name not in search.search_names(storage):
        return search.launch(experiment, name=name, storage=storage).record
    found = search.open_search(name, storage=storage)
    if found.state != "finished":
        found.resume()
    return found.record
