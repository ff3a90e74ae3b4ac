"""A method, a network and a data set as users write them, for tests to break."""

from pathlib import Path

from kdcore.contract.plugged import read_plugin
from kdcore.contract.plugin import Plugin

EXAMPLES = Path(__file__).parents[1] / "experiments" / "plugins"

METHOD = """
from typing import Annotated
import torch
from pydantic import Field
from kdcore.contract import method
from kdcore.contract.method import Method
from kdcore.contract.searched import Span
from kdcore.contract.taps import Tap

class Own(Method):
    '''The squared difference of the logits.'''
    needs = frozenset({Tap.LOGITS})
    def loss(self, student, teacher, batch):
        return LOSS
"""
SQUARES = "(student.logits.float() - teacher.logits.float()).square().mean()"

NETWORK = """
import torch
from torch import nn
from kdcore.contract.taps import TapInfo

class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 3, 2, 1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(8, num_classes)
    def forward(self, images):
        return self.head(self.relu(self.conv(images)).mean((2, 3)))

NETWORKS = {"net": Net}
"""

TRANSFORMERS = """
from timm.models import VisionTransformer
from timm.models.deit import VisionTransformerDistilled

SIZES = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 4, "num_heads": 2}

def made(kind):
    def make(num_classes, in_channels):
        network = kind(num_classes=num_classes, in_chans=in_channels, **SIZES)
        network.native_size = (8, 8)
        return network
    return make

NETWORKS = {
    "tiny_vit": made(VisionTransformer),
    "tiny_distilled_vit": made(VisionTransformerDistilled),
}
"""

DATA = """
import torch

class Images(list):
    pass

def images(root):
    def items(n):
        return Images((torch.full((1, 8, 8), i % 200, dtype=torch.uint8), i % 3) for i in range(n))
    train, test = items(60), items(30)
    CHANGE
    return train, test

DATA_SETS = {"own": images}
"""


def method(loss: str = SQUARES, declared: str = "") -> str:
    """The method with another loss, and with a line more in its class."""
    return METHOD.replace("LOSS", loss).replace("    def loss", f"    {declared}\n    def loss")


def write(folder: Path, text: str, name: str = "own.py") -> Plugin:
    """A plugin of this text, which is written to a file and read from it."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return read_plugin(name, folder)
