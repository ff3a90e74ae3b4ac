"""`kdsearch explain`: why a trial was proposed, and why it was stopped or not."""

from typing import Any

import pytest
from typer.testing import CliRunner

from search.cli.app import app
from search.errors import SearchError
from search.experiment.space.point import IS_CONTROL
from search.record.decisions import Proposal, Verdict
from search.record.record import SearchRecord, TrialRecord
from search.record.storage import Storage
from search.report.explanation import explanation
from search.session.search import Search
from tests.cases import Case
from tests.records import write_record
from tests.synthetic import finished_search, made_up_search

EPOCHS = 9


def trial(number: int, state: Any, done: int, **fields: Any) -> TrialRecord:
    control = number == 0
    method = "none" if control else "kd"
    values: dict[str, Any] = {
        "number": number,
        "student": "resnet8",
        "point": {"objective.1": method} | ({IS_CONTROL: True} if control else {}),
        "objective": "none" if control else "kd(weight=1)",
        "state": state,
        "epochs": EPOCHS,
        "epochs_done": done,
        "accuracies": (0.5,) * done,
        "heldout_accuracy": 0.5 if done else None,
    }
    return TrialRecord(**values | fields)


def search_of(*trials: TrialRecord, keys: Any = None, **search: Any) -> SearchRecord:
    content = {
        "training": {"epochs": EPOCHS},
        "search": {"trials": 20, **search},
        "published": "cifar",
        **(keys or {}),
    }
    return finished_search(trials, content)


def test_where_a_trial_came_from_is_told() -> None:
    points = [{"place": "points.yaml, line 3", "values": {"method": "kd"}}]
    for number, proposal, words in (
        (0, Proposal(by="control"), "It is the control, which every search begins with"),
        (1, Proposal(by="asked"), "It was asked for in search.points: points.yaml, line 3."),
        (2, Proposal(by="published"), "It has the settings published for cifar, which every"),
        (
            3,
            Proposal(by="tpe", results=2, needed=5),
            "drawn at random: TPE begins with 5 results, and there were 2.",
        ),
        (4, Proposal(by="tpe", results=12, needed=5), "TPE proposed it, from 12 trials with a res"),
        (5, Proposal(by="random"), "search.sampler is random"),
        (6, Proposal(by="qmc"), "the next point of a quasi-random sequence"),
        (7, Proposal(by="grid"), "a point of the grid"),
        (
            8,
            Proposal(by="gp", results=12, needed=5, alike=6, alike_needed=4),
            "Student and methods were chosen by TPE from 12 trials with a result; the settings are "
            "by a Gaussian process, from 6 trials of the same student and methods.",
        ),
        (
            9,
            Proposal(by="cmaes", results=2, needed=5, alike=0, alike_needed=1),
            "at random: TPE begins with 5 results, and there were 2; the settings are random: "
            "CMA-ES begins with 1 trials of the same student and methods, and there were 0.",
        ),
        (10, Proposal(by="gp", redrawn=True), "search.sampler, which is gp, proposed had been"),
    ):
        with Case(number):
            record = search_of(trial(number, "finished", 9, proposal=proposal), points=points)
            head, why, *_ = explanation(record, number)
            assert head.startswith(f"Trial {number} of task-1: ")
            assert words in why


