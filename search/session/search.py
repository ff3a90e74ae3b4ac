"""A search as a program or a notebook holds it: what the command does, as methods."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from search.environment import prepare
from search.errors import SearchError
from search.record.files import read_record
from search.record.log import RecordReader
from search.record.record import SearchRecord
from search.record.storage import Storage, local_home

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from search.export.export import ExportedStudent
    from search.tracking.model_registry import Registration


class Search:
    """A search in a storage, whether it runs or has ended.

    Args:
        record: what is known of it.
        storage: where it is kept.

    Attributes:
        name: of the search.
        storage: where it is kept.
    """

    def __init__(self, record: SearchRecord, storage: Storage) -> None:
        self.name, self.storage = record.name, storage
        self._record, self._reader = record, RecordReader(storage, record.name)

    @property
    def record(self) -> SearchRecord:
        """What is known of the search and its trials; of a running one, as of now."""
        if self._record.state == "running":
            self._record = read_record(self.storage, self.name, self._reader)
        return self._record

    @property
    def state(self) -> str:
        """`running`, `finished`, `interrupted` or `failed`."""
        return self.record.state

    def leaderboard(
        self, method: str = "", state: str = "", *, front: bool = False, cost: str | None = None
    ) -> "DataFrame":
        """The teachers, then every trial by rank; accuracies and gains are shares of 1.

        Args:
            method: keeps only trials with this method; `none` keeps the controls.
            state: keeps only trials in this state.
            front: keeps of these only the front of accuracy against cost.
            cost: for the front: `parameters`, `multiply_adds`, `latency_ms` or
                `batch_latency_ms`; none: as `search.cost` says.

        Raises:
            SearchError: the search has no such method, or there is no such cost.
        """
        from search.leaderboard.formats import leaderboard_frame
        from search.leaderboard.front import front_by

        return leaderboard_frame(self.record, method, state, front_by(self.record, front, cost))

    def explain(self, trial: int) -> str:
        """Why a trial was proposed, and why it was stopped or not, in a few sentences.

        Args:
            trial: its number.

        Raises:
            SearchError: the search has no such trial.
        """
        from search.report.explanation import explanation

        return "\n".join(explanation(self.record, trial))

    @property
    def plots(self) -> "Plots":
        """The pictures of the search, as matplotlib figures."""
        return Plots(self.record)

    def best(
        self,
        *,
        max_params: int | None = None,
        max_latency_ms: float | None = None,
        min_accuracy: float | None = None,
        format: str = "safetensors",
        int8: bool = False,
        max_loss: float | None = None,
        out: str | Path | None = None,
        open_test: bool = True,
        head: bool = True,
    ) -> "ExportedStudent":
        """Exports the best student within the limits, and measures the exported files.

        This opens the test split, which is written down: whoever looks often chooses by it.

        Args:
            max_params: the largest number of parameters.
            max_latency_ms: the longest time for one image, in milliseconds, where the trials ran.
            min_accuracy: the lowest accuracy, a share of 1: on the test split for a confirmed
                student, else held out; also where another `search.metric` ranks.
            format: `safetensors`, or with a graph beside it: `onnx` or `torch_export`.
            int8: with `onnx`, whether to write that graph in 8 bits too.
            max_loss: the most percentage points of held-out accuracy that this may cost; none: 1.
            out: the folder to export to; none: `best` in the search's folder.
            open_test: false measures on the held-out images only.
            head: false leaves the classifier out of the files, which then give features.

        Raises:
            SearchError: no trial has finished, none is within the limits, a checkpoint is gone or
                damaged, the files do not reproduce the recorded accuracy, or int8 costs too much.
        """
        from search.export.choice import Limits
        from search.export.export import export_best
        from search.report.plots.drawings import save_confusion

        limits = Limits(max_params, max_latency_ms, min_accuracy)
        folder = Path(out) if out else local_home(self.storage) / "searches" / self.name / "best"
        if folder.is_relative_to(Path.cwd()):
            folder = folder.relative_to(Path.cwd())
        return export_best(
            self.record,
            self.storage,
            folder,
            limits=limits,
            form=format,
            int8=int8,
            max_loss=max_loss,
            open_test=open_test,
            head=head,
            picture=save_confusion,
        )

    def register(self, exported: "ExportedStudent") -> "Registration":
        """Registers an exported student in MLflow's model registry.

        Raises:
            TrackingError: MLflow is away, knows nothing of the search, or refuses.
        """
        prepare()
        from search.tracking.model_registry import register

        return register(self.record, exported)

    def resume(
        self,
        *,
        more_trials: int = 0,
        overrides: Sequence[str] = (),
        address: str | None = None,
    ) -> "Search":
        """Continues a search that was cut off, or extends one that has ended.

        Args:
            more_trials: how many to add.
            overrides: new budgets, resources or prices, like `search.hours=4`.
            address: of a Ray cluster; none: Ray is started on this machine.

        Raises:
            SearchError: it still runs, or its budget is spent.
            ExperimentError: the experiment cannot be run any more.
            ClusterError: Ray cannot be reached, or has no room for a trial.
        """
        prepare()
        from search.session.launch import resume

        self._record = resume(
            self.name,
            storage=self.storage,
            address=address,
            more_trials=more_trials,
            overrides=overrides,
        )
        return self

    def confirm(
        self, *, top: int | None = None, seeds: int | None = None, address: str | None = None
    ) -> "Search":
        """Retrains the best students with fresh seeds, and tests each once.

        Args:
            top: number of top trials to retrain; none: as the experiment says, else 3.
            seeds: runs of each; none: as the experiment says, else 5.
            address: of a Ray cluster; none: Ray is started on this machine.

        Raises:
            SearchError: it still runs, or no trial with a method has finished.
            ClusterError: as `resume`.
        """
        prepare()
        from search.session.launch import confirm

        self._record = confirm(
            self.name, storage=self.storage, address=address, top=top, seeds=seeds
        )
        return self

    def __repr__(self) -> str:
        from search.leaderboard.progress import how_far

        record = self.record
        return f"<search {self.name}, {record.state}: {how_far(record)}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the state and the head of the leaderboard."""
        from html import escape

        from search.leaderboard.formats import leaderboard_frame
        from search.leaderboard.progress import how_far

        record = self.record
        head = escape(f"{self.name} ({record.state}): {how_far(record)}")
        table = leaderboard_frame(record).head(12).to_html(na_rep="")
        return f"<p>{head}</p>{table}"


