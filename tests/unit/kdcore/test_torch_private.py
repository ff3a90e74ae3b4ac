"""Canaries: each fails, and says why, when PyTorch changes something that it never promised."""

import subprocess
import sys

import torch
from torch import Tensor, fx, nn

from kdcore.backbones.tracing import torch_private


class Network(nn.Module):
    """Calls one convolution twice, and makes a tensor if it has to."""

    def __init__(self, *, constant: bool = False) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False))
        self.norm = nn.BatchNorm2d(3)
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.block(self.block(x)))
        return x + torch.ones(()) if self.constant else x


def test_batch_norms_and_dropouts_have_a_common_base() -> None:
    for norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        assert issubclass(norm, torch_private.BATCH_NORMS), f"{norm} left _BatchNorm"
    for dropout in (nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout):
        assert issubclass(dropout, torch_private.DROPOUTS), f"{dropout} left _DropoutNd"
    assert not issubclass(nn.GroupNorm, torch_private.BATCH_NORMS), "_BatchNorm has other norms"


def test_control_flow_that_depends_on_values_raises_trace_error() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    try:
        fx.Tracer().trace(Branching())
    except torch_private.TraceError:
        return
    raise AssertionError("torch.fx does not raise TraceError at a branch on a tensor's value")


def test_a_tensor_made_while_tracing_is_named_as_a_constant() -> None:
    with_one, without = (fx.Tracer().trace(Network(constant=c)) for c in (True, False))
    assert torch_private.has_constants(with_one), "torch.fx stores constants under another name"
    assert not torch_private.has_constants(without)


def test_nodes_know_the_modules_around_them() -> None:
    graph = fx.Tracer().trace(Network())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    found = [torch_private.modules_around(node) for node in calls]
    assert found == [("block", "block.0"), ("block", "block.0"), ("norm",)], (
        "torch.fx notes the modules around a node otherwise than in meta['nn_module_stack']"
    )


@torch.no_grad()
def test_a_traced_function_runs_on_any_network_with_these_modules() -> None:
    first, second = Network().eval(), Network().eval()
    function = torch_private.function_of(first, fx.Tracer().trace(first))
    images = torch.rand(2, 3, 4, 4)
    for network in (first, second):
        assert torch.equal(function(network, images), network(images)), (
            "the forward of a GraphModule's class is bound to the modules it was made with"
        )


def test_a_multiply_add_counts_as_two_operations() -> None:
    flops = torch_private.count_flops(nn.Conv2d(3, 5, 1), torch.zeros(2, 3, 4, 4))
    assert flops == 2 * (2 * 3 * 5 * 4 * 4), "FlopCounterMode counts a convolution otherwise"


def test_sgd_keeps_its_momentum_under_this_name() -> None:
    weight = nn.Parameter(torch.ones(1))
    sgd = torch.optim.SGD([weight], 0.1, momentum=0.9, fused=True)
    weight.grad = torch.ones(1)
    sgd.step()
    assert torch_private.MOMENTUM in sgd.state[weight], "SGD keeps its momentum under another name"


COMPILES_NOTHING = """
import sys
import torch
from kdcore.backbones.catalogue import build_backbone
from kdcore.backbones.probe import probe
from kdcore.training.optimizer import SGD, AdamW

probe("resnet8", num_classes=3, in_channels=3, image_size=(8, 8))
network = build_backbone("resnet8", num_classes=3, in_channels=3, seed=0)
for kind in (SGD, AdamW):
    optimizer = kind(network.parameters(), lr=0.1)
    network(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules, "PyTorch imports its compiler for who compiles nothing"

import torch._dynamo

optimizer.zero_grad()
original = torch.optim.Optimizer.zero_grad.__wrapped__
assert "DisableContext" in repr(vars(original)), "marked otherwise than by PyTorch"
"""


def test_the_compiler_is_imported_by_those_alone_who_compile() -> None:
    subprocess.run([sys.executable, "-c", COMPILES_NOTHING], check=True)
