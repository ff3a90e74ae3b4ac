"""The front of accuracy against cost: the students that no other beats in both."""

from collections.abc import Iterable, Sequence
from typing import get_args

from kdcore.errors import did_you_mean
from kdcore.networks.cost import CostName
from search.errors import SearchError
from search.record.costs import costed_as
from search.record.record import SearchRecord, TrialRecord, place
from search.record.wording import front_in_words


def costs_of(record: SearchRecord, cost: CostName) -> dict[str, float]:
    """By student that was measured, as in `student_costs`, one figure of its cost."""
    return {student: getattr(each, cost) for student, each in record.student_costs.items()}


def front(record: SearchRecord, trials: Iterable[TrialRecord], cost: CostName) -> list[TrialRecord]:
    """The best finished trials of the students on the front, the cheapest first.

    Args:
        record: the search.
        trials: of it, that are compared: by `search.metric`, held out.
        cost: that they are compared by.
    """
    costs = costs_of(record, cost)
    best: dict[str, TrialRecord] = {}
    for trial in sorted(trials, key=place):
        key = costed_as(record, trial)
        if trial.state == "finished" and trial.score is not None and key in costs:
            best.setdefault(key, trial)
    leaders = list(best.values())
    found = pareto([(costs[key], trial.score or 0.0) for key, trial in best.items()])
    return [leaders[index] for index in found]


def front_by(record: SearchRecord, asked: bool, cost: str | None) -> CostName | None:
    """The cost of the front that is asked for; none where none is.

    Args:
        record: the search.
        asked: whether there is to be a front.
        cost: by name; none: that of `search.cost`.

    Raises:
        SearchError: there is no such cost, or no front that uses it.
    """
    if not asked and cost is not None:
        raise SearchError(
            f"cost is {cost}, but only the front uses it; leave it out, or ask for the front "
            f"(--front, front=True)"
        )
    if not asked or cost is None:
        return record.experiment.search.cost if asked else None
    names: tuple[CostName, ...] = get_args(CostName)
    for known in names:
        if known == cost:
            return known
    raise SearchError(f"no cost {cost!r}{did_you_mean(cost, names)} There are {', '.join(names)}")


def front_in_lines(record: SearchRecord) -> list[str]:
    """That a search for the front has one, and how to pick from it; nothing for other searches."""
    search = record.experiment.search
    if search.goal != "pareto":
        return []
    students = [trial.student for trial in front(record, record.trials, search.cost)]
    sought = front_in_words(record.metric, search.cost)
    return [
        f"picked as the most accurate; search.goal is pareto, and {sought} has "
        f"{', '.join(students)}:",
        f"  kdsearch leaderboard {record.name} --front    # shows it",
        f"  kdsearch best {record.name} --max-params N    # picks from it; also --max-latency-ms X",
    ]


def pareto(costs_and_accuracies: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the Pareto front, the cheapest first.

    No other point is cheaper and at least as accurate, or more accurate at the same cost. Of equal
    points, the front has one.
    """
    order = sorted(
        range(len(costs_and_accuracies)),
        key=lambda index: (costs_and_accuracies[index][0], -costs_and_accuracies[index][1]),
    )
    found: list[int] = []
    for index in order:
        if not found or costs_and_accuracies[index][1] > costs_and_accuracies[found[-1]][1]:
            found.append(index)
    return found