def test_what_was_to_be_expected_is_told() -> None:
    def tried(number: int, weight: float, layers: str, accuracy: float, **more: Any) -> TrialRecord:
        point = {"objective.1": "at", "at.weight": weight, "at.layers": layers}
        fields = {"objective": f"at(weight={weight})", "heldout_accuracy": accuracy}
        return trial(number, "finished", 9, point=point, **fields | more)

    modelled = Proposal(by="tpe", results=5, needed=3)
    earlier = [
        trial(0, "finished", 9, heldout_accuracy=0.99),  # the control has no place
        tried(1, 1, "all", 0.6),
        tried(2, 10, "all", 0.9),
        tried(3, 1000, "all", 0.8),
        tried(4, 30, "last", 0.7),  # near by its weight, but with other layers
        trial(5, "finished", 9, heldout_accuracy=0.95),  # another method has one
        trial(6, "failed", 0),
    ]
    record = search_of(*earlier, tried(7, 100, "all", 0.85, proposal=modelled))
    # In the logarithm 10 and 1000 are equally far from 100, and 1 is twice as far; other layers are
    # farther than that.
    assert explanation(record, 7)[2] == (
        "Its nearest neighbours of the same student and methods, trials 2, 3, 1, are 2nd, 3rd, 5th "
        "of the 5 before it, so place 3.3 was to be expected; it came 3rd."
    )
    for number, proposal in ((7, Proposal(by="random")), (3, modelled)):  # no model; too few alike
        with Case(number, proposal):
            told = search_of(*earlier[:number], tried(number, 100, "all", 0.85, proposal=proposal))
            assert not any("neighbours" in line for line in explanation(told, number))
    running = tried(7, 100, "all", 0.85, proposal=modelled).model_copy(
        update={"state": "running", "heldout_accuracy": None, "epochs_done": 0}
    )
    assert explanation(search_of(*earlier, running), 7)[2].endswith("was to be expected.")
    # In a search for the front, a better trial of another student takes no place.
    better = earlier[5].model_copy(update={"student": "resnet14"})
    trials = (*earlier[:5], better, tried(7, 100, "all", 0.85, proposal=modelled))
    goal = {"goal": "pareto", "keys": {"student": ["resnet8", "resnet14"]}}
    told = explanation(search_of(*trials, **goal), 7)[2]
    assert "are 1st, 2nd, 4th of the 4 of this student before it" in told


def test_of_a_search_for_the_front_it_is_told_that_the_student_was_chosen_first() -> None:
    several = {"student": ["resnet8", "resnet14"]}
    first = "with which the front of held-out accuracy against milliseconds for one image was "
    for proposal, words in (
        (Proposal(by="random"), "Its settings are random: search.sampler is random."),
        (
            Proposal(by="tpe", results=2, needed=4),
            "at random: TPE begins with 4 results of this student, and there were 2.",
        ),
        (
            Proposal(by="tpe", results=9, needed=4),
            "TPE proposed it, from 9 trials of this student with a result.",
        ),
        (
            Proposal(by="gp", results=9, needed=4, alike=6, alike_needed=4),
            "Methods were chosen by TPE from 9 trials of this student with a result; the settings",
        ),
    ):
        goal = {"goal": "pareto", "cost": "latency_ms", "sampler": proposal.by}
        one = trial(9, "finished", 9, proposal=proposal)
        with Case(proposal):
            why = explanation(search_of(one, keys=several, **goal), 9)[1]
            assert first in why
            assert words in why
    control = trial(0, "finished", 9, proposal=Proposal(by="control"))
    goal = {"goal": "pareto"}
    assert "front" not in explanation(search_of(control, keys=several, **goal), 0)[1]


