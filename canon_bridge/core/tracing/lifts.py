"""Which functional operations become modules.

Floor 4: imports ``data``, ``functional`` and ``layers``. A new functional operation is one entry of ``LIFTS``.
"""

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import map_arg

import canon_bridge.core.modules.functional as functional
from canon_bridge.core.modules.arithmetic import Divide, Multiply, Negate
from canon_bridge.core.modules.functional import MakeModule
from canon_bridge.core.tracing.data import is_tensor

_IGNORED = frozenset({"input", "other", "self", "inplace"})  # operands, and what a module out of place has no use for


@dataclass(frozen=True)
class Lift:
    """How a call of a function or tensor method becomes a call of a module.

    Attributes
    ----------
    name : str
        What the new child module is called; a number is appended where the name is taken.
    build : callable
        Makes the module from the arguments behind the tensors; its parameters have the names of the function's.
    operands : int
        How many leading arguments are tensors; of two, one may be a number or a tensor of the model.
    sizes : tuple of str
        Parameters that forward may compute; the module gets them before each call.
    tensors : tuple of str
        Parameters that are tensors of the model.
    """

    name: str
    build: MakeModule
    operands: int = 1
    sizes: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()


_WEIGHTS = ("weight", "bias")
_TENSORS = ("running_mean", "running_var", "weight", "bias")
_KERNEL = ("kernel_size", "stride", "padding")


def _entries(functions: Iterable[Any], name: str, build: MakeModule, *more: Any) -> dict[Any, Lift]:
    return dict.fromkeys(functions, Lift(name, build, *more))


def _pools(dim: int) -> dict[Any, Lift]:
    """Return the entries of all pools with this number of spatial dimensions."""
    kinds: dict[str, tuple[Callable[[MakeModule], MakeModule], tuple[str, ...]]] = {
        "avg_pool": (lambda module: module, _KERNEL),
        "max_pool": (functional.max_pool, _KERNEL),
        "adaptive_avg_pool": (lambda module: module, ("output_size",)),
        "adaptive_max_pool": (functional.adaptive_max_pool, ("output_size",)),
    }
    lifts: dict[Any, Lift] = {}
    for kind, (adapt, sizes) in kinds.items():
        name = f"{kind}{dim}d"
        module = getattr(nn, "".join(part.capitalize() for part in kind.split("_")) + f"{dim}d")
        functions = {getattr(F, name)}
        if kind != "adaptive_max_pool":  # torch's own returns the indices, too
            functions.add(getattr(torch, name, getattr(F, name)))
        lifts.update(_entries(functions, name, adapt(module), 1, sizes))
    return lifts


def _convolutions(dim: int) -> dict[Any, Lift]:
    """Return the entries of both convolutions with this number of spatial dimensions, by tensors of the model."""
    lifts: dict[Any, Lift] = {}
    for name, module, adapt in (
        (f"conv{dim}d", f"Conv{dim}d", functional.convolution),
        (f"conv_transpose{dim}d", f"ConvTranspose{dim}d", functional.transposed_convolution),
    ):
        functions = {getattr(F, name), getattr(torch, name)}
        lifts.update(_entries(functions, name, adapt(getattr(nn, module)), 1, (), _WEIGHTS))
    return lifts


def _activation(name: str, build: MakeModule) -> dict[Any, Lift]:
    """Return the entry under all spellings: functions of torch and torch.nn.functional, methods, in place or not."""
    spellings = (name, f"{name}_")
    functions = [getattr(home, n) for home in (F, torch) for n in spellings if hasattr(home, n)]
    methods = [n for n in spellings if hasattr(torch.Tensor, n)]
    return _entries([*functions, *methods], name, build)


def _arithmetic(name: str, build: MakeModule, child: str, *more: str) -> dict[Any, Lift]:
    """Return the entry of an operation on two operands: operators, functions of torch and methods."""
    names = [n for spelling in (name, *more) for n in (spelling, f"{spelling}_")]
    functions = [getattr(torch, n) for n in names if hasattr(torch, n)]
    methods = [n for n in names if hasattr(torch.Tensor, n)]
    operators = (getattr(operator, name), getattr(operator, f"i{name}"))
    return _entries([*operators, *functions, *methods], child, build, 2)


