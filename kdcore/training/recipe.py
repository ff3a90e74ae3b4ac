"""The training recipe: optimiser, schedule, precision."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from kdcore.errors import ConfigError, did_you_mean
from kdcore.training.named_recipes import NAMED_RECIPES

if TYPE_CHECKING:
    from kdcore.contract.method import Params

# The step schedule of the distillation literature: epochs 150, 180 and 210 of 240.
_STEP_MILESTONES = (0.625, 0.75, 0.875)

USED_BY: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "milestones": ("schedule", ("step",)),
    "gamma": ("schedule", ("step",)),
    "decay_share": ("schedule", ("wsd",)),
    "minimum_learning_rate": ("schedule", ("cosine", "step", "wsd")),
    "nesterov": ("optimizer", ("sgd",)),
    "betas": ("optimizer", ("adamw", "lamb")),
}
"""Keys that have an effect only under some values of another key: that key, and those values."""

# Keys that came after version 0.1.0. At their defaults they are not written, so that what was
# trained before is still known by its recipe.
_LATER_KEYS = (
    *USED_BY,
    "decay_norms_and_biases",
    "preparation_on_top",
    "label_smoothing",
    "ema_decay",
    "drop_path",
    "accumulation",
    "sync_batch_norms",
    *("head_learning_rate", "frozen_stages", "linear_probe", "layer_decay"),
)

# Keys that count epochs; those of a named recipe keep their share of other `epochs`.
_IN_EPOCHS = ("milestones", "warmup_epochs")

NAMED = "recipe"
"""The key that names a recipe; the keys beside it take precedence over those it stands for."""

_Beta = Annotated[float, Field(ge=0, lt=1)]


class BaseRecipe(BaseModel):
    """How to train a network, but for the learning rate.

    `recipe: NAME` stands for the keys of one of `NAMED_RECIPES`, beside others that replace them.
    Where `epochs` is one of those, its milestones and warm-up keep their share of the epochs.

    Args:
        epochs: passes over the training images.
        batch_size: images that are trained on at once; an incomplete last batch is dropped.
        accumulation: batches in a step of the optimiser, whose gradients are averaged; an
            incomplete last step is dropped. Batch norms, and methods that compare the images of a
            batch, see one batch at a time.
        optimizer: `sgd` with momentum, `adamw`, or `lamb`.
        momentum: of SGD.
        nesterov: Nesterov's momentum, for SGD.
        betas: of AdamW and LAMB, for the means of gradients and of their squares; by default 0.9
            and 0.999.
        weight_decay: of all parameters.
        decay_norms_and_biases: whether it is also of parameters with one dimension, those of norms
            and biases, in student and helpers.
        schedule: after the warm-up, `cosine` to the minimum, `step` (times gamma at each
            milestone), `constant`, or `wsd` (warm-up, stable, decay: Hu et al., COLM 2024,
            arXiv:2404.06395), constant but for the last epochs, in which it falls to the minimum
            by 1 - sqrt(share of them), as Hägele et al., NeurIPS 2024, arXiv:2405.18392.
        milestones: for `step`, the numbers of epochs, warm-up included, after which the learning
            rate is multiplied by gamma; by default 62.5, 75 and 87.5 percent of those after the
            warm-up.
        gamma: for `step`, the factor.
        decay_share: for `wsd`, the share of the epochs after the warm-up in which it falls.
        minimum_learning_rate: where `cosine` and `wsd` end, and below which `step` does not go.
        warmup_epochs: epochs of linear warm-up of the learning rate, from zero.
        gradient_clip_norm: maximum norm of the gradients of student and helpers together; None for
            no clipping.
        label_smoothing: share of the target that all classes have in equal parts, in cross-entropy
            with the labels; the methods' terms, and held-out losses, are as without.
        ema_decay: of an exponential moving average of the student's weights, updated after each
            step; after n steps the decay is at most (1 + n) / (10 + n). The better of the average
            and the weights, on the held-out images, is the epoch's result; where nothing is held
            out, the average is. None for no average.
        drop_path: probability at the last block of skipping it for an image (stochastic depth),
            from 0 at the first; None for the library's own, which is 0 but for some networks of
            torchvision.
        preparation_on_top: whether the preparatory stages of methods come before these epochs, at
            the learning rate itself, after which the schedule begins; else the first of these
            epochs are theirs. Their length is a share of `epochs` either way; warm-ups of other
            terms count them too.
        head_learning_rate: factor on the learning rate of the head, the classifier.
        frozen_stages: number of first stages, with the stem, that keep the weights and running
            statistics that they begin with.
        linear_probe: whether only the head is trained.
        layer_decay: factor on the learning rate from each stage to the one before it, and from the
            head to the last stage.
        acceleration: `auto` for the precision and memory layout that were measured to be fastest
            on the device; `off` for float32.
        compile: `torch.compile` the student. Takes about a minute in each process, which pays off
            in long trials, and needs a C++ compiler.
        sync_batch_norms: whether batch norms normalise by the images of all processes that train a
            student together, not by those of their own.
        cuda_graph: replay each epoch's steps as one CUDA graph. Pays off where kernels are shorter
            than their launches; not for methods that synchronise with the device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(ge=1)
    batch_size: int = Field(64, ge=2)
    accumulation: int = Field(1, ge=1)
    optimizer: Literal["sgd", "adamw", "lamb"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    weight_decay: float = Field(5e-4, ge=0)
    decay_norms_and_biases: bool = True
    schedule: Literal["cosine", "step", "constant", "wsd"] = "cosine"
    milestones: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    gamma: float = Field(0.1, gt=0, lt=1)
    decay_share: float = Field(0.2, gt=0, le=1)
    minimum_learning_rate: float = Field(0.0, ge=0)
    warmup_epochs: float = Field(0.0, ge=0)
    gradient_clip_norm: float | None = Field(None, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    drop_path: float | None = Field(None, ge=0, lt=1)
    preparation_on_top: bool = False
    head_learning_rate: float = Field(1.0, gt=0)
    frozen_stages: int = Field(0, ge=0)
    linear_probe: bool = False
    layer_decay: float = Field(1.0, gt=0, le=1)
    acceleration: Literal["auto", "off"] = "auto"
    compile: bool = False
    cuda_graph: bool = False
    sync_batch_norms: bool = False

    @model_validator(mode="before")
    @classmethod
    def _plain_keys(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or NAMED not in value:
            return value
        given = {key: each for key, each in value.items() if key != NAMED}
        named = named_keys(value[NAMED], given.get("epochs"))
        for key, (setting, users) in USED_BY.items():
            if (named | given)[setting] not in users:
                named.pop(key, None)  # the user did not write it
        return named | given

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {
            key: value
            for key, value in written.items()
            if key not in _LATER_KEYS or getattr(self, key) != fields[key].default
        }

    @model_validator(mode="after")
    def _warmup_within_budget(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(
                f"warmup_epochs is {self.warmup_epochs}, but must be below epochs, which is "
                f"{self.epochs}"
            )
        return self

    @model_validator(mode="after")
    def _only_what_is_used(self) -> Self:
        for key, (setting, users) in USED_BY.items():
            chosen = getattr(self, setting)
            if key in self.model_fields_set and chosen not in users:
                raise ConfigError(
                    f"{key} is {_in_yaml(getattr(self, key))}, but only {setting} "
                    f"{' or '.join(users)} uses it, and {setting} is {chosen}; leave it out"
                )
        if self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov is true, but needs momentum > 0, and momentum is 0")
        return self

    @model_validator(mode="after")
    def _nothing_decided_twice(self) -> Self:
        if self.linear_probe and (self.frozen_stages or self.layer_decay != 1):
            key = "frozen_stages" if self.frozen_stages else "layer_decay"
            raise ConfigError(
                f"{key} is {getattr(self, key)}, but linear_probe is true, which trains only the "
                f"head; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _nothing_waits_in_a_compiled_student(self) -> Self:
        if self.compile and self.sync_batch_norms:
            raise ConfigError(
                "compile is true, but sync_batch_norms has the student wait for other processes, "
                "which a compiled one cannot; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _milestones_in_order(self) -> Self:
        if self.milestones is None:
            return self
        bounds = (self.warmup_epochs, *self.milestones, float(self.epochs))
        if list(bounds) != sorted(set(bounds)):
            raise ConfigError(
                f"milestones is {_in_yaml(self.milestones)}, but they must rise from above "
                f"warmup_epochs, which is {self.warmup_epochs:g}, to below epochs, which is "
                f"{self.epochs}; leave them out for 62.5, 75 and 87.5 percent"
            )
        return self

    def _check_minimum(self, learning_rate: float) -> None:
        """Refuses a minimum that is not below the rate after the warm-up."""
        if self.minimum_learning_rate >= learning_rate:
            raise ConfigError(
                f"minimum_learning_rate is {self.minimum_learning_rate}, but must be below "
                f"learning_rate, which is {learning_rate}"
            )

    @property
    def images_in_step(self) -> int:
        """Images in a step of the optimiser."""
        return self.batch_size * self.accumulation

    def epochs_on_top(self, methods: "Iterable[Params]") -> int:
        """Epochs of the preparatory stages of methods that come before the recipe's.

        Args:
            methods: their parameters.
        """
        if not self.preparation_on_top:
            return 0
        return max((params.preparation_epochs(self.epochs) for params in methods), default=0)

    @property
    def is_fine_tuning(self) -> bool:
        """Whether the parts of a network are trained in different ways."""
        return (
            self.linear_probe
            or self.frozen_stages > 0
            or self.head_learning_rate != 1
            or self.layer_decay != 1
        )

    def check_workers(self, number: int) -> None:
        """Refuses what several processes cannot train with.

        Args:
            number: of processes.

        Raises:
            ConfigError: a batch has less than two images for each, or a step is one CUDA graph.
        """
        if number > 1 and self.batch_size < 2 * number:
            raise ConfigError(
                f"training.batch_size is {self.batch_size}, but {number} workers need at least "
                f"{2 * number}, two images each; use larger batches, or fewer workers"
            )
        if number > 1 and self.cuda_graph:
            raise ConfigError(
                f"training.cuda_graph is true, but {number} workers exchange gradients in a step, "
                f"which no graph records; leave it out"
            )

    def check_fresh(self, network: str) -> None:
        """Refuses to preserve what a network knows that begins with fresh weights.

        Args:
            network: what it is called.

        Raises:
            ConfigError: parts would stay as they are, or learn slower.
        """
        for key in ("linear_probe", "frozen_stages", "layer_decay"):
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                raise ConfigError(
                    f"training.{key} is {_in_yaml(value)}, but {network} begins with fresh "
                    f"weights, which know nothing yet; give it weights, or leave {key} out"
                )

    def in_words(self, learning_rate: str) -> str:
        """The recipe in a line, but for its defaults of what few change.

        Args:
            learning_rate: a number or a range.
        """
        words = [
            f"{self.epochs} epochs",
            f"batch {self.batch_size}"
            + (f" times {self.accumulation} a step" if self.accumulation > 1 else ""),
            f"{self.optimizer} {learning_rate}",
        ]
        if self.optimizer == "sgd":
            words.append(f"{'nesterov' if self.nesterov else 'momentum'} {self.momentum:g}")
        else:
            words.append(f"betas {self.betas[0]:g} and {self.betas[1]:g}")
        kept = "" if self.decay_norms_and_biases else " but not of norms and biases"
        words.append(f"weight decay {self.weight_decay:g}{kept}")
        if self.warmup_epochs:
            words.append(f"warm-up {self.warmup_epochs:g}")
        floor = f" to {self.minimum_learning_rate:g}" if self.minimum_learning_rate else ""
        if self.schedule == "step":
            after = ", ".join(f"{milestone:g}" for milestone in self._milestones_in_epochs())
            words.append(f"step{floor}, times {self.gamma:g} after epochs {after}")
        elif self.schedule == "wsd":
            words.append(f"wsd{floor}, falling in the last {100 * self.decay_share:g} %")
        else:
            words.append(f"{self.schedule}{floor}")
        if self.gradient_clip_norm is not None:
            words.append(f"clipped at {self.gradient_clip_norm:g}")
        if self.label_smoothing:
            words.append(f"labels smoothed by {self.label_smoothing:g}")
        if self.ema_decay is not None:
            words.append(f"moving average of weights {self.ema_decay:g}")
        if self.drop_path is not None:
            words.append(f"drop path {self.drop_path:g}")
        if self.preparation_on_top:
            words.append("preparatory epochs on top")
        if self.sync_batch_norms:
            words.append("batch norms over all workers")
        return ", ".join([*words, *self._parts_in_words()])

    def _parts_in_words(self) -> list[str]:
        """What differs between the parts of a network."""
        words = {
            f"times {self.head_learning_rate:g} for the head": self.head_learning_rate != 1,
            f"times {self.layer_decay:g} for each stage before it": self.layer_decay != 1,
            f"first {self.frozen_stages} stages frozen": self.frozen_stages > 0,
            "only the head": self.linear_probe,
        }
        return [each for each, holds in words.items() if holds]

    def _milestones_in_epochs(self) -> tuple[float, ...]:
        if self.milestones is not None:
            return self.milestones
        falling = self.epochs - self.warmup_epochs
        return tuple(self.warmup_epochs + share * falling for share in _STEP_MILESTONES)


class Recipe(BaseRecipe):
    """How to train a network; see `BaseRecipe` for all but one of its settings.

    Args:
        learning_rate: after the warm-up.
    """

    learning_rate: float = Field(0.05, gt=0)

    @model_validator(mode="after")
    def _minimum_below_the_peak(self) -> Self:
        self._check_minimum(self.learning_rate)
        return self

    def __str__(self) -> str:
        return self.in_words(f"{self.learning_rate:g}")

    def learning_rate_at(self, progress_epochs: float) -> float:
        """The learning rate after 0 to `epochs` epochs, whole or fractional."""
        if progress_epochs < self.warmup_epochs:
            return self.learning_rate * progress_epochs / self.warmup_epochs
        share = (progress_epochs - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        if self.schedule == "cosine":
            height = self.learning_rate - self.minimum_learning_rate
            return self.minimum_learning_rate + height * 0.5 * (1 + math.cos(math.pi * share))
        if self.schedule == "step":
            if self.milestones is None:
                passed = sum(share >= milestone for milestone in _STEP_MILESTONES)
            else:
                passed = sum(progress_epochs >= milestone for milestone in self.milestones)
            return max(self.minimum_learning_rate, self.learning_rate * self.gamma**passed)
        if self.schedule == "wsd":
            fallen = max(0.0, 1 - (1 - share) / self.decay_share)
            height = self.learning_rate - self.minimum_learning_rate
            return self.minimum_learning_rate + height * (1 - math.sqrt(fallen))
        return self.learning_rate


def named_keys(name: Any, epochs: Any = None) -> dict[str, Any]:
    """The keys that a recipe's name stands for.

    Args:
        name: of the recipe.
        epochs: of which milestones and warm-up keep their share; None: those of the recipe.

    Raises:
        ConfigError: there is no such recipe.
    """
    if not isinstance(name, str) or name not in NAMED_RECIPES:
        raise ConfigError(
            f"unknown {NAMED} {name!r}{did_you_mean(str(name), NAMED_RECIPES)} "
            f"The recipes are {', '.join(NAMED_RECIPES)}"
        )
    keys = dict(NAMED_RECIPES[name].keys)
    if isinstance(epochs, int):
        for key in _IN_EPOCHS:
            if key in keys:
                keys[key] = _scaled(keys[key], epochs, keys["epochs"])
    return keys


def _scaled(value: Any, epochs: int, of: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_scaled(each, epochs, of) for each in value)
    return value * epochs / of


def _in_yaml(value: Any) -> str:
    """A value of a key, as its user writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(f'{each:g}' for each in value)}]"
    return str(value).lower()
