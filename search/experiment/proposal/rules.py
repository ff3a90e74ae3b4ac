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
- **Pretrained networks.** Where some are at hand, and images are not smaller than 64 pixels, they
  teach and learn instead: fine-tuning a small one beats what the best method makes of fresh weights
  on a few thousand photographs. Students may then have half of the teacher's multiply-adds, since
  there is less to choose from; with a single network it is its own teacher.
- **Ensembles.** Where several pretrained networks are at hand, and there is time for it, they teach
  together: a larger one often knows no more of so few images, but several, averaged, make fewer
  mistakes than each. They take two fifths of the time, and are asked about each view.
- **Epochs.** What counts is how many images are seen: some hundred thousand on a CPU, a few million
  on a GPU, in no fewer epochs than a cosine schedule needs to be one; fine-tuning needs a fifth of
  these. Networks, sizes and methods are chosen by them. Then all of the time is divided: students
  train as long as they and their teachers can together, since patience pays (Beyer et al.,
  arXiv:2106.05237), and teachers up to twice as long.
- **Evaluation.** A library's weights lose accuracy on images that are not resized and cropped as
  those that they were tested with, so the teacher's weights decide how that is done.
- **Views.** Crops, mirrored; where an image is seen fifty times or more, in other colours too.
- **Metric.** Where a class has three times the images of another, accuracy is mostly that of the
  large ones, so trials are ranked by balanced accuracy.
- **Batch.** 64 as in CIFAR's literature; fewer where an epoch would have less than ten steps.
- **Methods.** Those that read logits and embeddings fit every pair of networks and cost nearly
  nothing, as the teacher's outputs are cached. Those that read maps come where a GPU pays for them.
- **Trials.** Twice as many as there are controls and published settings, so that the sampler has
  something to learn from and as many trials to use it. Where time is short, these go first.
- **No early stopping.** With so few trials little is saved by it, and under a cosine schedule early
  accuracies favour what learns quickly over what ends best.
- **Budget.** From the measured step of each network, of a teacher with all cores: epochs times
  steps, half as much again for evaluation, images and teacher.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdcore import StudentConfig
from kdcore.data.augmentation.steps import BASIC
from kdcore.data.config import OF_WEIGHTS
from kdcore.distillation.evaluation import weights_evaluation
from kdcore.errors import ConfigError
from search.experiment.proposal.images import FoundImages, class_counts
from search.experiment.proposal.kinds import IMAGENET_SIDE, LARGE, SMALL, Network, fine_tuned
from search.experiment.proposal.machine import Machine
from search.experiment.proposal.pretrained import Pretrained
from search.experiment.proposal.written import Line
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


_SIDES = (224, 192, 160, 128, 96, 64, 48, 32)
_HELDOUT, _FEWEST_HELDOUT, _MOST_HELDOUT = 0.1, 500, 0.25
_BATCH, _STEPS = 64, 10
_MANY_EPOCHS = 50
_UNEQUAL = 3.0  # times the images of the smallest class
_TEACHERS_SHARE, _ENSEMBLES_SHARE = 0.25, 0.4  # of the time
_MEMBERS = 3
_FORWARD = 1 / 3  # of a training step
AROUND_A_STEP = 1.5  # evaluation, images and teacher, beside the step

# Methods beside the control, and how often as many trials as there are first ones: what gives way
# where even the smallest images would take too long.
_METHODS_OF_MAPS = ("at", "crd", "reviewkd")
_BEYOND_LOGITS = ("rkd", *_METHODS_OF_MAPS)  # an ensemble has logits alone
_SEARCHES = ((("kd", "dkd", "nkd", "rkd"), 2), (("kd", "dkd", "rkd"), 1), (("kd",), 1))