LIFTS: Mapping[Any, Lift] = {
    **_arithmetic("add", functional.add, "add"),
    **_arithmetic("sub", functional.subtract, "subtract", "subtract"),
    **_arithmetic("mul", Multiply, "multiply", "multiply"),
    **_arithmetic("truediv", Divide, "divide", "div", "divide", "true_divide"),
    **_entries((operator.neg, torch.neg, torch.negative, "neg", "neg_", "negative", "negative_"), "negate", Negate),
    F.linear: Lift("linear", functional.linear, tensors=_WEIGHTS),
    **_convolutions(1),
    **_convolutions(2),
    **_convolutions(3),
    **_pools(1),
    **_pools(2),
    **_pools(3),
    **_entries((torch.mean, "mean"), "mean", functional.mean),
    F.interpolate: Lift("interpolate", functional.interpolate, sizes=("size", "scale_factor")),
    F.batch_norm: Lift("batch_norm", functional.batch_norm, tensors=_TENSORS),
    torch.batch_norm: Lift("batch_norm", functional.raw_batch_norm, tensors=_TENSORS),
    **_activation("relu", nn.ReLU),
    **_activation("relu6", nn.ReLU6),
    **_activation("hardtanh", nn.Hardtanh),
    **_activation("clamp", functional.clamp),
    **_activation("clip", functional.clamp),
    **_activation("clamp_min", functional.clamp_min),
    **_activation("leaky_relu", nn.LeakyReLU),
    **_activation("elu", nn.ELU),
    F.elu_: Lift("elu", functional.raw_elu),
    **_entries((F.prelu, torch.prelu, "prelu"), "prelu", functional.prelu, 1, (), ("weight",)),
    **_activation("selu", nn.SELU),
    **_activation("celu", nn.CELU),
    **_activation("gelu", nn.GELU),
    **_activation("silu", nn.SiLU),
    **_activation("mish", nn.Mish),
    **_activation("hardswish", nn.Hardswish),
    **_activation("hardsigmoid", nn.Hardsigmoid),
    **_activation("sigmoid", nn.Sigmoid),
    **_activation("tanh", nn.Tanh),
    **_activation("logsigmoid", nn.LogSigmoid),
    **_activation("softplus", nn.Softplus),
    **_activation("softsign", nn.Softsign),
    **_activation("softshrink", nn.Softshrink),
    **_activation("hardshrink", nn.Hardshrink),
    **_activation("tanhshrink", nn.Tanhshrink),
    **_activation("threshold", nn.Threshold),
}


def find_lift(node: fx.Node) -> Lift | None:
    """Return the entry of ``LIFTS`` for the node if its operands are tensors with data (of two, at least one)."""
    if node.op not in ("call_function", "call_method"):
        return None
    lift = LIFTS.get(node.target)
    if lift is None:
        return None
    values = operands(node, lift)
    fits = any(map(is_tensor, values)) and len(values) == lift.operands and all(map(_may_be_operand, values))
    return lift if fits else None


def _may_be_operand(value: Any) -> bool:
    if isinstance(value, fx.Node):
        return is_tensor(value) or not value.meta.get("has_data", True)
    return isinstance(value, int | float)


def operands(node: fx.Node, lift: Lift) -> tuple[Any, ...]:
    """Return the leading tensor arguments of the call, however they were passed."""
    by_keyword = [node.kwargs[k] for k in ("self", "input", "other") if k in node.kwargs]
    return (*node.args, *by_keyword)[: lift.operands]


def computed_sizes(node: fx.Node, lift: Lift) -> dict[str, Any]:
    """Return the sizes that forward computes for the call, by the attribute of the module that they are for."""
    arguments = _arguments(node, lift)
    sizes = {name: value for name, value in arguments.items() if name in lift.sizes and _nodes_in(value)}
    if "kernel_size" in sizes and arguments.get("stride") is None:
        sizes["stride"] = sizes["kernel_size"]
    return sizes


def build_module(node: fx.Node, lift: Lift, root: nn.Module, **more: Any) -> nn.Module:
    """Make the module for a call; raise ``ValueError`` where an argument is computed or has no module form.

    Parameters
    ----------
    node : fx.Node
        The call, in a graph of the root.
    lift : Lift
        Its entry.
    root : nn.Module
        The module that the graph's attributes belong to.
    **more
        What the module is told besides.
    """
    arguments = _arguments(node, lift) | more
    for name in computed_sizes(node, lift):
        arguments[name] = 2  # not one: a pool to one element is known to be a point
    for name in lift.tensors:
        if _nodes_in(arguments.get(name)):
            arguments[name] = _constant(arguments[name], root)
    if any(_nodes_in(value) for value in arguments.values()):
        raise ValueError("an argument is computed in forward")
    try:
        return lift.build(**arguments).eval()
    except (TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"its arguments have no module form ({error})") from error


def _constant(node: fx.Node, root: nn.Module) -> Any:
    """Return the value of a node that is computed from tensors of the model alone."""
    if node.op == "placeholder" or node.op == "call_module":
        raise ValueError("a tensor is computed from the input")
    if node.op == "get_attr":
        try:
            return operator.attrgetter(str(node.target))(root)
        except AttributeError as error:
            raise ValueError("a tensor is made in forward") from error
    args, kwargs = map_arg((node.args, node.kwargs), lambda before: _constant(before, root))
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]


def _arguments(node: fx.Node, lift: Lift) -> dict[str, Any]:
    """Return the arguments behind the tensors by name."""
    keywords = {name: value for name, value in node.kwargs.items() if name not in _IGNORED}
    try:
        return dict(inspect.signature(lift.build).bind(*node.args[lift.operands :], **keywords).arguments)
    except TypeError as error:
        raise ValueError(f"its arguments have no module form ({error})") from error


def _nodes_in(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    map_arg(value, found.append)
    return found
