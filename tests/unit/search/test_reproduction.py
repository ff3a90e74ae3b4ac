"""A reproduction beside the published figures: noise, tables, files, selection, and mistakes."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import parquet

from kdcore.contract import plugged
from search.errors import ExperimentError
from search.experiment.figures import Figure, PairFigures
from search.experiment.pair import Pair, read_pair
from search.experiment.space.trial_config import trial_config
from search.record.record import ConfirmationRun, SearchRecord
from search.record.storage import Storage
from search.report.plots.differences import differences, differences_png
from search.report.reproduction.comparison import Block, Line, block, interval
from search.report.reproduction.formats import as_markdown, as_parquet, write_files
from search.report.reproduction.table import COLUMNS, block_table, rows
from search.session.launch import fresh_record
from search.session.reproduction import reproduce
from search.session.retraining.reproduced_pair import ReproducedPair, changes
from tests.own_code import method
from tests.records import write_record

CONTENT: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits", "heldout_fraction": 0},
    "teacher": {"backbone": "resnet14", "training": {"epochs": 2}},
    "student": "resnet8",
    "training": {"epochs": 2},
    "seeds": 2,
    "seed": 2**32 - 1,
    "published": "cifar",
    "rows": {
        "kd": {"kd": {"temperature": 3}},
        "at": {"at": {}},
        "kd-at": {"at": {}, "kd": {}},
        "crd": {"crd": {}},
    },
}
TABLES = {
    "tables": [
        {
            "source": "a paper",
            "epoch": "last",
            "seeds": 3,
            "pairs": ["small"],
            "teacher": [96.0],
            "student": [90.0],
            "rows": {"kd": [91.0], "at": [[92.0, 0.5]]},
        },
        {"source": "its code", "epoch": "best", "pairs": ["small"], "rows": {"kd": [93.0]}},
    ]
}


def part(*rows: str, seeds: Sequence[int] = (0, 1), **keys: Any) -> ReproducedPair:
    pair = Pair.model_validate(CONTENT | keys)
    return ReproducedPair(
        pair=pair,
        changes=(),
        figures=None,
        reproduction="mine",
        rows=("none", *(rows or pair.rows)),
        seeds=tuple(seeds),
    )


def run(seed: int, *accuracies: float) -> ConfirmationRun:
    return ConfirmationRun(
        seed=seed,
        accuracies=accuracies,
        heldout_accuracy=max(accuracies),
        best_epoch=accuracies.index(max(accuracies)) + 1,
        test_accuracy=max(accuracies),
        train_seconds=10.0,
        images=2000,
    )


def record_of(runs: Mapping[str, tuple[ConfirmationRun, ...]], **keys: Any) -> SearchRecord:
    """What a reproduction has recorded that was asked for these rows."""
    pair = part(*(row for row in runs if row != "none"), **keys)
    record = fresh_record(pair.experiment, Storage("/absent"), pair.search, None)
    students = pair.students(pair.experiment, None)
    confirmed = [each.model_copy(update={"runs": runs[each.label]}) for each in students]
    return record.model_copy(
        update={
            "reproduces": "small",
            "state": "finished",
            "teacher_metrics": {"heldout_accuracy": 0.95},
            "confirmed": tuple(confirmed),
        }
    )


RUNS: dict[str, tuple[ConfirmationRun, ...]] = {
    "none": (run(0, 0.88, 0.87), run(1, 0.90, 0.89)),
    "kd": (run(0, 0.92, 0.90), run(1, 0.93, 0.92)),
    "at": (run(0, 0.80, 0.90), ConfirmationRun(seed=1, reason="not finite")),
    "crd": (run(0, 0.5, 0.6), run(1, 0.5, 0.6)),
}
LAST, SPREAD = Figure(0.91, None, 3, "last", "a paper"), Figure(0.92, 0.005, 3, "last", "a paper")
BEST = Figure(0.95, None, None, "best", "its code")
FIGURES = PairFigures(
    "small",
    (Figure(0.96, None, 3, "last", "a paper"),),
    (Figure(0.90, None, 3, "last", "a paper"),),
    {"kd": (LAST, BEST), "at": (SPREAD,)},
)


@pytest.fixture(scope="module")
def compared() -> Block:
    return block(record_of(RUNS), FIGURES)


def line(block: Block, row: str, number: int = 0) -> Line:
    return [line for line in block.lines if line.row == row][number]


def test_noise_is_that_of_ours_and_of_the_published_runs() -> None:
    ours = [0.70, 0.71, 0.72]
    # t of two degrees of freedom is 4.3027, of four 2.7764.
    assert interval(ours, None, None) == pytest.approx(4.3027 * 0.01 * (1 / 3 + 1) ** 0.5, 1e-4)
    assert interval(ours, None, 3) == pytest.approx(4.3027 * 0.01 * (2 / 3) ** 0.5, 1e-4)
    assert interval(ours, 0.01, 3) == pytest.approx(2.7764 * 0.01 * (2 / 3) ** 0.5, 1e-4)
    assert interval(ours, 0.02, None) == pytest.approx(4.3027 * (1e-4 / 3 + 4e-4) ** 0.5, 1e-4)
    assert interval([0.7, 0.7], 0.0, 3) == 0
    assert interval([0.7], 0.01, 3) is None


def test_each_figure_is_compared_with_ours_of_its_kind_of_epoch(compared: Block) -> None:
    lines = ["teacher", "none", "kd", "kd", "at", "crd"]
    assert [each.row for each in compared.lines] == lines
    last, best = line(compared, "kd"), line(compared, "kd", 1)
    assert last.difference == pytest.approx(0)
    assert best.difference == pytest.approx(0.925 - 0.95)
    assert (last.gain, last.published_gain) == pytest.approx((0.91 - 0.88, 0.01))
    assert (best.gain, best.published_gain) == pytest.approx((0.925 - 0.89, 0.05))
    assert last.verdict == "within noise"
    assert last.seconds == 10
    assert last.images_per_second == 200
    assert line(compared, "teacher").difference == pytest.approx(-0.01)
    control = line(compared, "none")
    assert control.difference == pytest.approx(-0.02)
    assert control.gain is None
    none_published = line(compared, "crd")
    assert (none_published.figure, none_published.verdict) == (None, "")


def test_the_verdict_says_noise_only_where_it_can(compared: Block) -> None:
    assert line(compared, "at").verdict == "unknown"  # one of its two runs failed
    assert line(compared, "teacher").verdict == "unknown"
    far = {"kd": (Figure(0.5, None, 3, "last", ""),)}
    other = block(record_of(RUNS), PairFigures("small", (), (), far))
    assert line(other, "kd").verdict == "outside noise"
    unknown = {"kd": (Figure(0.9, None, 3, None, ""),)}
    other = block(record_of(RUNS), PairFigures("small", (), (), unknown))
    assert line(other, "kd").verdict == "unknown"
    changed = block(record_of(RUNS), FIGURES, ["training.epochs 2 instead of 240"])
    verdicts = {each.verdict for each in changed.lines if each.figure}
    assert verdicts == {"other protocol"}


def test_the_tables_have_all_that_is_known(compared: Block) -> None:
    text = as_markdown("mine", [compared])
    for words in (
        "TEST split",
        "## small: resnet14 teaches resnet8 on digits, 2 epochs",
        "| teacher resnet14 | 96.00 | last | 95.00 |",
        "| student alone | 90.00 | last | 88.00 ± 1.41 | 89.00 ± 1.41 | 2 |",
        "| at | 92.00 ± 0.50 | last | 90.00 | 90.00 | 1 | -2.00 | unknown | +2.00 (+2.00) |",
        "| 10 | 200 | [2] |",
        "[1] a paper\n",
        "[2] its code\n",
        "at with seed 1 failed: not finite",
        "cost 1.2 core-minutes",
    ):
        assert words in text
    assert "ANOTHER PROTOCOL" not in text
    changed = as_markdown("mine", [block(record_of(RUNS), FIGURES, ["data.name digits"])])
    assert "ANOTHER PROTOCOL or other data than these runs: data.name digits" in changed
    assert all(len(texts) == len(COLUMNS) for texts in rows(compared))
    assert block_table(compared).row_count == len(compared.lines)


def test_parquet_has_all_lines_with_the_values_of_each_run(compared: Block) -> None:
    table = parquet.read_table(io.BytesIO(as_parquet([compared])))
    lines = table.to_pylist()
    assert [each["row"] for each in lines] == [each.row for each in compared.lines]
    (kd, _) = (each for each in lines if each["row"] == "kd")
    assert kd["seeds"] == [0, 1]
    assert kd["last_accuracies"] == [0.90, 0.92]
    assert kd["best_accuracies"] == [0.92, 0.93]
    assert kd["published"] == 0.91
    assert kd["last"] == pytest.approx(0.91)
    assert kd["objective"].startswith("kd(")


def test_the_picture_has_a_dot_for_each_published_figure(compared: Block, tmp_path: Path) -> None:
    figure = differences([compared])
    assert figure is not None
    (axes,) = figure.axes
    named = [label.get_text() for label in axes.get_yticklabels()]
    assert named == [
        "teacher resnet14, last epoch",
        "student alone, last epoch",
        "kd, last epoch",
        "kd, best epoch",
        "at, last epoch",
    ]
    content = differences_png([compared])
    assert content is not None
    assert content.startswith(b"\x89PNG")
    unpublished = block(record_of(RUNS), None)
    assert differences_png([unpublished]) is None
    write_files("mine", [unpublished], tmp_path / "files", picture=True)
    assert len(list((tmp_path / "files").iterdir())) == 2


def test_rows_are_what_the_pair_says_and_keep_what_they_have() -> None:
    pair = part()
    assert pair.slots == [["kd", "crd"], ["at"]]
    experiment = pair.experiment
    for row in ("none", *pair.pair.rows):
        ours = trial_config(experiment, pair.point(row, "cifar"))
        theirs = pair.pair.trial(row, "cifar", pair.pair.seed)
        assert set(map(str, ours.objective)) == set(map(str, theirs.objective))
        alone = {"objective": ()}
        assert ours.model_copy(update=alone) == theirs.model_copy(update=alone)
    record = record_of({"none": RUNS["none"], "kd": RUNS["kd"]})
    more = part("at").students(experiment, record)
    assert [(each.label, len(each.runs)) for each in more] == [("none", 2), ("kd", 2), ("at", 0)]


def test_only_what_is_asked_and_not_there_is_missing() -> None:
    record = record_of({"none": RUNS["none"], "kd": RUNS["kd"]})
    assert not part("kd").missing(record)
    assert part("kd", seeds=(0, 1, 2)).missing(record)
    assert part("kd", "at").missing(record)
    assert part("kd").missing(record.model_copy(update={"state": "interrupted"}))
    assert part("kd").missing(None)
    failed = record_of({"none": RUNS["none"], "at": RUNS["at"]})
    assert part("at").missing(failed)


def test_what_differs_from_the_file_is_named() -> None:
    asked = Pair.model_validate(
        CONTENT
        | {
            "data": CONTENT["data"] | {"train_images": 500},
            "training": {"recipe": "cifar_240", "epochs": 3},
        }
    )
    written = Pair.model_validate(CONTENT | {"training": {"recipe": "cifar_240"}})
    assert changes(written, asked) == [
        "data.train_images 500 instead of null",
        "training.epochs 3 instead of 240",
    ]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a pair and its figures, where a reproduction has ended."""
    monkeypatch.chdir(tmp_path)
    Path("pairs").mkdir()
    Path("pairs/small.yaml").write_text(yaml.safe_dump(CONTENT | {"seed": 0}))
    Path("pairs/figures.yaml").write_text(yaml.safe_dump(TABLES))
    one_core = {"cpus": 1, "gpus": 0}  # as decided, or as an earlier version wrote
    record = record_of({"none": RUNS["none"], "kd": RUNS["kd"]}, seed=0, resources=one_core)
    record = record.model_copy(update={"name": "small"})
    write_record(Storage("runs"), record)
    return tmp_path


