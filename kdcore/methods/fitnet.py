"""FitNets: Hints for Thin Deep Nets. Romero et al., ICLR 2015, arXiv:1412.6550."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from kdcore import method
from kdcore.connectors import connector
from kdcore.layers import MIDDLE, resolve_layers
from kdcore.method import Method, full_precision
from kdcore.span import Choice, LayerChoice, Span
from kdcore.spatial import match_spatial
from kdcore.taps import Batch, Setting, Tap, Taps


@full_precision
def hint_loss(regressed_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of a regressed student map and the teacher's hint (equation 3).

    Args:
        regressed_map: [B, C, H, W], the student's map after the regressor.
        teacher_map: [B, C, H, W].

    Returns:
        Scalar, mean over all elements, without the paper's factor 1/2. Zero when both are equal.
    """
    return mse_loss(regressed_map, teacher_map)


class FitNet(Method):
    """Hints: a regressor, trained along, predicts the teacher's map from the student's."""

    paper: ClassVar[str] = "arXiv:1412.6550"
    needs: frozenset[Tap] = frozenset({Tap.MAPS})

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(1.0, 1e3, log=True)] = 100.0
        # A ReLU suits hints that are activations; it cannot predict the negative values of other
        # taps.
        relu: Annotated[bool, Choice((True, False))] = True
        layers: Annotated[str, LayerChoice()] = MIDDLE

    params: Params

    def __init__(self, params: Params, setting: Setting) -> None:
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

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        losses = []
        for pair, regressor in zip(self.pairs, self.regressors, strict=True):
            guided, hint = match_spatial(student.maps[pair.student], teacher.maps[pair.teacher])
            losses.append(hint_loss(regressor(guided), hint))
        return sum(losses[1:], start=losses[0])
