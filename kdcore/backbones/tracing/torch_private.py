"""Everything this package uses of PyTorch beyond its documented interface, as of version 2.15.

When a new version breaks one of these, `tests/unit/kdcore/test_torch_private.py` says which.
"""

import gc
import inspect
import sys
from collections.abc import Callable
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._compile import _disable_dynamo
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.flop_counter import FlopCounterMode

BATCH_NORMS: type[nn.Module] = _BatchNorm
"""Every batch norm, for maps of any number of dimensions. They have no documented common base."""

DROPOUTS: type[nn.Module] = _DropoutNd
"""Every dropout module. They have no documented common base."""

TraceError = fx.proxy.TraceError
"""Raised by torch.fx where control flow depends on values; missing from its documentation."""

MOMENTUM = "momentum_buffer"
"""Where SGD keeps a parameter's momentum in `state[parameter]`."""


def has_constants(graph: fx.Graph) -> bool:
    """Whether the network made a tensor while it was traced.

    torch.fx stores it as an attribute `_tensor_constant0` of the module and reads it from there,
    which ties the graph to that one module.
    """
    return any("_tensor_constant" in str(node.target) for node in graph.nodes)


def modules_around(node: fx.Node) -> tuple[str, ...]:
    """The paths of the modules that a node was traced in, outermost first, its own included.

    torch.fx notes them in `meta["nn_module_stack"]`, as `path@1` for a second call of a module.
    """
    around = [path.split("@")[0] for path in node.meta.get("nn_module_stack", {})]
    own = [str(node.target)] if node.op == "call_module" else []
    return tuple(dict.fromkeys(path for path in (*around, *own) if path))


def function_of(network: nn.Module, graph: fx.Graph) -> Callable[..., Any]:
    """A graph as a function, whose first argument is any network with the modules that it calls.

    Every GraphModule is of a class of its own, whose `forward` looks the modules up in `self`.
    """
    function: Callable[..., Any] = type(fx.GraphModule(network, graph)).forward
    return function


def count_flops(network: nn.Module, images: Tensor) -> int:
    """Floating-point operations of a forward pass, by `torch.utils.flop_counter`.

    It counts convolutions and matrix products, also those of attention, each multiply-add as two
    operations.
    """
    # It does not know the single operation that `nn.MultiheadAttention` is in evaluation.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    flops: int = counter.get_total_flops()
    return flops


_COMPILER, _MARK = "torch._dynamo", "__dynamo_disable"


@cache
def spare_the_compiler() -> None:
    """Keeps PyTorch from importing its compiler for those who compile nothing: a second and 150 MB
    of each process.

    Some of its functions, like an optimiser's and those that pretend to compute on the meta device,
    are marked at their first call as not to be compiled, and the compiler is imported for that. So
    they are marked here, until somebody has imported it. See also `plain_step`.
    """
    code = _disable_dynamo(lambda: None).__code__
    place = code.co_freevars.index("fn")
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__ is code:
            original = (function.__closure__ or ())[place].cell_contents
            if not hasattr(original, _MARK):
                setattr(original, _MARK, partial(_call, function, original))


def _call(marking: Callable[..., Any], original: Callable[..., Any], *args: Any, **how: Any) -> Any:
    if _COMPILER in sys.modules:
        delattr(original, _MARK)
        return marking(*args, **how)
    return original(*args, **how)


def plain_step(optimizer: type[torch.optim.Optimizer]) -> Callable[..., Any]:
    """An optimiser's `step` without what only a compiled one needs, for which it would import the
    compiler."""
    step: Callable[..., Any] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return step