class Proposal:
    """A first experiment.

    Args:
        images: what was found.
        machine: where it runs.
        hours: that it may take in all.
        measure: of a network.
        pretrained: networks that are at hand.

    Attributes:
        lines: its keys with their reasons, in the order of the file.
        is_fine_tuning: whether pretrained networks are used.
    """

    def __init__(
        self,
        images: FoundImages,
        machine: Machine,
        hours: float,
        measure: Measure,
        pretrained: Sequence[Pretrained] = (),
    ) -> None:
        self._large = fine_tuned(pretrained) if pretrained else LARGE
        self._images, self._machine, self._measure = images, machine, measure
        self._heldout = _heldout_fraction(images.training_images)
        self._training = images.training_images - round(self._heldout * images.training_images)
        self._batch = _batch_size(self._training)
        self._at_a_time = 2 * machine.gpus or machine.cores
        self._threads = max(1, machine.cores // self._at_a_time)
        for several in (True, False) if len(pretrained) > 1 else (False,):
            self._several, self._used = several, self._training
            share = _ENSEMBLES_SHARE if several else _TEACHERS_SHARE
            self._teachers_seconds = 3600 * hours * share
            self._trials_seconds = 3600 * hours * (1 - share)
            in_time = self._choose_search()
            if self._choose_teachers() and in_time:
                break
        self._choose_students()
        self._choose_epochs()
        self.is_fine_tuning = bool(self._teacher.weights)
        self.lines = (*self._data(), *self._networks(), *self._training_lines(), *self._search())

    # What is chosen.

    @property
    def _sizes(self) -> list[tuple[int, int]]:
        """Heights and widths to choose from, the largest first."""
        found = self._images
        if not found.any_size:
            return [(found.height, found.width)]
        short = min(found.height, found.width)
        fitting = [(side, side) for side in _SIDES if side <= short] or [(short, short)]
        large = [size for size in fitting if min(size) >= IMAGENET_SIDE]
        return large if large and self._large is not LARGE else fitting

    def _choose_search(self) -> bool:
        """The largest images, most methods and most trials for which a smallest student has time;
        where it never has, fewer epochs, and then fewer images, which cost more accuracy. Whether
        it has."""
        for methods, self._times in _SEARCHES:
            self._methods = [CONTROL, *methods]
            if self._machine.gpus:
                self._methods += _METHODS_OF_MAPS
            if self._several:
                self._methods = [each for each in self._methods if each not in _BEYOND_LOGITS]
            for size in self._sizes:
                self._size = size
                self._kind = self._large if min(self._size) >= IMAGENET_SIDE else SMALL
                seen = self._kind.images_on_cpu
                if self._machine.gpus:
                    seen = self._kind.images_on_gpu
                fewest, most = self._kind.epochs
                self._epochs = min(most, max(fewest, round(seen / self._training)))
                needed = self._seconds_of_trials(self._kind.students[:1])
                if needed <= self._trials_seconds:
                    return True
        self._epochs = max(fewest, int(self._epochs * self._trials_seconds / needed))
        needed = self._seconds_of_trials(self._kind.students[:1])
        fitting = int(self._training * self._trials_seconds / needed)
        enough = max(2 * len(self._images.classes), self._batch, fitting)
        self._used = min(self._training, enough)
        return False

    def _choose_teachers(self) -> bool:
        """The largest that can be trained in their share of the time; whether they can for the
        fewest epochs, of an ensemble for twice as many, and it is of pretrained networks."""
        if self._several:
            self._teachers = list(self._together)
        else:
            self._teachers = list(self._kind.teachers[:1])
            for network in self._kind.teachers:
                if self._seconds_of_teachers([network], 2 * self._epochs) > self._teachers_seconds:
                    break
                self._teachers = [network]
        self._teacher = self._teachers[-1]
        fewest = self._kind.epochs[0] * (2 if self._several else 1)
        in_time = self._seconds_of_teachers(self._teachers, fewest) <= self._teachers_seconds
        return in_time and (not self._several or bool(self._teacher.weights))

    @property
    def _together(self) -> Sequence[Network]:
        """The networks of an ensemble, the largest last."""
        return self._kind.teachers[-_MEMBERS:]

    def _choose_students(self) -> None:
        """The largest one or two that are small beside the teacher and fit into the time."""
        most = self._kind.share * self._cost(self._teacher).multiply_adds
        small = [each for each in self._kind.students if self._cost(each).multiply_adds <= most]
        self._students = list(self._kind.students[:1])
        for network in small:
            for several in ([*self._students[-1:], network], [network]):
                tried = list(dict.fromkeys(several))
                if self._seconds_of_trials(tried) <= self._trials_seconds:
                    self._students = tried
                    break

    def _choose_epochs(self) -> None:
        """Divides all of the time: students train as long as they and their teachers can together,
        and no longer than `search.hours` lets them; teachers up to twice as long. Fresh weights are
        never trained shorter for it."""
        seconds = self._teachers_seconds + self._trials_seconds
        fewest, most = self._kind.epochs
        trials = self._seconds_of_trials(self._students) / self._epochs
        teachers = self._seconds_of_teachers(self._teachers, 1)
        least = fewest if self._teacher.weights else self._epochs
        longest = min(seconds / (trials + teachers), self._trials_seconds / trials)
        self._epochs = max(least, min(most, int(longest)))
        fitting = int(max(seconds - self._epochs * trials, self._teachers_seconds) / teachers)
        self._teacher_epochs = max(fewest, min(2 * self._epochs, fitting))

    # What it costs.

    def _cost(self, network: Network, threads: int = 0) -> Cost:
        """On a trial's share of the machine, or with so many threads."""
        threads = threads or self._threads
        return self._measure(network.backbone, self._size, self._batch, threads)

    def _seconds_of_training(self, network: Network, epochs: int, threads: int = 0) -> float:
        steps = epochs * self._used / self._batch
        return steps * self._cost(network, threads).seconds * AROUND_A_STEP

    def _seconds_of_teachers(self, networks: Sequence[Network], epochs: int) -> float:
        """With all cores."""
        threads = self._threads if self._machine.gpus else self._machine.cores
        return sum(self._seconds_of_training(each, epochs, threads) for each in networks)

    def _seconds_of_trials(self, students: Sequence[Network]) -> float:
        """Of all trials of these students, on all of the machine, whose last places stay empty."""
        trials = self._times * len(self._methods) * len(students)
        each = [self._seconds_of_training(student, self._epochs) for student in students]
        seconds = statistics.mean(each)
        if self._several:
            steps = self._epochs * self._used / self._batch
            seconds += steps * _FORWARD * sum(self._cost(one).seconds for one in self._together)
        return math.ceil(trials / self._at_a_time) * seconds

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
            lines += self._evaluation()
            lines.append(self._views())
        heldout = round(self._heldout * found.training_images)
        error = 100 * math.sqrt(0.8 * 0.2 / max(1, heldout))
        reason = f"{heldout:,} images rank the trials; one standard error of 80 % is {error:.1f}"
        lines.append(Line(("data", "heldout_fraction"), self._heldout, f"{reason} points"))
        if self._used < self._training:
            reason = f"of {self._training:,}: more would not be done in time"
            lines.append(Line(("data", "train_images"), self._used, reason))
        return lines

    def _evaluation(self) -> list[Line]:
        """As the teacher's weights were made for, where that is known."""
        if not self._teacher.weights:
            return []
        network = StudentConfig.model_validate(self._teacher.value)
        assert network.weights is not None
        try:
            found = weights_evaluation(network.backbone, network.weights, self._size)
        except ConfigError:
            return []
        return [Line(("data", "evaluation"), OF_WEIGHTS, str(found))]

    def _views(self) -> Line:
        if self._teacher.weights and not self._images.is_grey:
            reason = "colours vary too: a pretrained network soon knows so few images by heart"
            return Line(("data", "augmentation"), "imagenet", reason)
        if self._epochs < _MANY_EPOCHS:
            reason = "crops and mirroring are enough for so few epochs"
            return Line(("data", "augmentation"), BASIC, reason)
        reason = f"each image is seen {self._epochs} times, so its colours vary too"
        return Line(("data", "augmentation"), "imagenet", reason)

    def _networks(self) -> list[Line]:
        cost = self._cost(self._teacher)
        shares = [
            f"{self._cost(each).multiply_adds / cost.multiply_adds:.0%}" for each in self._students
        ]
        values = [each.value for each in self._students]
        of = "the largest teacher's" if self._several else "the teacher's"
        words = f"{' and '.join(shares)} of {of} multiply-adds"
        if [self._teacher] == self._teachers and self._teacher in self._students:
            words += "; a network can teach its own twin, a larger pretrained one teaches more"
        return [
            *(self._ensemble() if self._several else self._single(cost)),
            Line(("student",), values if len(values) > 1 else values[0], words),
        ]

    def _single(self, cost: Cost) -> list[Line]:
        """A network that teaches."""
        reason = (
            f"{self._kind.what}; {cost.multiply_adds / 1e6:,.0f} million multiply-adds, about "
            f"{self._teachers_hours:g} h to train"
        )
        epochs = "as many as there is time for"
        if self._teacher_epochs == 2 * self._epochs:
            epochs = "twice a student's: all trials live on it"
        network = self._teacher
        weights = [Line(("teacher", "weights"), network.weights, "at hand; a new head is put on")]
        return [
            Line(("teacher", "backbone"), network.backbone, reason),
            *(weights if network.weights else []),
            Line(("teacher", "training", "epochs"), self._teacher_epochs, epochs),
            *self._recipe(("teacher", "training")),
        ]

    def _ensemble(self) -> list[Line]:
        """Networks that teach together."""
        recipe = {line.path[-1]: line.value for line in self._recipe(())}
        training = {"epochs": self._teacher_epochs, **recipe}
        members = [
            {"backbone": each.backbone, "weights": each.weights, "training": training}
            for each in reversed(self._teachers)  # the first decides how images are evaluated
        ]
        reason = (
            f"pretrained, at hand; averaged, they make fewer mistakes than each; about "
            f"{self._teachers_hours:g} h to train"
        )
        return [Line(("teacher", "ensemble"), members, reason)]

    @property
    def _teachers_hours(self) -> float:
        return _rounded(self._seconds_of_teachers(self._teachers, self._teacher_epochs) / 3600)

    def _training_lines(self) -> list[Line]:
        methods = "read logits and embeddings, which every pair of networks has"
        if self._several:
            methods = "read logits, which an ensemble has"
        elif self._machine.gpus:
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
        steps = f"{self._used // self._batch:,} steps an epoch"
        lines = [Line((*path, "batch_size"), self._batch, steps)]
        for key, (value, reason) in self._kind.recipe.items():
            scaled = value * self._batch / _BATCH if key == "learning_rate" else value
            lines.append(Line((*path, key), scaled, reason))
        return lines

    def _metric(self) -> list[Line]:
        times = self._images.imbalance
        if times <= _UNEQUAL:
            return []
        reason = f"the largest class has {times:.2g} times the images of the smallest"
        return [Line(("search", "metric"), "balanced_accuracy", reason)]

    def _search(self) -> list[Line]:
        machine, first = self._machine, len(self._methods) * len(self._students)
        need = max(self._cost(each).memory_bytes for each in self._students)
        places = self._at_a_time
        if not machine.gpus:  # a process of PyTorch alone takes a gigabyte
            places = max(1, min(places, int(machine.memory_bytes / 2 // (need + 2**30))))
        hours = self._seconds_of_trials(self._students) * self._at_a_time / places / 3600
        trials = f"{first} are controls and published settings"
        if self._times > 1:
            trials += "; as many more for the sampler"
        lines = [
            Line(("search", "trials"), self._times * first, trials),
            Line(
                ("search", "hours"),
                _rounded(self._trials_seconds / 3600),
                f"ends the trials at the latest; by the measured step they take {_rounded(hours):g}"
                f" h",
            ),
            *self._metric(),
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
    fitting = 1 << int(math.log2(max(8, images / _STEPS)))
    return max(2, min(_BATCH, fitting, images))


def _rounded(number: float) -> float:
    """Two significant digits, upwards."""
    unit = math.pow(10, math.floor(math.log10(number)) - 1)
    return round(math.ceil(number / unit - 1e-9) * unit, 10)