def test_what_was_decided_is_told() -> None:
    on = Verdict(epoch=1, stops=False, rung=1, place=2, of=7, places=2)
    off = Verdict(epoch=3, stops=True, rung=3, place=11, of=12, places=4)
    late = Verdict(epoch=2, stops=True, rung=1, place=3, of=3, places=2)
    middle = Verdict(epoch=4, stops=True, of=5, best=0.5, median=0.617)
    for search, one, words in (
        (
            {},
            trial(4, "stopped", 3, verdicts=(on, off)),
            [
                "At the rung of epoch 1 it was 2nd of 7, where the best 2 go on, so it went on.",
                "At the rung of epoch 3 it was 11th of 12, where the best 4 go on, so it was stopp",
                "It was stopped after epoch 3 of 9; its best held-out accuracy is 50.00 %.",
            ],
        ),
        (
            {},
            trial(4, "stopped", 2, verdicts=(late,)),
            [
                "After epoch 2 more trials had come to the rung of epoch 1: it was 3rd of 3 there, "
                "where 2 places go on by then, so it was stopped.",
                "It was stopped after epoch 2 of 9",
            ],
        ),
        (
            {"stopping": "hyperband"},
            trial(0, "finished", 9),
            ["Controls are not stopped early.", "It ran to its end, epoch 9 of 9"],
        ),
        (
            {"stopping": "hyperband"},
            trial(1, "stopped", 1, verdicts=(off,)),
            ["It is in bracket 2 of 3, where trials are compared from epoch 3 on.", "", ""],
        ),
        (
            {"stopping": "median"},
            trial(4, "stopped", 4, verdicts=(middle,)),
            [
                "After epoch 4 its best accuracy so far, 50.00 %, was below 61.70 %, the median of "
                "the running averages of the 5 whole trials, so it was stopped.",
                "",
            ],
        ),
        (
            {"stopping": "median", "median": {"grace_epochs": 2}},
            trial(4, "finished", 9),
            [
                "never fell below the median of the running averages of whole trials, which counts "
                "from epoch 2 on, once there are 5.",
                "",
            ],
        ),
        ({"stopping": "none"}, trial(4, "finished", 9), ["search.stopping is none", ""]),
        (
            {},
            trial(4, "failed", 1, reason="kd is not finite"),
            ["It failed after epoch 1 of 9: kd"],
        ),
        (
            {},
            trial(4, "interrupted", 0),
            ["cut off after epoch 0 of 9; kdsearch resume task-1 con"],
        ),
        ({}, trial(4, "running", 2, epochs_on_top=1), ["of which 1 preparatory ones come before"]),
    ):
        with Case(search, one.state, words):
            told = explanation(search_of(one, **search), one.number)[2:]
            assert len(told) == len(words)
            for line, expected in zip(told, words, strict=True):
                assert expected in line


def test_among_which_trials_a_place_was_counted_is_told() -> None:
    at_rung = Verdict(epoch=1, stops=False, rung=1, place=2, of=7, places=2)
    middle = Verdict(epoch=4, stops=True, of=5, best=0.5, median=0.617)
    several = {"student": ["resnet8", "resnet14"]}
    for rule, verdict, words in (
        ({"asha": {"among": "student"}}, at_rung, "it was 2nd of 7 trials of resnet8, where"),
        ({"asha": {"among": "all"}}, at_rung, "it was 2nd of 7 trials of all students, where"),
        ({}, at_rung, "it was 2nd of 7 trials of all students, where"),  # an earlier version
        (
            {"stopping": "median", "median": {"among": "student"}},
            middle,
            "of the 5 whole trials of resnet8, so",
        ),
    ):
        one = trial(4, "stopped", 4, verdicts=(verdict,))
        with Case(rule):
            assert words in explanation(search_of(one, **rule, keys=several), 4)[2]


def test_a_record_of_an_earlier_version_is_explained_as_far_as_it_tells() -> None:
    record = made_up_search(30, grace_epochs=4)
    assert all(each.proposal is None and not each.verdicts for each in record.trials)
    assert "It is the control" in explanation(record, 0)[1]
    assert "published settings" in explanation(record, 1)[1]
    assert "The sampler proposed it" in explanation(record, 29)[1]
    stopped = [each for each in record.trials if each.state == "stopped"]
    assert stopped
    for each in stopped:
        text = "\n".join(explanation(record, each.number))
        assert (
            "does not tell what ASHA knew when it stopped the trial. By all that is known" in text
        )
        assert "at the rung of epoch" in text
    finished = next(t for t in record.trials if t.state == "finished" and not t.is_control)
    assert not any("rung" in line for line in explanation(record, finished.number))


def test_the_command_and_the_interface_say_the_same(tmp_path: Any) -> None:
    storage = Storage(str(tmp_path))
    record = write_record(storage, made_up_search(8))
    text = Search(record, storage).explain(3)
    assert text.splitlines() == explanation(record, 3)
    told = CliRunner().invoke(app, ["explain", "made-up-1", "3", "--storage", storage.uri])
    assert (told.exit_code, told.output) == (0, f"{text}\n")
    with pytest.raises(SearchError, match="made-up-1 has no trial 9; it has 0 to 7"):
        Search(record, storage).explain(9)
    with pytest.raises(SearchError, match="has no trial 0; it has none"):
        explanation(finished_search(()), 0)
