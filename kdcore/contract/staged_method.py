"""Terms that train a student first and alone, or else beside cross-entropy all along."""

from abc import abstractmethod
from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.method import Method
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.searched import Choice
from kdcore.contract.taps import Batch, Tap, Taps

# What a search tries. The field's codes take 30 of 240 epochs, an eighth; 0 is the joint mode.
PREPARATION_SHARES = (0.0, 0.0625, 0.125, 0.25, 0.5)


class StagedMethod(Method):
    """A method with one term and two modes; a subclass gives the term.

    With a `preparation_share` above 0 the term trains alone in the first epochs, unweighted, and
    then contributes nothing: it only gives the student its start. With 0, the joint mode, the
    weighted term stands beside cross-entropy in every epoch.
    """

    class Params(method.Params):
        preparation_share: Annotated[float, Field(ge=0, lt=1), Choice(PREPARATION_SHARES)] = 0.125

    params: Params

    def __init__(self, params: Params, setting: NetworkPair) -> None:
        super().__init__(params, setting)
        self.preparation_share = params.preparation_share

    @abstractmethod
    def term(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        """What either mode minimises: a scalar, in at least float32."""

    def preparation(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return self.term(student, teacher, batch)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        if self.preparation_share == 0:
            return self.term(student, teacher, batch)
        # A zero that can be differentiated, by a tap that the method reads anyway.
        read = student.maps if Tap.MAPS in self.needs else student.preactivations
        return next(iter(read.values()))[:1].float().sum() * 0.0
