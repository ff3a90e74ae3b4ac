"""Where the trials of a search for the front of accuracy against cost go, and what it is worth.

    python -m tests.benchmarks.front [--worlds N] [--trials N ...]

Made-up searches: three to eight students, some of which a cheaper one beats, with accuracies below
their best by a gamma distribution of a scale of their own; some settings fail outright, and poor
trials are cut early. Every way to choose the student meets the same results of the same student.
The gap is the area between the front that was found and that of all students at their best, a mean
over the costs in percentage points; its difference from taking turns has a 95 % interval. The
constants of the rule were chosen on searches 0 to 799.
"""

import argparse
import math
import random
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist, fmean, stdev

from rich.console import Console
from rich.table import Table

from search.session.sampling.front import Front

Results = Mapping[str, Sequence[float]]
Way = Callable[[Front, Results, random.Random], str]


def rule(front: Front, results: Results, chance: random.Random) -> str:
    """As searches do."""
    return front.next_student(results, {name: len(each) for name, each in results.items()})


def turns(front: Front, results: Results, chance: random.Random) -> str:
    return min(front.students, key=lambda student: len(results[student]))


def at_random(front: Front, results: Results, chance: random.Random) -> str:
    return chance.choice(front.students)


def most_accurate(front: Front, results: Results, chance: random.Random) -> str:
    """Like a search for the best student: mostly to the one that leads."""
    if chance.random() < 0.3:
        return chance.choice(front.students)
    return max(front.students, key=lambda student: max(results[student]))


def normal(front: Front, results: Results, chance: random.Random) -> str:
    """The expected improvement where a normal distribution is fitted to the better half of the
    results of each student, its spread shrunk towards all."""
    halves = {s: sorted(each)[len(each) // 2 :] for s, each in results.items()}
    means = {s: fmean(half) for s, half in halves.items()}
    squares = {s: [(each - means[s]) ** 2 for each in half] for s, half in halves.items()}
    every = [each for of_it in squares.values() for each in of_it]
    pooled = (2 * 0.02**2 + sum(every)) / (2 + len(every))
    bests = {s: max(each) for s, each in results.items()}

    def gain(student: str) -> float:
        of_it = squares[student]
        spread = math.sqrt((2 * pooled + sum(of_it)) / (2 + len(of_it)))
        drawn = NormalDist(means[student], spread)
        reached = [drawn.inv_cdf((place + 0.5) / 40) for place in range(40)]
        raised = [bests | {student: max(bests[student], each)} for each in reached]
        return fmean(map(front.hypervolume, raised)) - front.hypervolume(bests)

    return max(front.students, key=gain)


WAYS: Mapping[str, Way] = {
    "turns": turns,
    "random": at_random,
    "most accurate": most_accurate,
    "normal": normal,
    "rule": rule,
}


def gap(way: Way, seed: int, trials: int) -> float:
    """What is missing to the whole front, after so many trials a student, in percentage points."""
    chance = random.Random(seed)
    places = {f"student {n}": chance.uniform(0, 5) for n in range(chance.randint(3, 8))}
    high, span, rate = chance.uniform(0.7, 0.97), chance.uniform(0.02, 0.25), chance.uniform(0.3, 1)
    noise, shape = chance.choice((0.003, 0.02)), chance.choice((1.0, 1.5, 2.0, 3.0))
    failing = chance.uniform(0.1, 0.4)
    front = Front({student: math.exp(place) for student, place in places.items()})
    whole = {
        student: high - span * math.exp(-rate * place) + chance.gauss(0, noise)
        for student, place in places.items()
    }
    scales = {student: 0.012 * math.exp(chance.gauss(0, 0.7)) for student in places}
    draws = {student: random.Random(f"{seed} {student}") for student in places}
    results = {student: [whole[student] - 2 * scales[student]] for student in places}
    for _ in range(trials * len(places)):
        student = way(front, results, chance)
        draw, known = draws[student], sorted(results[student], reverse=True)
        reached = whole[student] - scales[student] * draw.gammavariate(shape, 1)
        if draw.random() < failing:
            reached = whole[student] - draw.uniform(0.05, 0.7)
        cut = draw.uniform(0, 0.1)
        if len(known) > 1 and reached < known[max(2, len(known) // 3) - 1]:
            reached -= cut  # it was stopped early
        results[student].append(max(0.05, reached))
    found = {student: max(each) for student, each in results.items()}
    ones = front.hypervolume(dict.fromkeys(places, 1.0))
    return 100 * (front.hypervolume(whole) - front.hypervolume(found)) / ones


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worlds", type=int, default=600)
    parser.add_argument("--trials", type=int, nargs="*", default=[4, 8, 16], help="a student")
    options = parser.parse_args()
    table = Table(*("student by", *(f"{trials} trials a student" for trials in options.trials)))
    base: list[list[float]] = []
    for name, way in WAYS.items():
        cells = []
        for place, trials in enumerate(options.trials):
            gaps = [gap(way, 1000 + world, trials) for world in range(options.worlds)]
            base += [gaps] if name == "turns" else []
            more = [mine - theirs for mine, theirs in zip(gaps, base[place], strict=True)]
            margin = 1.96 * stdev(more) / math.sqrt(len(more))
            cells.append(f"{fmean(gaps):.3f}  ({fmean(more):+.3f} ± {margin:.3f})")
        table.add_row(name, *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
