"""Residual networks against torchvision's."""

import pytest
import torch
import torchvision
from torch import nn

from kdcore.backbones.catalogue import BACKBONES


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet50_cifar"]
)
def test_torchvisions_weights_load_and_give_the_same_outputs(name: str) -> None:
    random = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name.removesuffix("_cifar"))(num_classes=12).eval()
        if name.endswith("_cifar"):
            theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            theirs.maxpool = nn.Identity()
        ours = BACKBONES[name](12, 3).eval()
    theirs.to_empty(device="cpu")
    for key, value in theirs.state_dict().items():  # no two vectors of a norm are alike
        if value.ndim > 1:
            # sqrt(3) times the deviation is the half width of a uniform distribution.
            value.uniform_(-1, 1, generator=random).mul_((6 / value[0].numel()) ** 0.5)
        elif key.endswith(("running_var", "weight")):
            value.uniform_(0.8, 1.25, generator=random)
        elif value.is_floating_point():
            value.normal_(0, 0.1, generator=random)
    size = (16, 24) if name.endswith("_cifar") else (64, 48)
    images = torch.randn(2, 3, *size, generator=random)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    with torch.no_grad():
        expected, given = theirs(images), ours(images)
    assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()