class Plots:
    """The pictures of a search; each is a matplotlib figure.

    Args:
        record: of the search.
    """

    def __init__(self, record: SearchRecord) -> None:
        self._record = record

    def learning_curves(self) -> "Figure":
        """The best accuracy so far of each trial, or what else is ranked by, after each epoch."""
        return self._drawn("learning_curves")

    def accuracy_by_method(self) -> "Figure":
        """Each trial a dot in the row of its methods."""
        return self._drawn("accuracy_by_method")

    def accuracy_against_cost(self) -> "Figure":
        """Accuracy against parameters and latency, with the students that none beats in both."""
        return self._drawn("accuracy_against_cost")

    def accuracy_by_setting(self) -> "Figure":
        """Accuracy against each numeric setting of each method."""
        return self._drawn("accuracy_by_setting")

    def importance(self) -> "Figure":
        """How much each searched setting decides about the accuracy (fANOVA)."""
        return self._drawn("importance")

    def parallel_coordinates(self) -> "Figure":
        """The settings of all trials of a method, side by side."""
        return self._drawn("parallel_coordinates")

    def confusion(self) -> "Figure":
        """What the best student takes for what, held out; of many classes, its most frequent
        mistakes."""
        if self._record.by_class is None:
            raise SearchError(
                f"{self._record.name} has no results by class; they are measured when a search ends"
            )
        return self._drawn("confusion")

    def accuracy_by_teacher(self) -> "Figure":
        """What students reach with each of several teachers, against what these reach."""
        return self._drawn("accuracy_by_teacher")

    def _drawn(self, name: str) -> "Figure":
        """A picture.

        Raises:
            SearchError: there is nothing to show yet.
        """
        from search.report.plots.drawings import draw

        figure = draw(name, self._record)
        if figure is None:
            raise SearchError(
                f"{self._record.name} has too few trials for the picture {name}, "
                f"or none that differ in what it shows"
            )
        return figure
