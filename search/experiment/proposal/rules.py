"""The rules by which a first experiment is proposed, and their reasons.

A first experiment shall run through, in the time that its user gives it, and tell whether
distillation helps on these images. All else can be searched later. So:

- **Held-out images.** Trials are ranked by them, and the error of an accuracy shrinks with the root
  of their number: of 500, one standard error of 80 % is 1.8 points. A tenth is held out, more where
  that is fewer than 500, but never more than a quarter: the student needs the rest.
- **Image size.** Photographs are cropped to a usual size, not above that of the median image, since
  nothing is gained by enlarging. A step costs with the square of the side, so the size is the first
  to give way where time is short.
- **Networks.** Maps of 32x32 need the networks that CIFAR's literature uses, whose stem keeps the
  resolution; from 64 pixels on those of ImageNet, which divide a side by 32. The teacher is the
  largest whose training takes no more than a quarter of the time, measured. A student has at most a
  quarter of its multiply-adds: with less difference there is little reason to distil.
- **Epochs.** What counts is how many images are seen: some hundred thousand on a CPU, a few million
  on a GPU, in no fewer epochs than a cosine schedule needs to be one. The teacher gets twice as
  many, since all trials live on it.
- **Batch.** 64 as in CIFAR's literature; fewer where an epoch would have less than ten steps.
- **Methods.** Those that read logits and embeddings fit every pair of networks and cost nearly
  nothing, as the teacher's outputs are cached. Those that read maps come where a GPU pays for them.
- **Trials.** Twice as many as there are controls and published settings, so that the sampler has
  something to learn from and as many trials to use it.
- **No early stopping.** With so few trials little is saved by it, and under a cosine schedule early
  accuracies favour what learns quickly over what ends best.
- **Budget.** From the measured step of each network on a trial's cores: epochs times steps, half as
  much again for evaluation, images and teacher. The teacher trains with all cores, of which half of
  the speed is taken to be lost.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search.experiment.proposal.images import FoundImages, class_counts
from search.experiment.proposal.machine import Machine
from search.experiment.schema import CONTROL


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Args:
        multiply_adds: for one image.
        seconds: of a training step.
        memory_bytes: of training it.
    """

    multiply_adds: int
    seconds: float
    memory_bytes: int


Measure = Callable[[str, tuple[int, int], int, int], Cost]
"""Measures a network by name, image size, batch size and number of threads."""


@dataclass(frozen=True)
class Line:
    """A key of the proposal.

    Args:
        path: of the key.
        value: plain.
        reason: why.
    """

    path: tuple[str, ...]
    value: Any
    reason: str


@dataclass(frozen=True)
class _Pool:
    """Networks to choose from, the smallest first.

    Args:
        teachers: their names.
        students: likewise.
        learning_rate: for a batch of 64.
        what: which they are, in words.
    """

    teachers: Sequence[str]
    students: Sequence[str]
    learning_rate: float
    what: str


_IMAGENET_SIDE = 64
_SMALL = _Pool(
    ("resnet32", "resnet56", "resnet8x4", "wrn_40_2", "resnet32x4"),
    ("resnet8", "resnet14", "resnet20", "wrn_16_2", "resnet8x4"),
    0.1,
    "of CIFAR's literature, whose first layers keep the resolution",
)
_LARGE = _Pool(
    ("resnet18", "resnet34", "resnet50"),
    (
        "torchvision/shufflenet_v2_x0_5",
        "torchvision/mobilenet_v3_small",
        "torchvision/shufflenet_v2_x1_0",
        "torchvision/mobilenet_v2",
        "resnet18",
    ),
    0.05,
    "in ImageNet's form",
)
_STUDENTS_SHARE = 0.25  # of the teacher's multiply-adds, at most

_SIDES = (224, 192, 160, 128, 96, 64, 48, 32)
_HELDOUT, _FEWEST_HELDOUT, _MOST_HELDOUT = 0.1, 500, 0.25
_METHODS = ("kd", "dkd", "nkd", "rkd")
_METHODS_OF_MAPS = ("at", "crd", "reviewkd")
_FEWEST_EPOCHS, _MOST_EPOCHS = 15, 100
_IMAGES_ON_CPU, _IMAGES_ON_GPU = 200_000, 4_000_000  # seen by a student in a trial
_BATCH, _STEPS = 64, 10
_TEACHERS_SHARE = 0.25  # of the time
_AROUND_A_STEP = 1.5  # evaluation, images and teacher, beside the step


