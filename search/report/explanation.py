"""Why a trial was proposed, and why it was stopped or not, in words."""

from kdcore.training.metric import Metric
from search.errors import SearchError
from search.experiment.search_config import Hyperband, Median, PriorPoint
from search.experiment.space.point import settings_of
from search.record.decisions import Proposal, Verdict
from search.record.record import SearchRecord, TrialRecord
from search.record.wording import METRIC_WORDS, front_in_words, percent
from search.report.expectation import expectation
from search.stopping.hyperband import Brackets
from search.stopping.named import IN_WORDS, rule_of

_MODELS = {"gp": "a Gaussian process", "cmaes": "CMA-ES"}

_CONTROL = (
    "It is the control, which every search begins with: the student without distillation, against "
    "which gains are measured."
)
_WITHOUT_MODEL = {
    "random": "Its settings are random: search.sampler is random.",
    "qmc": "It is the next point of a quasi-random sequence, which fills the space evenly and "
    "learns from no trial: search.sampler is qmc.",
    "grid": "It is a point of the grid, next in its random order: search.sampler is grid.",
}


def explanation(record: SearchRecord, number: int) -> list[str]:
    """What is known of a trial's beginning and end, a line each.

    Args:
        record: the search.
        number: of the trial.

    Raises:
        SearchError: there is no such trial.
    """
    trials = {trial.number: trial for trial in record.trials}
    if number not in trials:
        there = f"it has {min(trials)} to {max(trials)}" if trials else "it has none"
        raise SearchError(f"{record.name} has no trial {number}; {there}")
    trial = trials[number]
    return [
        f"Trial {number} of {record.name}: {record.words(trial)}.",
        _proposed(record, trial),
        *_expected(record, trial),
        *_judged(record, trial),
        _ended(record, trial),
    ]


def _proposed(record: SearchRecord, trial: TrialRecord) -> str:
    """Why it was proposed."""
    search, proposal = record.experiment.search, trial.proposal
    if proposal is None:
        return _proposed_before(record, trial)
    if first := _first(record, trial, proposal.by):
        return first
    if search.goal == "best":
        return _settings(record, proposal)
    front = front_in_words(search.metric, search.cost)
    return (
        f"Its student was chosen first, as that with which {front} was expected to move most. "
        f"{_settings(record, proposal, ' of this student')}"
    )


def _first(record: SearchRecord, trial: TrialRecord, by: str) -> str:
    """Why it is one of the first trials; empty if it is none."""
    search, images = record.experiment.search, record.experiment.published
    match by:
        case "control":
            return _CONTROL
        case "asked":
            asked = search.points[trial.number - len(record.experiment.students)]
            return f"It was asked for in search.points: {asked.place}."
        case "published":
            of = f"settings published for {images}" if images else "published settings"
            return f"It has the {of}, which every search tries before its sampler."
        case "prior":
            return f"Its settings did well elsewhere: {_prior_place(record, trial)} (search.prior)."
        case _:
            return ""


def _prior_place(record: SearchRecord, trial: TrialRecord) -> str:
    """Where a point of `search.prior` comes from."""
    points = (each for each in record.experiment.search.prior if isinstance(each, PriorPoint))
    own = settings_of(trial.point)
    return next(each.place for each in points if settings_of(each.point) == own)


def _settings(record: SearchRecord, proposal: Proposal, whose: str = "") -> str:
    """Where the settings of a sampled trial came from; with the trials that a model had, where
    these are not all."""
    if proposal.redrawn:
        return (
            f"Its settings are random: what search.sampler, which is {proposal.by}, proposed had "
            f"been tried before."
        )
    return _WITHOUT_MODEL.get(proposal.by) or _modelled(record, proposal, whose)


def _modelled(record: SearchRecord, proposal: Proposal, whose: str) -> str:
    """What a model had learned from."""
    results, needed = proposal.results or 0, proposal.needed or 0
    drawn = f"drawn at random: TPE begins with {needed} results{whose}, and there were {results}"
    learned = f"from {results} trials{whose} with a result"
    if proposal.by == "tpe":
        if results < needed:
            return f"Its settings were {drawn}."
        return f"TPE proposed it, {learned}."
    alike, model = proposal.alike or 0, _MODELS[proposal.by]
    chosen = drawn if results < needed else f"chosen by TPE {learned}"
    teacher = ", teacher" if len(record.experiment.teachers) > 1 else ""
    settings = f"by {model}, from {alike} trials of the same student{teacher} and methods"
    if alike < (proposal.alike_needed or 0):
        settings = (
            f"random: {model} begins with {proposal.alike_needed} trials of the same "
            f"student{teacher} and methods, and there were {alike}"
        )
    what = f"student{teacher} and methods"
    if whose:  # it was chosen before
        what = "teacher and methods" if teacher else "methods"
    return f"{what.capitalize()} were {chosen}; the settings are {settings}."


def _expected(record: SearchRecord, trial: TrialRecord) -> list[str]:
    """What a sampler that learns had reason to expect of its proposal."""
    if trial.proposal is None or trial.proposal.results is None:
        return []
    found = expectation(record, trial)
    if found is None:
        return []
    numbers = ", ".join(str(number) for number, _ in found.neighbours)
    places = ", ".join(_ordinal(place) for _, place in found.neighbours)
    came = "" if found.came is None else f"; it came {_ordinal(found.came)}"
    whose = " of this student" if record.experiment.search.goal == "pareto" else ""
    return [
        f"Its nearest neighbours of the same student and methods, trials {numbers}, are {places} "
        f"of the {found.of}{whose} before it, so place {found.place:.2g} was to be expected{came}."
    ]


