"""Whether a teacher has anything to teach: its lead over what a student reaches alone.

Of several teachers, that is asked of the best one.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from kdcore import EnsembleConfig
from kdcore.training.metric import Metric
from search.errors import KdsearchError
from search.experiment.schema import Experiment
from search.leaderboard.ranking import by_test_accuracy, rank
from search.record.files import read_record, search_names
from search.record.looks import images_of
from search.record.record import Confirmed, SearchRecord, TrialRecord
from search.record.storage import Storage
from search.record.wording import percent, percent_of

# Twice ImageNet's training part. Shares of fewer images are exact in float64.
_MOST_IMAGES = 2_500_000
_MOST_STUDENTS = 3  # that are spoken of one by one


@dataclass(frozen=True)
class TeacherLead:
    """A teacher beside a student that was trained without it.

    Args:
        teacher: the teacher's label.
        student: the student network.
        teacher_accuracy: held out, a share of 1.
        control_accuracy: held out, of the student trained alone, a share of 1.
        noise: two standard errors of the difference, a share of 1; of balanced accuracy, which
            scatters more, rather too little.
        search: the search that trained the student alone; empty for the one that is spoken of.
        metric: what the two accuracies are.
    """

    teacher: str
    student: str
    teacher_accuracy: float
    control_accuracy: float
    noise: float
    search: str = ""
    metric: Metric = "accuracy"

    @property
    def size(self) -> float:
        """The teacher's accuracy minus the student's, a share of 1."""
        return self.teacher_accuracy - self.control_accuracy

    @property
    def is_noise(self) -> bool:
        """Whether the two differ by no more than noise."""
        return abs(self.size) <= self.noise

    @property
    def is_missing(self) -> bool:
        """Whether the student alone has passed the teacher, or is within noise of it."""
        return self.size <= self.noise

    def __str__(self) -> str:
        """What is wrong with a lead that is missing."""
        teacher, alone = self.teacher_accuracy, self.control_accuracy
        where = f" in {self.search}" if self.search else ""
        if self.size < 0:
            return (
                f"the student {self.student} alone has passed its teacher {self.teacher}: "
                f"{percent_of(self.metric, alone)} held out{where}, the teacher "
                f"{percent(teacher)} %"
            )
        return (
            f"the teacher {self.teacher} may have nothing to teach {self.student}: its "
            f"{percent_of(self.metric, teacher)} held out are within noise "
            f"({100 * self.noise:.2f} points) of the {percent(alone)} % that the student reaches "
            f"alone{where}"
        )


def teacher_lead(record: SearchRecord, student: str, label: str = "") -> TeacherLead | None:
    """A teacher beside a student's control, by `search.metric`; none before both are known.

    Args:
        record: the search.
        student: the student's label.
        label: the teacher's; empty for the best one.
    """
    label = label or record.best_teacher
    teacher, control = record.teacher_scores.get(label), record.control_of(student)
    if teacher is None or control is None or control.score is None:
        return None
    noise = _noise((teacher, control.score), heldout_images(record))
    for each in record.confirmed:
        scores = (run.heldout_by_metric for run in each.runs)
        seeds = [score for score in scores if score is not None]
        if each.role == "control" and each.student == student and len(seeds) >= 2:
            noise = max(noise, 2 * statistics.stdev(seeds))
    return TeacherLead(label, student, teacher, control.score, noise, metric=record.metric)


def _noise(accuracies: tuple[float, float], images: int) -> float:
    """Two standard errors of the difference of two shares of the same number of images."""
    return 2 * math.sqrt(sum(share * (1 - share) for share in accuracies) / images)


def missing_leads(record: SearchRecord) -> list[TeacherLead]:
    """By student, where the best teacher does not lead."""
    leads = [teacher_lead(record, student) for student in record.experiment.students]
    return [lead for lead in leads if lead is not None and lead.is_missing]


def broken_demand(record: SearchRecord) -> TeacherLead | None:
    """The first lead that `search.teacher_must_lead` asks for and that is missing, if any."""
    if not record.experiment.search.teacher_must_lead:
        return None
    return next(iter(missing_leads(record)), None)


def teacher_caution(record: SearchRecord) -> str:
    """What is wrong with the best teacher, and what to do; empty where it leads its students."""
    return _caution(missing_leads(record), record.experiment)


def known_caution(
    experiment: Experiment, teachers: Mapping[str, float], images: int, storage: Storage
) -> str:
    """The same for a search that has not begun, by the controls of earlier ones: those of its
    students on the same images, trained for no more epochs than it would train them.

    Args:
        experiment: the search.
        teachers: by label, their held-out accuracies, shares of 1; or what else `search.metric` is.
        images: number of those that are held out.
        storage: with the earlier searches; a record that cannot be read is left out.
    """
    best: dict[str, TeacherLead] = {}
    metric = experiment.search.metric
    teacher, teacher_accuracy = max(teachers.items(), key=lambda each: each[1])
    for name in search_names(storage):
        try:
            earlier = read_record(storage, name)
        except KdsearchError:
            continue
        if images_of(earlier.experiment.data) != images_of(experiment.data):
            continue
        for student in experiment.students:
            control = earlier.control_of(student)
            if control is None or control.epochs > experiment.training.epochs:
                continue
            alone = control.heldout(metric)
            if alone is None:  # a search of an earlier version knows accuracies alone
                continue
            if student not in best or alone > best[student].control_accuracy:
                noise = _noise((teacher_accuracy, alone), images)
                best[student] = TeacherLead(
                    teacher, student, teacher_accuracy, alone, noise, name, metric
                )
    return _caution([lead for lead in best.values() if lead.is_missing], experiment)


def _caution(missing: list[TeacherLead], experiment: Experiment) -> str:
    if not missing:
        return ""
    words = "; ".join(map(str, missing[:_MOST_STUDENTS]))
    more = len(missing) - _MOST_STUDENTS
    words += f"; so it is with {more} more of the students" if more > 0 else ""
    return f"{words}. {what_to_do(experiment, missing[0].teacher)}"


def what_to_do(experiment: Experiment, label: str) -> str:
    """How to come by a teacher that leads, in a sentence about the one with this label."""
    teacher, key = experiment.teacher_configs[label], experiment.teacher_keys[label]
    if isinstance(teacher, EnsembleConfig):
        return f"Give the {label} better or more teachers ({key}.ensemble)."
    name = f"teacher {label}" if len(experiment.teachers) > 1 else "teacher"
    ways = [f"pretrained weights ({key}.weights)"]
    if teacher.weights is not None:
        ways = [f"other weights ({key}.weights is {teacher.weights})"]
    if teacher.training is not None:
        ways.append(f"more epochs ({key}.training.epochs is {teacher.training.epochs})")
    return f"Give the {name} {', '.join(ways)} or another network ({key}.backbone)."


def gap_closed(record: SearchRecord, trial: TrialRecord) -> float | None:
    """A trial's gain as a share of its teacher's lead over the control.

    None if that lead is no more than noise or less than nothing, or while there is no gain.
    """
    gain = record.gain(trial)
    lead = teacher_lead(record, trial.student, record.teacher_of(trial))
    if gain is None or lead is None or lead.is_missing:
        return None
    return gain / lead.size


def heldout_images(record: SearchRecord) -> int:
    """How many images are held out.

    Where the record does not say, as in version 0.1.0, a divisor of that, so that noise is rather
    overestimated: each accuracy is a share of them, so their least common denominator divides their
    number, and with a few different accuracies it is the number.
    """
    if record.heldout_images:
        return record.heldout_images
    known = {trial.heldout_accuracy for trial in record.trials}
    known |= {each.metrics.get("heldout_accuracy") for each in record.ready_teachers.values()}
    denominator = 1
    for accuracy in sorted(each for each in known if each is not None):
        part = Fraction(accuracy).limit_denominator(_MOST_IMAGES).denominator
        together = math.lcm(denominator, part)
        if together <= _MOST_IMAGES:
            denominator = together
    return denominator


def no_method_won(record: SearchRecord, student: str | None = None) -> str:
    """Says that the best student is a control; empty where a method won, or none was tried yet.

    Args:
        record: the search.
        student: the network that is spoken of; none: all.
    """
    of_it: list[TrialRecord] = [
        trial
        for trial in record.trials
        if student in (None, trial.student) and trial.heldout_accuracy is not None
    ]
    tested: list[Confirmed] = [
        each
        for each in by_test_accuracy(record.confirmed)
        if student in (None, each.student) and each.is_confirmed
    ]
    best = next(iter(rank(tuple(of_it), record.confirmed)), None)
    if best is None or not best.is_control or all(trial.is_control for trial in of_it):
        return ""
    if tested and tested[0].role != "control":  # a published setting that the search did not try
        return ""
    several = len(record.experiment.students) > 1
    so_far = " so far" if record.state == "running" else ""
    whom = f" {best.student}" if several else ""
    return f"no method beat training{whom} without a teacher{so_far}"
