"""No distillation: training on the labels alone, the control of every search."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.method import Method
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.taps import Batch, Tap, Taps


class NoDistillation(Method):
    """Cross-entropy alone, the control that other methods are compared with."""

    paper: ClassVar[str] = "-"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("-"),
    }
    needs: frozenset[Tap] = frozenset()

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0, le=0)] = 0.0

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return student.logits.new_zeros(()).float()