class Proposal:
    """A first experiment.

    Args:
        images: what was found.
        machine: where it runs.
        hours: that it may take in all.
        measure: of a network.

    Attributes:
        lines: its keys with their reasons, in the order of the file.
    """

    def __init__(
        self, images: FoundImages, machine: Machine, hours: float, measure: Measure
    ) -> None:
        self._images, self._machine, self._measure = images, machine, measure
        self._seconds = 3600 * hours
        self._heldout = _heldout_fraction(images.training_images)
        heldout = round(self._heldout * images.training_images)
        self._training = max(1, images.training_images - heldout)
        self._batch = _batch_size(self._training)
        seen = _IMAGES_ON_GPU if machine.gpus else _IMAGES_ON_CPU
        epochs = round(seen / self._training)
        self._epochs = min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, epochs))
        self._methods = [CONTROL, *_METHODS, *(_METHODS_OF_MAPS if machine.gpus else ())]
        self._at_a_time = 2 * machine.gpus or machine.cores
        self._threads = max(1, machine.cores // self._at_a_time)
        self._size, self._train_images = self._chosen_size()
        self._pool = _pool(self._size)
        self._teacher, self._teacher_epochs = self._chosen_teacher()
        self._students = self._chosen_students()
        self.lines = (*self._data(), *self._networks(), *self._training_lines(), *self._search())

    # What is chosen.

    @property
    def _sizes(self) -> list[tuple[int, int]]:
        """Heights and widths to choose from, the largest first."""
        found = self._images
        if not found.any_size:
            return [(found.height, found.width)]
        short = min(found.height, found.width)
        return [(side, side) for side in _SIDES if side <= short] or [(short, short)]

    def _chosen_size(self) -> tuple[tuple[int, int], int | None]:
        """Height and width, and how many images train where not all of them can."""
        needed = 0.0
        for size in self._sizes:
            needed = self._trials_seconds(_pool(size).students[:1], size, self._training)
            if needed <= self._for_trials:
                return size, None
        fitting = int(self._training * self._for_trials / needed)
        return self._sizes[-1], max(2 * len(self._images.classes), self._batch, fitting)

    def _chosen_teacher(self) -> tuple[str, int]:
        """The largest that can be trained in its share of the time, and for how many epochs."""
        chosen, epochs = self._pool.teachers[0], 2 * self._epochs
        for name in self._pool.teachers:
            if self._teacher_seconds(name, epochs) > _TEACHERS_SHARE * self._seconds:
                break
            chosen = name
        most = int(_TEACHERS_SHARE * self._seconds / self._teacher_seconds(chosen, 1))
        return chosen, max(_FEWEST_EPOCHS, min(epochs, most))

    def _chosen_students(self) -> list[str]:
        """The largest one or two that are small beside the teacher and fit into the time."""
        teacher = self._cost(self._teacher).multiply_adds
        small = [
            name
            for name in self._pool.students
            if self._cost(name).multiply_adds <= _STUDENTS_SHARE * teacher
        ]
        chosen = list(self._pool.students[:1])
        for name in small:
            for tried in ([*chosen[-1:], name], [name]):
                seconds = self._trials_seconds(list(dict.fromkeys(tried)), self._size, self._used)
                if seconds <= self._for_trials:
                    chosen = list(dict.fromkeys(tried))
                    break
        return chosen

    # What it costs.

    @property
    def _used(self) -> int:
        """Number of images that train."""
        return self._train_images or self._training

    @property
    def _for_trials(self) -> float:
        return (1 - _TEACHERS_SHARE) * self._seconds

    def _cost(self, name: str) -> Cost:
        """As a trial's network."""
        return self._measure(name, self._size, self._batch, self._threads)

    def _teacher_seconds(self, name: str, epochs: int) -> float:
        """Of its training."""
        steps = epochs * self._used / self._batch
        faster = max(1.0, self._machine.cores / self._threads / 2)
        if self._machine.gpus:
            faster = 1.0
        return steps * self._cost(name).seconds * _AROUND_A_STEP / faster

    def _trials_seconds(self, students: Sequence[str], size: tuple[int, int], images: int) -> float:
        """Of all trials of these students, on all of the machine."""
        steps = self._epochs * images / self._batch
        trials = 2 * len(self._methods) / self._at_a_time
        return (
            sum(
                trials * steps * self._measure(name, size, self._batch, self._threads).seconds
                for name in students
            )
            * _AROUND_A_STEP
        )

    # What is written.

    def _data(self) -> list[Line]:
        found, keys = self._images, dict(self._images.keys)
        grey = ", all grey as far as was looked" if found.is_grey and found.channels == 3 else ""
        reasons = {
            "name": f"{found.training_images:,} training images of {len(found.classes)} classes, "
            f"{class_counts(found.classes.values())}; {found.test_images:,} of the test split",
            "root": f"the median image is {found.height}x{found.width} pixels{grey}",
            "image_column": "the only column of encoded images",
            "label_column": "the only column that can be the classes",
            "augmentation": "small images of one size: decoded once, then cropped after padding "
            "and mirrored",
        }
        lines = [Line(("data", key), value, reasons[key]) for key, value in keys.items()]
        if found.any_size:
            reason = "a usual size, not above that of the median image"
            if self._size != self._sizes[0]:
                reason = "larger ones would not be done in time: a step costs with the square"
            lines.append(Line(("data", "image_size"), list(self._size), reason))
        heldout = round(self._heldout * found.training_images)
        error = 100 * math.sqrt(0.8 * 0.2 / max(1, heldout))
        reason = f"{heldout:,} images rank the trials; one standard error of 80 % is {error:.1f}"
        lines.append(Line(("data", "heldout_fraction"), self._heldout, f"{reason} points"))
        if self._train_images is not None:
            reason = f"of {self._training:,}: more would not be done in time"
            lines.append(Line(("data", "train_images"), self._train_images, reason))
        return lines

    def _networks(self) -> list[Line]:
        cost = self._cost(self._teacher)
        hours = self._teacher_seconds(self._teacher, self._teacher_epochs) / 3600
        reason = (
            f"{self._pool.what}; {cost.multiply_adds / 1e6:,.0f} million multiply-adds, about "
            f"{_rounded(hours):g} h to train"
        )
        epochs = "as many as fit into a quarter of the time"
        if self._teacher_epochs >= 2 * self._epochs:
            epochs = "twice a student's: all trials live on it"
        shares = [
            f"{self._cost(name).multiply_adds / cost.multiply_adds:.0%}" for name in self._students
        ]
        student = self._students if len(self._students) > 1 else self._students[0]
        return [
            Line(("teacher", "backbone"), self._teacher, reason),
            Line(("teacher", "training", "epochs"), self._teacher_epochs, epochs),
            *self._recipe(("teacher", "training")),
            Line(("student",), student, f"{' and '.join(shares)} of the teacher's multiply-adds"),
        ]

    def _training_lines(self) -> list[Line]:
        methods = "read logits and embeddings, which every pair of networks has"
        if self._machine.gpus:
            methods += f"; {', '.join(_METHODS_OF_MAPS)} read maps"
        seen = f"{self._epochs * self._used:,} images seen in a trial"
        return [
            Line(
                ("objective",), [self._methods], f"{CONTROL} is the control; the others {methods}"
            ),
            Line(("training", "epochs"), self._epochs, seen),
            *self._recipe(("training",)),
        ]

    def _recipe(self, path: tuple[str, ...]) -> list[Line]:
        rate = self._pool.learning_rate * self._batch / _BATCH
        steps = f"{self._used // self._batch:,} steps an epoch"
        return [
            Line((*path, "batch_size"), self._batch, steps),
            Line((*path, "learning_rate"), rate, "usual for SGD from fresh weights, at this batch"),
            Line((*path, "warmup_epochs"), 1, "fresh weights do not bear the full rate at once"),
        ]

    def _search(self) -> list[Line]:
        machine, first = self._machine, len(self._methods) * len(self._students)
        need = max(self._cost(name).memory_bytes for name in self._students)
        places = self._at_a_time
        if not machine.gpus:  # a process of PyTorch alone takes a gigabyte
            places = max(1, min(places, int(machine.memory_bytes / 2 // (need + 2**30))))
        seconds = self._trials_seconds(self._students, self._size, self._used)
        hours = _rounded(seconds * self._at_a_time / places / 3600)
        lines = [
            Line(
                ("search", "trials"),
                2 * first,
                f"{first} are controls and published settings; as many more for the sampler",
            ),
            Line(
                ("search", "hours"),
                _rounded(self._for_trials / 3600),
                f"ends the trials at the latest; by the measured step they take {hours:g} h",
            ),
            Line(
                ("search", "asha"),
                None,
                "each runs to its end: under a cosine schedule early accuracies mislead",
            ),
            Line(
                ("resources", "cpus"),
                max(1, machine.cores // places),
                f"of a trial; {places} at a time on {machine.cores} cores",
            ),
        ]
        if machine.gpus:
            lines.append(Line(("resources", "gpus"), 0.5, "two small students share one"))
        return lines


def _heldout_fraction(images: int) -> float:
    share = max(_HELDOUT, min(_MOST_HELDOUT, _FEWEST_HELDOUT / max(1, images)))
    return math.ceil(100 * share) / 100


def _batch_size(images: int) -> int:
    """A power of two, from 8 to 64; fewer than 8 only where there are not even so many images."""
    fitting = 2 ** int(math.log2(max(8, images / _STEPS)))
    return max(2, min(_BATCH, fitting, images))


def _pool(size: tuple[int, int]) -> _Pool:
    return _LARGE if min(size) >= _IMAGENET_SIDE else _SMALL


def _rounded(number: float) -> float:
    """Two significant digits, upwards."""
    unit = 10 ** (math.floor(math.log10(number)) - 1)
    return round(math.ceil(number / unit - 1e-9) * unit, 10)


def as_tree(lines: Sequence[Line]) -> Mapping[str, Any]:
    """The keys as an experiment file would have them."""
    tree: dict[str, Any] = {}
    for line in lines:
        node = tree
        for key in line.path[:-1]:
            node = node.setdefault(key, {})
        node[line.path[-1]] = line.value
    return tree
