"""Networks of your own: one that declares its taps, and one whose taps are found by tracing."""

from torch import Tensor, nn

from kdcore.contract.taps import TapInfo


class Narrow(nn.Sequential):
    """Three convolutions. The names of its taps are those of its submodules."""

    declared_taps = (
        TapInfo("relu1", 8, 1),
        TapInfo("relu2", 16, 2),
        TapInfo("relu3", 32, 4),
    )
    native_size = (32, 32)

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = (in_channels, 8, 16, 32)
        for number, stride in enumerate((1, 2, 2)):
            inside, outside = channels[number], channels[number + 1]
            conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
            self.add_module(f"conv{number + 1}", conv)
            self.add_module(f"norm{number + 1}", nn.BatchNorm2d(outside))
            self.add_module(f"relu{number + 1}", nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(32, num_classes)


class Plain(nn.Module):
    """Declares nothing."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 16, 3, 1, 1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.tail = nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU())
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.tail(self.body(self.stem(images))).mean((2, 3)))
        return logits


NETWORKS = {"narrow": Narrow, "plain": Plain}
