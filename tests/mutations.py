"""Do the tests notice a mistake? `python -m tests.mutations` makes a dozen on purpose, each in a
copy of its own, and names the first test that fails. Takes some minutes; exits with 1 where a
mistake goes unnoticed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_COPIED = ("kdcore", "search", "tests", "pyproject.toml")


@dataclass(frozen=True)
class Defect:
    """A deliberate mistake.

    Args:
        words: what is wrong.
        file: where, from the repository's root.
        old: the right text, which stands there once.
        new: the wrong one.
        tests: what is to notice, as arguments of pytest.
    """

    words: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


DEFECTS = (
    Defect(
        "a sign in a loss",
        "kdcore/methods/dkd.py",
        "target_weight * target + nontarget_weight",
        "target_weight * target - nontarget_weight",
        ("tests/unit/kdcore/test_loss_dkd.py",),
    ),
    Defect(
        "a temperature that is not squared",
        "kdcore/operations/logits.py",
        "divergences.sum(1) * temperature**2",
        "divergences.sum(1) * temperature",
        ("tests/unit/kdcore/test_loss_kd.py",),
    ),
    Defect(
        "a wrong tap of a backbone",
        "kdcore/backbones/resnet.py",
        "                after = self.relu(before)\n            yield tap, before, after",
        "                after = self.relu(before)\n            yield tap, after, after",
        ("tests/unit/kdcore/test_backbones.py", "-k", "resnet8"),
    ),
    Defect(
        "cross-entropy without its factor",
        "kdcore/training/run.py",
        "*(labels * weight for weight",
        "*(weight for weight",
        ("tests/unit/kdcore/test_training.py", "-k", "cross_entropy"),
    ),
    Defect(
        "a teacher that gets a gradient",
        "kdcore/contract/method.py",
        "        teacher = teacher.detach()\n",
        "",
        ("tests/unit/kdcore/test_methods.py", "-k", "gradient and wsld"),
    ),
    Defect(
        "a GPU that more trials share than fit",
        "search/record/sharing.py",
        "more * (trial_bytes + PROCESS_BYTES) > USABLE",
        "number * (trial_bytes + PROCESS_BYTES) > USABLE",
        ("tests/unit/search/test_sharing.py", "-k", "fits"),
    ),
    Defect(
        "a process that compares its own images alone",
        "kdcore/methods/rkd.py",
        "    compares_images: bool = True\n",
        "",
        ("tests/unit/kdcore/test_methods.py", "-k", "mean_over_them and rkd"),
    ),
    Defect(
        "a rung that keeps one too many",
        "search/stopping/rungs.py",
        "stops=better >= places",
        "stops=better > places",
        ("tests/unit/search/test_rungs.py",),
    ),
    Defect(
        "a resumed run that forgets its helpers",
        "kdcore/training/run.py",
        '        self.helpers.load_state_dict(state["helpers"])\n',
        "",
        ("tests/unit/kdcore/test_distillation.py", "-k", "resumed and vid"),
    ),
    Defect(
        "a resumed run that forgets its optimiser",
        "kdcore/training/run.py",
        '        self.optimizer.load_state_dict(state["optimizer"])\n',
        "",
        ("tests/unit/kdcore/test_distillation.py", "-k", "resumed and vid"),
    ),
    Defect(
        "a queue that delivers twice",
        "search/tracking/delivery.py",
        '% entries[-1]["entry"], 0)',
        "% 0, 0)",
        ("tests/unit/search/test_delivery_queue.py",),
    ),
    Defect(
        "cached outputs of another teacher",
        "kdcore/teacher_cache/cache.py",
        "            hashlib.sha256(weights.read_bytes()).hexdigest(),\n",
        "",
        ("tests/unit/kdcore/test_teacher_cache.py", "-k", "another_cache"),
    ),
    Defect(
        "held-out images that train",
        "kdcore/data/image_data.py",
        "heldout, rest = training_part[heldout], training_part[rest]",
        "heldout, rest = training_part[heldout], training_part",
        ("tests/unit/kdcore/test_data.py",),
    ),
    Defect(
        "a gain over another student's control",
        "search/record/record.py",
        "return controls.get(student)",
        "return next(iter(controls.values()), None)",
        ("tests/unit/search/test_leaderboard.py",),
    ),
    Defect(
        "a leaderboard by the last epoch",
        "search/record/record.py",
        "-(trial.score if trial.score is not None else -1.0)",
        "-(trial.accuracies[-1] if trial.accuracies else trial.score or -1.0)",
        ("tests/unit/search/test_leaderboard.py",),
    ),
    Defect(
        "an exported student without its normalisation",
        "search/export/graph_formats.py",
        "        program = torch.export.export(classifier,",
        "        from copy import deepcopy\n"
        "        classifier = deepcopy(classifier)\n"
        "        classifier.mean.zero_()\n"
        "        program = torch.export.export(classifier,",
        ("tests/unit/search/test_export.py", "-k", "takes_any_number"),
    ),
)


def first_failure(tests: tuple[str, ...], defect: Defect | None) -> str | None:
    """The first test that fails with a defect, or without any; none where all pass."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for copied in _COPIED:
            source = ROOT / copied
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, folder / copied, ignore=ignored)
            else:
                shutil.copy(source, folder / copied)
        if defect is not None:
            path = folder / defect.file
            text = path.read_text()
            if text.count(defect.old) != 1:
                raise ValueError(
                    f"{defect.file} has {text.count(defect.old)} times {defect.old!r}, but must "
                    f"have it once; say anew where to put {defect.words}"
                )
            path.write_text(text.replace(defect.old, defect.new))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-rfE", *tests],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
            check=False,
            capture_output=True,
            text=True,
        )
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if failed is None:
        raise ValueError(f"pytest ended with {done.returncode}: {done.stdout}{done.stderr}")
    return failed[1]


def main() -> int:
    """Prints a line for each defect; returns the exit status."""
    mistakes = 0
    for tests in dict.fromkeys(defect.tests for defect in DEFECTS):
        failed = first_failure(tests, None)
        mistakes += failed is not None
        print(f"no defect, {' '.join(tests)}: {failed or 'passes'}", flush=True)
    for defect in DEFECTS:
        failed = first_failure(defect.tests, defect)
        mistakes += failed is None
        print(f"{defect.words}: {failed or 'NOT NOTICED'}", flush=True)
    return int(mistakes > 0)


if __name__ == "__main__":
    sys.exit(main())
