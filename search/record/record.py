"""What is known of a search and its trials: one frozen record each."""

import statistics
from datetime import datetime
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from kdcore.networks.cost import NetworkCost
from kdcore.training.metric import Metric
from search.experiment.schema import CONTROL, Experiment
from search.experiment.searched import Option
from search.experiment.space.point import TEACHER
from search.record.class_results import StudentClasses
from search.record.decisions import Proposal, Verdict
from search.record.networks import Executions, ReadyTeacher, Trained, methods_of, without_nothing
from search.record.paired_gain import PairedGain, paired_gain
from search.record.sharing import Sharing
from search.record.spending import Spending

# What a trial reports after an epoch; the first is by another metric where `search.metric` is.
METRIC = "best_heldout_accuracy"
TIME = "epoch"
SAVED = "saved_epoch"  # of the newest checkpoint on the storage; 0 before the first
REPORT = "report"  # the whole of kdcore's
REASON = "failed_because"  # in a last report: why another try would change nothing
State = Literal["running", "finished", "stopped", "failed", "interrupted"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrialRecord(_Record):
    """A trial, as the leaderboard shows it.

    Args:
        number: from 0, in the order in which trials were proposed; the first are the controls.
        student: the network that learns.
        point: what was chosen for it.
        objective: the methods with their searched settings, in words.
        state: `finished` only after its last epoch; `stopped` early; `failed`; `interrupted` by the
            end of the search.
        reason: why it failed; empty otherwise.
        epochs_done: number of epochs so far.
        accuracies: held-out accuracy after each epoch, shares of 1.
        scores: the same by `search.metric`; empty where that is the accuracy.
        epochs: its budget, with the epochs on top.
        epochs_on_top: those of its preparatory stages that come before the recipe's epochs.
        heldout_accuracy: of the best epoch, a share of 1; none before the first report.
        heldout_loss: of the best epoch, nats.
        heldout_balanced_accuracy: of the best epoch; none in a search of an earlier version.
        heldout_top5: of the best epoch; none with fewer than 20 classes.
        best_epoch: the epoch whose weights are kept.
        train_seconds: seconds of training and evaluation.
        views_computed: epochs for which it computed the teacher's outputs.
        views_cached: epochs for which it found them cached.
        teacher_seconds_saved: seconds that computing those had taken.
        seconds_by_part: where the seconds of training and evaluation went, see `EpochReport`; empty
            in trials of earlier versions.
        checkpoint: the folder of its checkpoints, relative to the storage.
        parts: number of parts that each batch was split into, to fit the GPU's memory.
        proposal: where its settings came from; none in searches of earlier versions.
        verdicts: what early stopping decided at each rung that it came to, and when it stopped it;
            empty for controls, and in searches of earlier versions.
    """

    number: int
    student: str
    point: dict[str, Option]
    objective: str
    state: State
    reason: str = ""
    epochs_done: int = 0
    accuracies: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    epochs: int
    epochs_on_top: int = 0
    heldout_accuracy: float | None = None
    heldout_loss: float | None = None
    heldout_balanced_accuracy: float | None = None
    heldout_top5: float | None = None
    best_epoch: int | None = None
    train_seconds: float = 0.0
    views_computed: int = 0
    views_cached: int = 0
    teacher_seconds_saved: float = 0.0
    seconds_by_part: dict[str, float] = {}
    checkpoint: str | None = None
    parts: int = 1
    proposal: Proposal | None = None
    verdicts: tuple[Verdict, ...] = ()

    @property
    def curve(self) -> tuple[float, ...]:
        """What it is ranked and stopped by, after each epoch."""
        return self.scores or self.accuracies

    @property
    def score(self) -> float | None:
        """What it is ranked by: the accuracy of the best epoch, or another metric of it."""
        return max(self.scores) if self.scores else self.heldout_accuracy

    def heldout(self, metric: Metric) -> float | None:
        """One of the numbers of the best epoch, whatever it is ranked by."""
        known = {
            "accuracy": self.heldout_accuracy,
            "balanced_accuracy": self.heldout_balanced_accuracy,
            "top5": self.heldout_top5,
        }
        return known[metric]

    @property
    def is_control(self) -> bool:
        return self.objective == CONTROL

    @property
    def methods(self) -> str:
        """The methods without their settings, like `kd + at`; `none` is the control."""
        return methods_of(self.objective)

    @property
    def unfinished(self) -> bool:
        """Whether it can be continued."""
        return self.state in ("running", "interrupted")


class ConfirmationRun(_Record):
    """One retraining of a student with a fresh seed, at the full budget.

    Args:
        seed: of its initial weights and the order of its images.
        reason: why it failed; empty if it did not, and then all that follows is known.
        accuracies: held out, of each epoch, shares of 1.
        heldout_accuracy: of the best epoch, a share of 1.
        heldout_loss: of the best epoch, nats.
        best_epoch: the epoch whose weights are kept.
        test_accuracy: of those weights, a share of 1.
        test_balanced_accuracy: the same; none in a search of an earlier version.
        test_top5: the same; none with fewer than 20 classes.
        heldout_score: of the best epoch by `search.metric`; none where that is the accuracy.
        test_score: on the test split, likewise.
        train_seconds: training and evaluation.
        images: that were trained on, each once in every epoch; 0 in version 0.1.0.
        checkpoint: the folder of its checkpoints, relative to the storage.
    """

    seed: int
    reason: str = ""
    accuracies: tuple[float, ...] = ()
    heldout_accuracy: float | None = None
    heldout_loss: float | None = None
    best_epoch: int | None = None
    test_accuracy: float | None = None
    test_balanced_accuracy: float | None = None
    test_top5: float | None = None
    heldout_score: float | None = None
    test_score: float | None = None
    train_seconds: float = 0.0
    images: int = 0
    checkpoint: str | None = None

    def test(self, metric: Metric) -> float | None:
        """One of the numbers on the test split, whatever is ranked by."""
        known = {
            "accuracy": self.test_accuracy,
            "balanced_accuracy": self.test_balanced_accuracy,
            "top5": self.test_top5,
        }
        return known[metric]

    @property
    def heldout_by_metric(self) -> float | None:
        """What `search.metric` is, held out."""
        return self.heldout_accuracy if self.heldout_score is None else self.heldout_score

    @property
    def test_by_metric(self) -> float | None:
        """What `search.metric` is, on the test split."""
        return self.test_accuracy if self.test_score is None else self.test_score


class Confirmed(_Record):
    """A student that was retrained with fresh seeds.

    Args:
        label: the trial's number; for a published setting that the search never tried, the
            method's and the student's name; in a reproduction, the row's name.
        role: one of the search's best, the control, or the field's baseline as published.
        trial: its number in the search, if it was there.
        student: the network that learns.
        objective: the methods with their searched settings, in words.
        point: its settings.
        runs: by seed, including those that failed.
    """

    label: str
    role: Literal["best", "control", "published"]
    trial: int | None
    student: str
    objective: str
    point: dict[str, Option]
    runs: tuple[ConfirmationRun, ...] = ()

    @property
    def test_accuracies(self) -> dict[int, float]:
        """By seed, of the runs that did not fail; shares of 1."""
        return {run.seed: run.test_accuracy for run in self.runs if run.test_accuracy is not None}

    @property
    def test_scores(self) -> dict[int, float]:
        """By seed, what students are compared by: test accuracies, or another metric."""
        return {run.seed: run.test_by_metric for run in self.runs if run.test_by_metric is not None}

    @property
    def test_score(self) -> float:
        """Mean over the seeds; needs at least one."""
        return statistics.fmean(self.test_scores.values())

    @property
    def test_score_deviation(self) -> float:
        """Sample standard deviation over the seeds; needs at least two."""
        return statistics.stdev(self.test_scores.values())

    @property
    def heldout_score(self) -> float:
        """Held-out accuracy, or another metric: mean over the seeds; needs at least one."""
        return statistics.fmean(
            run.heldout_by_metric for run in self.runs if run.heldout_by_metric is not None
        )

    @property
    def is_confirmed(self) -> bool:
        """Whether there are enough runs for a standard deviation."""
        return len(self.test_accuracies) >= 2

    @property
    def test_accuracy(self) -> float:
        """Mean over the seeds; needs at least one."""
        return statistics.fmean(self.test_accuracies.values())

    @property
    def test_deviation(self) -> float:
        """Sample standard deviation over the seeds; needs at least two."""
        return statistics.stdev(self.test_accuracies.values())

    @property
    def heldout_accuracy(self) -> float:
        """Mean over the seeds; needs at least one."""
        return statistics.fmean(
            run.heldout_accuracy for run in self.runs if run.heldout_accuracy is not None
        )


class SearchRecord(_Record):
    """A search.

    Args:
        name: unique within its storage.
        experiment: as resolved.
        state: of the search as a whole.
        teacher: the first teacher's folder, relative to the storage; none before it is ready.
        teacher_metrics: its metrics, as in its card.
        other_teachers: those of the others that are ready, by their labels.
        unequal_classes: whether some class has more than one and a half times the training images
            of another, so that accuracy alone says little; false in earlier versions.
        heldout_images: how many there are; 0 before that is known, and in version 0.1.0.
        excluded: students that constraints have left out, with the reason in words; empty in
            earlier versions.
        student_costs: by student, measured where trials run; with a limit on a latency, where the
            search was launched; see `search.record.costs`.
        executions: decided once, measured where trials run; none: before that, and in version
            0.1.0, where each machine decided for itself.
        sharing: why trials have their share of a GPU, where `resources` was left to the cluster;
            none without GPUs, where it was asked for, and in earlier versions.
        tracking_uri: where MLflow keeps the runs.
        mlflow_experiment_id: once known.
        mlflow_run_id: of the parent run, once known.
        started: when.
        updated: when this record was written.
        host: the machine of its driver.
        ended: why it ended before all trials had run, in words.
        seconds: wall-clock seconds of its trials, in all sessions.
        device_seconds: GPU-seconds of its trials; core-seconds, if they use no GPU.
        spent: money for its trials, in the currency of `prices`; 0 without.
        trials: in the order of their numbers.
        confirmed: students that were retrained with fresh seeds.
        by_class: what the best student does with each class, as the last session measured it at its
            end; none before, and in earlier versions.
        reproduces: the name of the pair whose published figures it is to reproduce, where it has no
            trials, but the pair's rows as confirmed students; empty for a search.
    """

    name: str
    experiment: Experiment
    state: Literal["running", "finished", "interrupted", "failed"]
    teacher: str | None = None
    teacher_metrics: dict[str, float] = {}
    other_teachers: dict[str, ReadyTeacher] = {}
    unequal_classes: bool = False
    heldout_images: int = 0
    excluded: dict[str, str] = {}
    student_costs: dict[str, NetworkCost] = {}
    executions: Executions | None = None
    sharing: Sharing | None = None
    tracking_uri: str
    mlflow_experiment_id: str | None = None
    mlflow_run_id: str | None = None
    started: datetime
    updated: datetime
    host: str = ""
    ended: str = ""
    seconds: float = 0.0
    device_seconds: float = 0.0
    spent: float = 0.0
    trials: tuple[TrialRecord, ...] = ()
    confirmed: tuple[Confirmed, ...] = ()
    by_class: StudentClasses | None = None
    reproduces: str = ""
    # By student, for the trials that they were found in.
    _controls: tuple[tuple[TrialRecord, ...], dict[str, TrialRecord]] = PrivateAttr(((), {}))

    @property
    def metric(self) -> Metric:
        """What trials are ranked by."""
        return self.experiment.search.metric

    @property
    def ready_teachers(self) -> dict[str, ReadyTeacher]:
        """The teachers that are ready, by their labels."""
        known = self.other_teachers
        if self.teacher is not None:
            first = ReadyTeacher(folder=self.teacher, metrics=self.teacher_metrics)
            known = {self.experiment.teachers[0]: first, **known}
        return known

    @property
    def teacher_scores(self) -> dict[str, float]:
        """By label, the teachers' held-out accuracies, or what else `search.metric` is."""
        name = f"heldout_{self.metric}"
        ready = self.ready_teachers.items()
        return {label: each.metrics[name] for label, each in ready if name in each.metrics}

    @property
    def best_teacher(self) -> str:
        """The label of the teacher with the best of these scores; the first while none is
        known."""
        scores = self.teacher_scores
        return max(scores, key=scores.__getitem__) if scores else self.experiment.teachers[0]

    def teacher_of(self, student: Trained) -> str:
        """The label of the teacher that a student learned from; empty for one that had none."""
        if student.objective == CONTROL:
            return ""
        return str(student.point.get(TEACHER, self.experiment.teachers[0]))

    @property
    def spending(self) -> Spending:
        """What the trials have taken so far."""
        return Spending(self.seconds / 3600, self.device_seconds / 3600, self.spent)

    @property
    def cost(self) -> str:
        """The same in words."""
        return self.spending.in_words(self.experiment)

    @property
    def spent_budget(self) -> str:
        """The first budget that is spent, in words; empty if none is."""
        spent = self.spending.spent_budgets(self.experiment)
        return f"the budget of {spent[0]} is spent" if spent else ""

    def control_of(self, student: str) -> TrialRecord | None:
        """The best finished trial of this student without distillation."""
        trials, controls = self._controls
        if trials is not self.trials:
            controls = {}
            for trial in self.trials:
                keep_control(controls, trial)
            self._controls = self.trials, controls
        return controls.get(student)

    def gain(self, trial: TrialRecord) -> float | None:
        """Accuracy, or what else `search.metric` is, minus that of the same student's control, a
        share of 1; none for a control, and before both are known."""
        return gain_over(self.control_of(trial.student), trial)

    def confirmed_gain(self, confirmed: Confirmed) -> PairedGain | None:
        """Test accuracy, or what else `search.metric` is, minus the control's, paired by seed; none
        for a control, and with fewer than two common seeds."""
        controls = [
            other
            for other in self.confirmed
            if other.role == "control" and other.student == confirmed.student
        ]
        # The first is that of the last confirmation; a search that was extended may have two.
        if confirmed.role == "control" or not controls:
            return None
        return paired_gain(confirmed.test_scores, controls[0].test_scores)

    def words(self, trial: TrialRecord | Confirmed) -> str:
        """A trial in words: its objective, and its student and teacher where there are several."""
        words = trial.objective
        if len(self.experiment.students) > 1:
            words = f"{trial.student}, {words}"
        if len(self.experiment.teachers) > 1 and (teacher := self.teacher_of(trial)):
            words += f" from {teacher}"
        return words

    def method_names(self, trial: TrialRecord) -> str:
        """The same without the settings of the methods."""
        return self.words(trial.model_copy(update={"objective": trial.methods}))

    @model_serializer(mode="wrap")
    def _without_later_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_nothing(handler(self), "other_teachers", "excluded", "sharing", "spent")


def place(trial: TrialRecord) -> tuple[float, float, int]:
    """Sorts trials that are not confirmed from best to worst."""
    return (
        -(trial.score if trial.score is not None else -1.0),
        trial.heldout_loss if trial.heldout_loss is not None else float("inf"),
        trial.number,
    )


def keep_control(controls: dict[str, TrialRecord], trial: TrialRecord) -> None:
    """Keeps a trial by its student, if it is the best finished control of it so far."""
    if trial.is_control and trial.state == "finished":
        best = controls.setdefault(trial.student, trial)
        if (trial.score or 0.0) > (best.score or 0.0):
            controls[trial.student] = trial


def gain_over(control: TrialRecord | None, trial: TrialRecord) -> float | None:
    """A trial's score minus its control's; see `SearchRecord.gain`."""
    if trial.is_control or control is None:
        return None
    if trial.score is None or control.score is None:
        return None
    return trial.score - control.score
