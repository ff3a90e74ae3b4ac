"""FitNets: Hints for Thin Deep Nets. Romero et al., ICLR 2015, arXiv:1412.6550."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from kdcore.contract.layer_pairs import MIDDLE, resolve_layers
from kdcore.contract.method import full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, LayerChoice, Span
from kdcore.contract.staged_method import PREPARATION_SHARES, StagedMethod
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.connectors import connector
from kdcore.operations.match_spatial import match_spatial


@full_precision
def fitnet_loss(regressed_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of a regressed student map and the teacher's hint (equation 3).

    Args:
        regressed_map: [B, C, H, W], the student's, after the regressor.
        teacher_map: [B, C, H, W].

    Returns:
        Scalar, mean over all elements, without the paper's factor 1/2. Zero when both are equal.
    """
    return mse_loss(regressed_map, teacher_map)


class FitNet(StagedMethod):
    """Hints: a trained regressor predicts the teacher's map from the student's."""

    paper: ClassVar[str] = "arXiv:1412.6550"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("RepDistiller, scripts/run_cifar_distill.sh"),
    }
    needs: frozenset[Tap] = frozenset({Tap.MAPS})

    class Params(StagedMethod.Params):
        """The parameters of FitNet.

        Args:
            weight: in the joint mode.
            preparation_share: share of the epochs that minimise the hints alone, the paper's first
                stage; 0 for the joint mode of most published code.
            relu: whether the regressor ends in a ReLU, for hints that are activations; with it, it
                cannot predict negative values.
            layers: the hints.
        """

        weight: Annotated[float, Field(ge=0), Span(1.0, 1e3, log=True)] = 100.0
        preparation_share: Annotated[float, Field(ge=0, lt=1), Choice(PREPARATION_SHARES)] = 0.0
        relu: Annotated[bool, Choice((True, False))] = True
        layers: Annotated[str, LayerChoice()] = MIDDLE

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        self.pairs = resolve_layers(params.layers, networks.student, networks.teacher)
        self.regressors = nn.ModuleList(
            connector(
                networks.student.maps[pair.student][0],
                networks.teacher.maps[pair.teacher][0],
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
