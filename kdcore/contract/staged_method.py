"""Methods that either initialise the student or train it along with cross-entropy."""

from abc import abstractmethod
from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.method import Method
from kdcore.contract.searched import Choice
from kdcore.contract.taps import Batch, Tap, Taps

# Searched values. Published code prepares for 30 of 240 epochs, an eighth; 0 is the joint mode.
PREPARATION_SHARES = (0.0, 0.0625, 0.125, 0.25, 0.5)


class StagedMethod(Method):
    """A method with one term and two modes; a subclass defines the term.

    With a `preparation_share` above 0, the first epochs minimise the term alone, unweighted, and
    the others cross-entropy without it: the method initialises the student. With 0, the joint
    mode, the weighted term is added to cross-entropy in every epoch.
    """

    class Params(method.Params):
        preparation_share: Annotated[float, Field(ge=0, lt=1), Choice(PREPARATION_SHARES)] = 0.125

    params: Params

    @abstractmethod
    def term(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        """The term of both modes: a scalar, in at least float32."""

    def preparation(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return self.term(student, teacher, batch)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        if self.params.preparation_share == 0:
            return self.term(student, teacher, batch)
        # A differentiable zero, from a tap that is there anyway.
        read = student.maps if Tap.MAPS in self.needs else student.preactivations
        return next(iter(read.values()))[:1].float().sum() * 0.0
