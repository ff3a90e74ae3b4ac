"""Traced graphs: the tracer, rewriting of what would change a tap, and sizes of all values."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional

from kdcore.backbones.drop_path import DropPath
from kdcore.backbones.tracing.torch_private import BATCH_NORMS, modules_around

_OUT_OF_PLACE: Mapping[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    **{f"{name}_": name for name in ("add", "sub", "mul", "div", "relu", "sigmoid", "clamp")},
}


def forbid_writes(network: nn.Module) -> None:
    """Turns off in-place modules: what they would overwrite may be a tap."""
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]


class Tracer(fx.Tracer):
    """Traces a network of images, with parameters and buffers as nodes.

    Args:
        leaf_modules: classes that are not traced into.
        leaf_functions: functions that are not traced into.
    """

    def __init__(
        self,
        leaf_modules: tuple[type[nn.Module], ...],
        leaf_functions: tuple[Callable[..., Any], ...],
    ) -> None:
        super().__init__(autowrap_functions=leaf_functions)
        self._leaf_modules = leaf_modules

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        own = isinstance(module, (DropPath, *self._leaf_modules))
        return own or super().is_leaf_module(module, path)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Makes the images the only input; other arguments of `forward` keep their defaults."""
        tensors = (*self.root.named_parameters(), *self.root.named_buffers())
        self._paths = {id(tensor): path for path, tensor in tensors}
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Reads parameters and buffers from the network that runs, not from the traced one."""
        path = self._paths.get(id(attr_val))
        if path is None:
            return attr_val
        if path not in parameter_proxy_cache:
            parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {})
        return parameter_proxy_cache[path]


def normalized(images: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """A batch norm without the activation that a subclass adds."""
    return nn.BatchNorm2d.forward(norm, images)


def _counts_batches(node: fx.Node) -> bool:
    """Whether a node is a batch norm's `num_batches_tracked.add_(1)`."""
    return node.target == "add_" and str(first_input(node).target).endswith("num_batches_tracked")


def call_norms(graph: fx.Graph, network: nn.Module) -> None:
    """Replaces traced-in calls of `batch_norm` by calls of the module, so that each follows its
    own training flag. timm's norms that include an activation call the function."""
    for node in list(graph.nodes):
        if node.target is not functional.batch_norm:
            continue
        path = modules_around(node)[-1]
        if isinstance(network.get_submodule(path), nn.BatchNorm2d):
            with graph.inserting_before(node):
                made = graph.call_function(normalized, (node.args[0], graph.get_attr(path)))
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made)
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):  # what only the function needed
        if not node.users and (_counts_batches(node) or node.op == "get_attr"):
            graph.erase_node(node)


def redirect_writes(graph: fx.Graph, network: nn.Module) -> None:
    """Makes in-place operations out of place; later readers of their input read the result."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        written = node.args[0] if node.args else None
        if not isinstance(written, fx.Node) or written.op == "get_attr":  # buffers stay written
            continue
        if node.op == "call_module":
            if not getattr(network.get_submodule(node.target), "inplace", False):
                continue
        elif node.target in _OUT_OF_PLACE:
            node.target = _OUT_OF_PLACE[node.target]
        elif node.kwargs.get("inplace", False):
            node.kwargs = {**node.kwargs, "inplace": False}
        else:
            continue
        for user in list(written.users):
            if order[user] > order[node]:
                user.replace_input_with(written, node)


class Sizes(fx.Interpreter):
    """Runs a graph and records sizes: a tensor's shape, or `()` for a list of tensors."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        super().__init__(network, graph=graph)
        self.sizes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if isinstance(value, Tensor):
            self.sizes[node] = tuple(value.shape)
        elif isinstance(value, tuple | list) and any(isinstance(part, Tensor) for part in value):
            self.sizes[node] = ()
        return value

    # Batch norms change no size and are slow on the meta device.

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        norm = isinstance(self.fetch_attr(target), BATCH_NORMS)
        return args[0] if norm else super().call_module(target, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        norm = target is normalized
        return args[0] if norm else super().call_function(target, args, kwargs)


def first_input(node: fx.Node) -> fx.Node:
    """The first input of a node."""
    read = node.args[0] if node.args else next(iter(node.kwargs.values()))
    assert isinstance(read, fx.Node)
    return read
