"""The configuration of one distillation, and of a term in its objective."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from kdcore.backbones.names import own_digests
from kdcore.contract import plugged
from kdcore.contract.method import Params
from kdcore.contract.plugin import Kind
from kdcore.data.config import DataConfig
from kdcore.distillation.without_labels import cannot_be_judged, check_without_labels
from kdcore.errors import ConfigError
from kdcore.methods import CATALOGUE, check_method, check_mixing
from kdcore.networks.config import StudentConfig
from kdcore.teacher.config import AnyTeacher
from kdcore.teacher_cache.config import CacheConfig
from kdcore.training.metric import Metric
from kdcore.training.recipe import Recipe

# Keys of the data that decide its views alone.
_VIEWS = ("views", "view_seed", "augmentation")


class TermConfig(BaseModel):
    """A method of an objective and its parameters, which default to the published values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Annotated[str, AfterValidator(check_method)]
    params: SerializeAsAny[Params]

    @model_validator(mode="before")
    @classmethod
    def _published_unless_given(cls, value: Any) -> Any:
        return {"params": {}, **value} if isinstance(value, Mapping) else value

    @field_validator("params", mode="wrap")
    @classmethod
    def _of_the_method(cls, value: Any, handler: Any, info: ValidationInfo) -> Params:
        if "method" not in info.data:  # unknown, which is reported already
            return Params()
        method = info.data["method"]
        if method not in CATALOGUE:
            raise ConfigError(f"the method {method!r} is of a plugin that is not in use")
        return CATALOGUE[method].Params.model_validate(value)

    def __str__(self) -> str:
        """The method with its searched parameters, like `kd(weight=0.9, temperature=4)`."""
        searched = type(self.params).searched()
        settings = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.params
            if name in searched or (name == "cross_entropy" and value != 1)
        )
        return f"{self.method}({settings})" if settings else self.method


class TrialConfig(BaseModel):
    """Everything that decides the numbers of one distillation.

    Args:
        data: the images.
        teacher: the teacher, or an ensemble of teachers.
        student: the student network's name, or a mapping with the weights that it begins with.
        objective: the terms added to cross-entropy, whose factor is the largest that one of them
            has; an empty objective is the control.
        training: the recipe.
        seed: of the initial weights of student and helpers, and of the order of the images.
        cache: of the teacher's outputs; None to run the teacher in every step.
        metric: of the held-out images, by which the best epoch is chosen.
        teacher_data: the images as the teacher learned from them, where its views were others than
            those of `data`; None: the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataConfig
    teacher: AnyTeacher
    student: StudentConfig
    objective: tuple[TermConfig, ...] = ()
    training: Recipe
    seed: int = Field(0, ge=0, lt=2**32)
    cache: CacheConfig | None = None
    metric: Metric = "accuracy"
    teacher_data: DataConfig | None = None

    @property
    def data_of_teacher(self) -> DataConfig:
        """The images as the teacher learned from them."""
        return self.data if self.teacher_data is None else self.teacher_data

    @property
    def epochs_on_top(self) -> int:
        """Epochs of preparatory stages that come on top of the recipe's."""
        return self.training.epochs_on_top(term.params for term in self.objective)

    @property
    def identity(self) -> str:
        """A text that is equal for two trials exactly if their configurations are. A factor of 1
        for cross-entropy is not written: it is what version 0.1.0 had; nor is the accuracy as
        metric. The digests of plugins are, where it uses some."""
        kept = {"decoded_gb"}
        content = self.model_dump(
            mode="json",
            exclude={"data": kept, "teacher_data": kept, "cache": {"device_share"}},
        )
        if self.metric == "accuracy":
            del content["metric"]
        for term in content["objective"]:
            if term["params"]["cross_entropy"] == 1:
                del term["params"]["cross_entropy"]
        if own := self.own_code:
            content["plugins"] = own
        return json.dumps([content], sort_keys=True)

    @property
    def own_code(self) -> dict[str, str]:
        """By what it adds, the digests of the plugins that decide its numbers; empty without."""
        teachers = [name for each in self.teacher.members for name in each.networks]
        used = [
            *((Kind.METHODS, term.method) for term in self.objective),
            (Kind.DATA, self.data.name),
        ]
        digests = {f"{kind} {name}": plugged.digest_of_name(kind, name) for kind, name in used}
        for network in (self.student.backbone, *teachers):
            for name, digest in own_digests(network).items():
                digests[f"{Kind.BACKBONES} {name}"] = digest
        return {name: digest for name, digest in digests.items() if digest}

    @model_serializer(mode="wrap")
    def _without_the_data_of_the_teacher(
        self, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leaves it out where it is the same, as what was written before it could be another."""
        content: dict[str, Any] = serialize(self)
        if self.teacher_data is None:
            content.pop("teacher_data", None)
        return content

    @model_validator(mode="after")
    def _the_teachers_images(self) -> Self:
        if self.teacher_data is None:
            return self
        ours, theirs = dict(self.data), dict(self.teacher_data)
        keys = [key for key in ours if ours[key] != theirs[key] and key not in _VIEWS]
        if keys:
            raise ConfigError(
                f"teacher_data has another {' and '.join(keys)} than data, but only its views may "
                f"differ: {', '.join(_VIEWS)}"
            )
        return self

    @model_validator(mode="after")
    def _fresh_weights_are_trained(self) -> Self:
        if self.student.weights is None:
            self.training.check_fresh(f"student {self.student}")
        return self

    @model_validator(mode="after")
    def _each_method_once(self) -> Self:
        methods = [term.method for term in self.objective]
        if len(set(methods)) < len(methods):
            twice = next(name for name in methods if methods.count(name) > 1)
            raise ConfigError(f"objective lists {twice!r} twice; list each method once")
        return self

    @model_validator(mode="after")
    def _methods_that_take_mixed_images(self) -> Self:
        if self.data.mixes:
            check_mixing(term.method for term in self.objective)
        return self

    @model_validator(mode="after")
    def _learned_without_labels(self) -> Self:
        if self.data.judge is None:
            return self
        check_without_labels(self.data.judge, [self.teacher], self.training)
        for term in self.objective:
            if reason := cannot_be_judged(self.data.judge, term.method, term.params):
                raise ConfigError(reason)
            if term.params.cross_entropy:
                raise ConfigError(
                    f"{term.method} has cross_entropy {term.params.cross_entropy:g}, but "
                    f"data.judge is {self.data.judge}, with which students learn without labels; "
                    f"set it to 0"
                )
        return self

    @model_validator(mode="after")
    def _something_to_minimise(self) -> Self:
        if self.objective and not any(
            term.params.weight or term.params.cross_entropy for term in self.objective
        ):
            raise ConfigError(
                "weight and cross_entropy of the whole objective are 0, which trains nothing; "
                "one of them must be above 0"
            )
        return self