def test_what_has_ended_is_shown_without_training_again(files: Path) -> None:
    done = reproduce([Path("pairs")], storage=Storage("runs"), methods=["kd"], name="small")
    (shown,) = done.blocks
    assert [each.row for each in shown.lines] == ["teacher", "none", "kd", "kd"]
    assert shown.lines[2].figure == LAST
    assert sorted(path.name for path in done.folder.iterdir()) == [
        "differences.png",
        "reproduction.md",
        "reproduction.parquet",
    ]
    assert done.folder == files / "runs/reproductions/small"


def test_ctrl_c_says_how_to_go_on(
    files: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.session.launch.connect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce([Path("pairs/small.yaml")], storage=Storage("runs"), methods=["kd"], seeds=3)
    said = capfd.readouterr().out
    assert "TEST split, which everywhere else is not looked at" in said
    assert said.splitlines()[-1] == "stopped; the same command continues, and repeats nothing"


def test_a_row_of_own_code_is_trained_and_goes_on_with_that_code_alone(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.session.launch.connect", interrupted)
    file, own = Path("pairs/mine.yaml"), Path("pairs/own.py")
    own.write_text(method())
    rows = {"own": {"own": {"weight": 3}}}
    written = CONTENT | {"name": "mine", "rows": rows, "plugins": ["own.py"]}
    file.write_text(yaml.safe_dump(written))
    with pytest.raises(KeyboardInterrupt):  # all is checked, the method tried, and Ray asked for
        reproduce([file], storage=Storage("runs"))

    pair = read_pair(file)
    mine = replace(part(), pair=pair, reproduction="mine", rows=("none", "own"))
    record = fresh_record(mine.experiment, Storage("runs"), "mine", None)
    begun = {"reproduces": "mine", "confirmed": tuple(mine.students(mine.experiment, None))}
    write_record(Storage("runs"), record.model_copy(update=begun))
    assert mine.record(Storage("runs")) is not None
    own.write_text(f"{method()}# edited")
    now = read_pair(file).plugins[0].digest
    message = (
        f"'mine' was begun with own.py of digest {pair.plugins[0].digest}, and now it is {now};"
    )
    with pytest.raises(ExperimentError, match=re.escape(message)):
        reproduce([file], storage=Storage("runs"))

    del written["plugins"]
    file.write_text(yaml.safe_dump(written))
    with pytest.raises(ExperimentError, match=r"rows\.own\.own: unknown method 'own'"):
        read_pair(file)
    file.write_text(yaml.safe_dump(written | {"rows": CONTENT["rows"]}))
    asked = read_pair(file, ["plugins=[pairs/own.py]", "rows={own: {own: {}}}"])
    said = [each for each in changes(read_pair(file), asked) if each.startswith("plugins")]
    assert said == [f"plugins.own.py {now} instead of null"]
    plugged.use([])


def test_mistakes_are_refused_with_one_message(files: Path) -> None:
    pair = Path("pairs/small.yaml")
    storage = Storage("runs")

    def refused(words: str, paths: Sequence[Path] = (pair,), **asked: Any) -> None:
        with pytest.raises(ExperimentError, match=words) as error:
            reproduce(paths, storage=storage, **asked)
        assert len(error.value.lines()) == 1

    refused(r"absent\.yaml: cannot be read: No such file", [Path("absent.yaml")])
    refused(r"^--pairs: no pair 'smal'; did you mean 'small'\? There are small$", pairs=["smal"])
    refused(r"^--methods: no row 'kdd'; did you mean 'kd'\?", methods=["kd", "kdd"])
    refused("invalid search name 'a/b'", name="a/b")
    refused("training.epochs: is 0, but", epochs=0)
    again = "give the same settings to go on, or another --name to begin anew"
    begun = "'small' was begun with"
    refused(rf"{begun} training\.epochs 2, and now it is 3; {again}", epochs=3)
    refused(rf"{begun} resources\.cpus 1, and now it is 2; {again}", overrides=["resources.cpus=2"])
    temperature = ["rows.kd.kd.temperature=2"]
    refused(rf"{begun} kd\.temperature 3\.0, and now it is 2\.0", overrides=temperature)
    pair.write_text(yaml.safe_dump(CONTENT | {"seed": 0, "rows": {"at": {"at": {}}}}))
    refused("has a row 'kd', which its file has not")
    search = record_of(RUNS).model_copy(update={"reproduces": "", "name": "taken-small"})
    write_record(storage, search)
    refused("'taken-small' is a search", name="taken")
