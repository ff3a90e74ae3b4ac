"""Which student comes next, where the front of accuracy against cost is sought.

The front is a staircase over the logarithm of the cost: at each cost the best accuracy of the
students that cost no more. Its hypervolume is the area below. As Emmerich et al., IEEE TEC 2006, do
for points, the rule expects for each student by how much one more trial would enlarge that area,
and takes the student with most.

A trial is expected to beat the best of its student with probability 1 / (n + 1) after n trials: of
n + 1 draws from whatever distribution, each is as likely to be the largest. The excess is taken to
have a heavy tail, a Lomax distribution of shape 2, since a few results say little of it: of mean m,
it is m^2 / (m + x) above a level that is x higher than the best. The mean is that of the better
half of the student's results over the next one below, drawn towards the mean of all students while
there are few. So the steps of the staircase get trials by their width and by how much results
scatter, every further trial counts less, and a student whom a cheaper one beats gets few.

`python -m tests.benchmarks.front` compares it with taking turns, and with what is more usual: a
normal distribution that is fitted to the results of a student does not know that records get rarer,
stays with one student, and is worse than taking turns. Constants and shape were chosen on other
made-up searches than those that it shows.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from optuna.trial import FrozenTrial

from search.experiment.space.point import STUDENT, Point
from search.record.decisions import Proposal
from search.session.sampling.proposer import Known, Proposer, seed_of, with_fields
from search.session.sampling.thinning import thinned

# Before anything is known, results scatter by this share, which counts as one excess.
_USUAL_EXCESS = 0.02

# The mean excess of all students counts as so many of each.
_SHRINKAGE = 12

# A student without any result goes first, but not for ever: its trials may fail.
_TRIES = 3


class Front:
    """The front of accuracy against cost, and what may move it.

    Args:
        costs: by student, > 0.
    """

    def __init__(self, costs: Mapping[str, float]) -> None:
        self.students = sorted(costs, key=lambda student: (costs[student], student))
        places = [math.log(costs[student]) for student in self.students]
        steps = [after - before for before, after in pairwise(places)]
        # The step of the dearest is as wide as the mean of the others.
        self._widths = [*steps, math.fsum(steps) / len(steps) if places[0] < places[-1] else 1.0]

    def hypervolume(self, bests: Mapping[str, float]) -> float:
        """The area below the front.

        Args:
            bests: by student, its best accuracy; without one it adds nothing.
        """
        levels = self._levels(bests)
        return math.fsum(w * level for w, level in zip(self._widths, levels, strict=True))

    def expected_gains(
        self, results: Mapping[str, Sequence[float]], trials: Mapping[str, int]
    ) -> dict[str, float]:
        """By student with a result, by how much one more trial is expected to enlarge the area.

        Args:
            results: by student, the best accuracies of its trials, from 0 to 1.
            trials: by student, number of its trials, with those that run and those that failed.
        """
        bests = {student: max(of_it) for student, of_it in results.items() if of_it}
        levels = self._levels(bests)
        excesses = {student: _excesses(results[student]) for student in bests}
        every = [each for of_it in excesses.values() for each in of_it]
        usual = (_USUAL_EXCESS + math.fsum(every)) / (1 + len(every))
        gains = {}
        for place, student in enumerate(self.students):
            if student not in bests:
                continue
            own = excesses[student]
            mean = (_SHRINKAGE * usual + math.fsum(own)) / (_SHRINKAGE + len(own))
            above = math.fsum(
                width * mean**2 / (mean + level - bests[student])
                for width, level in zip(self._widths[place:], levels[place:], strict=True)
            )
            gains[student] = above / (max(trials[student], len(results[student])) + 1)
        return gains

    def next_student(
        self, results: Mapping[str, Sequence[float]], trials: Mapping[str, int]
    ) -> str:
        """The student of the next trial; the arguments are those of `expected_gains`."""
        gains = self.expected_gains(results, trials)

        def order(student: str) -> tuple[float, int]:
            untried = math.inf if trials[student] < _TRIES else 0.0
            return gains.get(student, untried), -trials[student]

        return max(self.students, key=order)  # the cheapest of equal ones

    def _levels(self, bests: Mapping[str, float]) -> list[float]:
        """The front at the cost of each student, the cheapest first."""
        levels, level = [], 0.0
        for student in self.students:
            level = max(level, bests.get(student, 0.0))
            levels.append(level)
        return levels


def _excesses(results: Sequence[float]) -> list[float]:
    """What each of the better half has more than the best of the others."""
    ordered = sorted(results, reverse=True)
    half = len(ordered) // 2
    return [each - ordered[half] for each in ordered[:half]]


class TowardsFront:
    """For each trial first the student, by the front, then the rest, by that student's own sampler.

    The sampler learns from the trials of that student alone: what is good for another may be poor
    for it. What is proposed follows from the trials that have ended, from the number of trials of
    each student, and from the seed.

    Args:
        costs: by student, > 0.
        samplers: by student, a sampler of the space in which that student is the only one.
        learns_from: the largest number of ended trials that one learns from.
        seed: of the part of more.
    """

    def __init__(
        self,
        costs: Mapping[str, float],
        samplers: Mapping[str, Proposer],
        *,
        learns_from: int,
        seed: int,
    ) -> None:
        self._front = Front({student: costs[student] for student in samplers})
        self._samplers, self._learns_from, self._seed = samplers, learns_from, seed

    def propose(
        self, number: int, ended: Sequence[FrozenTrial], known: Known
    ) -> tuple[Point, Proposal]:
        """See `Proposer`; all trials that have ended are to be given."""
        of_each: dict[str, list[FrozenTrial]] = {student: [] for student in self._samplers}
        for trial in ended:
            of_each[trial.params[STUDENT]].append(trial)
        results = {student: [t.value or 0.0 for t in of_it] for student, of_it in of_each.items()}
        trials = Counter(str(dict(settings)[STUDENT]) for settings in known)
        student = self._front.next_student(results, trials)
        chance = random.Random(seed_of(self._seed, number))
        own = thinned(of_each[student], self._learns_from, chance)
        alone = [with_fields(t, t.params.keys() - {STUDENT}, t.state) for t in own]
        chosen = (STUDENT, student)
        its_own = {settings - {chosen} for settings in known if chosen in settings}
        point, proposal = self._samplers[student].propose(number, alone, its_own)
        return {STUDENT: student, **point}, proposal
