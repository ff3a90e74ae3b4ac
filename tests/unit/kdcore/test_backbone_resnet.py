"""Residual networks against torchvision's."""

import pytest
import torch
import torchvision
from torch import nn

from kdcore.backbones import BACKBONES


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet50_cifar"]
)
def test_torchvisions_weights_load_and_give_the_same_outputs(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = getattr(torchvision.models, name.removesuffix("_cifar"))(num_classes=12).eval()
        if name.endswith("_cifar"):
            theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            theirs.maxpool = nn.Identity()
        for module in theirs.modules():  # statistics as if trained: fresh ones hide a mix-up
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.8, 1.25)
        images = torch.randn(2, 3, 64, 48)
    with torch.device("meta"):
        ours = BACKBONES[name](12, 3).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    with torch.no_grad():
        expected, given = theirs(images), ours(images)
    assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()