def _proposed_before(record: SearchRecord, trial: TrialRecord) -> str:
    """Why it was proposed in an earlier version, as far as its number tells."""
    from search.experiment.space.space import published_trials

    if trial.number < len(record.experiment.students):
        by = "control"
    elif trial.number in published_trials(record.experiment):
        by = "published"
    else:
        return "The sampler proposed it; this version of the record does not tell from what."
    return _proposed(record, trial.model_copy(update={"proposal": Proposal(by=by)}))


def _judged(record: SearchRecord, trial: TrialRecord) -> list[str]:
    """What early stopping decided."""
    experiment, rule = record.experiment, record.experiment.search.rule
    if rule is None:
        return ["No trial of this search is stopped early: search.stopping is none."]
    if trial.is_control:
        return ["Controls are not stopped early."]
    lines = []
    if isinstance(rule, Hyperband):
        lines.append(_bracket(Brackets(rule, epochs=experiment.training.epochs), trial.number))
    whose = _whose(record, trial)
    lines += [_in_words(verdict, record.metric, whose) for verdict in trial.verdicts]
    if isinstance(rule, Median) and trial.state == "finished":
        first = rule.first_epoch(experiment.training.epochs)
        lines.append(
            f"Its best so far never fell below the median of the running averages of whole trials"
            f"{whose}, which counts from epoch {first} on, once there are "
            f"{rule.min_trials}."
        )
    elif trial.state == "stopped" and not trial.verdicts:
        lines += _by_now(record, trial)
    return lines


def _whose(record: SearchRecord, trial: TrialRecord) -> str:
    """Of which students the trials are that it was compared with; empty where there is one."""
    rule, several = record.experiment.search.rule, len(record.experiment.students) > 1
    if rule is None or not several:
        return ""
    return f" of {trial.student}" if rule.among == "student" else " of all students"


def _bracket(brackets: Brackets, number: int) -> str:
    place = brackets.bracket_of(number)
    rungs = list(brackets.brackets[place].results)
    begins = f"where trials are compared from epoch {rungs[0]} on" if rungs else "which stops none"
    return f"It is in bracket {place + 1} of {len(brackets.brackets)}, {begins}."


def _in_words(verdict: Verdict, metric: Metric, whose: str) -> str:
    end = "so it was stopped" if verdict.stops else "so it went on"
    if verdict.rung is None:
        return (
            f"After epoch {verdict.epoch} its best {METRIC_WORDS[metric]} so far, "
            f"{percent(verdict.best)} %, was below {percent(verdict.median)} %, the median of the "
            f"running averages of the {verdict.of} whole trials{whose}, {end}."
        )
    place = _place(verdict, whose)
    if verdict.epoch == verdict.rung:
        return (
            f"At the rung of epoch {verdict.rung} it was {place}, where the best {verdict.places} "
            f"go on, {end}."
        )
    return (
        f"After epoch {verdict.epoch} more trials had come to the rung of epoch {verdict.rung}: it "
        f"was {place} there, where {verdict.places} places go on by then, {end}."
    )


def _by_now(record: SearchRecord, trial: TrialRecord) -> list[str]:
    """Of a trial that an earlier version stopped: how it stands among all that is known now."""
    experiment = record.experiment
    assert experiment.search.rule is not None
    students = {each.number: each.student for each in record.trials}
    rule = rule_of(
        experiment.search.rule,
        epochs=experiment.training.epochs,
        student_of=students.__getitem__,
    )
    for each in record.trials:
        rule.add_curve(each.number, each.curve, each.epochs_on_top)
    verdict = rule.judge(trial.number, trial.epochs_done - trial.epochs_on_top)
    if verdict is None:
        return []
    name, place = IN_WORDS[experiment.search.stopping], _place(verdict, _whose(record, trial))
    return [
        f"This version of the record does not tell what {name} knew when it stopped the trial. By "
        f"all that is known now it is {place} at the rung of epoch {verdict.rung}, where "
        f"{verdict.places} go on."
    ]


def _place(verdict: Verdict, whose: str) -> str:
    """Like `2nd of 7`, or `2nd of 7 trials of resnet8` where there are several students."""
    return f"{_ordinal(verdict.place or 0)} of {verdict.of}{' trials' if whose else ''}{whose}"


def _ended(record: SearchRecord, trial: TrialRecord) -> str:
    """What has become of it."""
    done = f"epoch {trial.epochs_done} of {trial.epochs}"
    if trial.epochs_on_top:
        done += f", of which {trial.epochs_on_top} preparatory ones come before epoch 1"
    match trial.state:
        case "finished":
            words = f"It ran to its end, {done}"
        case "stopped":
            words = f"It was stopped after {done}"
        case "failed":
            return f"It failed after {done}: {trial.reason}."
        case "interrupted":
            words = f"It was cut off after {done}; kdsearch resume {record.name} continues it"
        case _:
            words = f"It is running, after {done}"
    if trial.score is None:
        return f"{words}."
    score = METRIC_WORDS[record.metric]
    return f"{words}; its best held-out {score} is {percent(trial.score)} %."


def _ordinal(place: int) -> str:
    """Like 1st, 2nd, 11th."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{'th' if place % 100 in (11, 12, 13) else ending}"
