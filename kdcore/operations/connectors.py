"""Trainable connectors from a student's feature maps to a teacher's."""

from torch import Tensor, nn


class ConnectorNorm(nn.BatchNorm2d):
    """Batch norm that also accepts a single value per channel: it then uses running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return nn.functional.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                False,
                0,
                self.eps,
            )
        return super().forward(input)


def connector(student_channels: int, teacher_channels: int, *, relu: bool) -> nn.Sequential:
    """A 1x1 convolution and a batch norm.

    Args:
        student_channels: Cs.
        teacher_channels: Ct.
        relu: append a ReLU, for targets that are activations.
    """
    layers = [
        nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
        ConnectorNorm(teacher_channels),
    ]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)
