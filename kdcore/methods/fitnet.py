"""FitNets: Hints for Thin Deep Nets. Romero et al., ICLR 2015, arXiv:1412.6550."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from kdcore.contract.layer_pairs import MIDDLE, resolve_layers
from kdcore.contract.method import full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.searched import Choice, LayerChoice, Span
from kdcore.contract.staged_method import PREPARATION_SHARES, StagedMethod
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.connectors import connector
from kdcore.operations.match_spatial import match_spatial


@full_precision
def fitnet_loss(regressed_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of a regressed student map and the teacher's hint (equation 3).

    Args:
        regressed_map: [B, C, H, W], the student's map after the regressor.
        teacher_map: [B, C, H, W].

    Returns:
        Scalar, mean over all elements, without the paper's factor 1/2. Zero when both are equal.
    """
    return mse_loss(regressed_map, teacher_map)


class FitNet(StagedMethod):
    """Hints: a regressor, trained along, predicts the teacher's map from the student's."""

    paper: ClassVar[str] = "arXiv:1412.6550"
    needs: frozenset[Tap] = frozenset({Tap.MAPS})

    class Params(StagedMethod.Params):
        """The settings of FitNet.

        Args:
            weight: beside cross-entropy, in the joint mode.
            preparation_share: 0: the joint mode of the field's codes. Above: the paper's two
                stages; hints alone for this share of the epochs, and then none.
            relu: whether the regressor ends in a ReLU. That suits hints that are activations; it
                cannot predict the negative values of other taps.
            layers: which hints.
        """

        weight: Annotated[float, Field(ge=0), Span(1.0, 1e3, log=True)] = 100.0
        preparation_share: Annotated[float, Field(ge=0, lt=1), Choice(PREPARATION_SHARES)] = 0.0
        relu: Annotated[bool, Choice((True, False))] = True
        layers: Annotated[str, LayerChoice()] = MIDDLE

    params: Params

    def __init__(self, params: Params, setting: NetworkPair) -> None:
        super().__init__(params, setting)
        self.pairs = resolve_layers(params.layers, setting.student, setting.teacher)
        self.regressors = nn.ModuleList(
            connector(
                setting.student.maps[pair.student][0],
                setting.teacher.maps[pair.teacher][0],
                relu=params.relu,
            )
            for pair in self.pairs
        )

    def term(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        losses = []
        for pair, regressor in zip(self.pairs, self.regressors, strict=True):
            guided, hint = match_spatial(student.maps[pair.student], teacher.maps[pair.teacher])
            losses.append(fitnet_loss(regressor(guided), hint))
        return sum(losses[1:], start=losses[0])
