"""Which functional operations become modules, and which of them work in place.

Floor 1: imports ``layers``. A new functional operation is one entry of ``LIFTS``.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from canon_bridge.core.layers import Add

MakeModule = Callable[..., nn.Module]


@dataclass(frozen=True)
class Lift:
    """How a call of a function or tensor method becomes a call of a module.

    Attributes
    ----------
    name : str
        What the new child module is called; a number is appended where the name is taken.
    build : callable
        Makes the module from the arguments behind the tensors.
    operands : int
        How many leading arguments are tensors.
    ignores : tuple of str
        Keywords that the module form has no use for (``inplace``).
    """

    name: str
    build: MakeModule
    operands: int = 1
    ignores: tuple[str, ...] = ()


def _add(alpha: float = 1) -> nn.Module:
    if alpha != 1:
        raise ValueError(f"alpha={alpha}: a weighted sum is not the sum of two branches")
    return Add()


def _max_pool(module: MakeModule) -> MakeModule:
    # The functions and the modules order their arguments differently.
    def build(
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> nn.Module:
        if return_indices:
            raise ValueError("return_indices=True: it has two outputs")
        return module(kernel_size, stride, padding, dilation, ceil_mode=ceil_mode)

    return build


def _adaptive_max_pool(module: MakeModule) -> MakeModule:
    def build(output_size: Any, return_indices: bool = False) -> nn.Module:
        if return_indices:
            raise ValueError("return_indices=True: it has two outputs")
        return module(output_size)

    return build


IN_PLACE_OPERATORS = frozenset(
    {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.ipow, operator.imod}
)

_RELU = Lift("relu", nn.ReLU, ignores=("inplace",))
_ADD = Lift("add", _add, operands=2)


LIFTS: Mapping[Any, Lift] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _ADD),
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), _RELU),
    **dict.fromkeys((F.avg_pool1d, torch.avg_pool1d), Lift("avg_pool1d", nn.AvgPool1d)),
    F.avg_pool2d: Lift("avg_pool2d", nn.AvgPool2d),
    F.avg_pool3d: Lift("avg_pool3d", nn.AvgPool3d),
    **dict.fromkeys(
        (F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d), Lift("adaptive_avg_pool1d", nn.AdaptiveAvgPool1d)
    ),
    F.adaptive_avg_pool2d: Lift("adaptive_avg_pool2d", nn.AdaptiveAvgPool2d),
    F.adaptive_avg_pool3d: Lift("adaptive_avg_pool3d", nn.AdaptiveAvgPool3d),
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), Lift("max_pool1d", _max_pool(nn.MaxPool1d))),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), Lift("max_pool2d", _max_pool(nn.MaxPool2d))),
    **dict.fromkeys((F.max_pool3d, torch.max_pool3d), Lift("max_pool3d", _max_pool(nn.MaxPool3d))),
    F.adaptive_max_pool1d: Lift("adaptive_max_pool1d", _adaptive_max_pool(nn.AdaptiveMaxPool1d)),
    F.adaptive_max_pool2d: Lift("adaptive_max_pool2d", _adaptive_max_pool(nn.AdaptiveMaxPool2d)),
    F.adaptive_max_pool3d: Lift("adaptive_max_pool3d", _adaptive_max_pool(nn.AdaptiveMaxPool3d)),
}

_SIZES = frozenset(
    {"size", "dim", "numel", "ndimension", "nelement", "element_size", "get_device", "stride", "storage_offset"}
    | {"is_contiguous", "is_floating_point", "is_complex", "item", "tolist"}
)
_SIZE_FUNCTIONS = frozenset({len, torch.numel, torch.is_tensor, torch.is_floating_point, isinstance})
_SIZE_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "requires_grad", "is_cuda"})
_SEVERAL = frozenset({"chunk", "split", "unbind", "tensor_split", "hsplit", "vsplit", "dsplit", "split_with_sizes"})
_SEVERAL_FUNCTIONS = frozenset({getattr(torch, name) for name in _SEVERAL if hasattr(torch, name)})


def note_data(node: fx.Node) -> None:
    """Note on a new node of a graph whether the data of the input reach it (not only sizes, numbers and weights)."""
    node.meta["has_data"] = _has_data(node)


def _has_data(node: fx.Node) -> bool:
    if node.op in ("placeholder", "get_attr"):
        return node.op == "placeholder"
    is_size = (
        (node.op == "call_method" and node.target in _SIZES)
        or (node.op == "call_function" and node.target in _SIZE_FUNCTIONS)
        or (node.target is getattr and node.args[1] in _SIZE_ATTRIBUTES)
    )
    return not is_size and any(before.meta.get("has_data", True) for before in node.all_input_nodes)


def is_tensor(value: object) -> bool:
    """Return whether a value of the graph is one tensor that the data of the input reach."""
    if not isinstance(value, fx.Node) or not value.meta.get("has_data", True):
        return False
    if value.target is operator.add or value.target is operator.iadd:  # joined tuples of tensors
        return not any(isinstance(a, list | tuple) or _is_several(a) for a in value.args)
    return not _is_several(value)


def _is_several(value: object) -> bool:
    if not isinstance(value, fx.Node):
        return False
    return value.target in (_SEVERAL if value.op == "call_method" else _SEVERAL_FUNCTIONS)


def find_lift(node: fx.Node) -> Lift | None:
    """Return the entry of ``LIFTS`` for the node if all its operands are tensors, else None."""
    if node.op not in ("call_function", "call_method"):
        return None
    lift = LIFTS.get(node.target)
    if lift is None or not all(is_tensor(value) for value in operands(node, lift)):
        return None
    return lift


def operands(node: fx.Node, lift: Lift) -> tuple[Any, ...]:
    """Return the leading tensor arguments of the call, however they were passed."""
    by_keyword = [v for k, v in node.kwargs.items() if k in ("input", "other", "self")]
    return (*node.args, *by_keyword)[: lift.operands]


def build_module(node: fx.Node, lift: Lift) -> nn.Module:
    """Make the module for a call; raise ``ValueError`` where an argument is computed or has no module form."""
    arguments = node.args[lift.operands :]
    keywords = {k: v for k, v in node.kwargs.items() if k not in (*lift.ignores, "input", "other", "self")}
    if "inplace" in lift.ignores:
        arguments = ()
    if set(node.all_input_nodes) - set(operands(node, lift)):
        raise ValueError("an argument is computed in forward")
    try:
        return lift.build(*arguments, **keywords).eval()
    except TypeError as error:
        raise ValueError(f"its arguments have no module form ({error})") from error


def works_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Return whether the call overwrites its first argument."""
    if module is not None and getattr(module, "inplace", False) is True:
        return True
    if node.kwargs.get("inplace") is True:  # functions hand it on by keyword, however they were called
        return True
    if node.op == "call_method":
        return isinstance(node.target, str) and node.target.endswith("_") and not node.target.endswith("__")
    if node.op != "call_function":
        return False
    name, home = getattr(node.target, "__name__", ""), getattr(node.target, "__module__", "")
    if home == "_operator":  # `and_` and `or_` overwrite nothing
        return node.target in IN_PLACE_OPERATORS
    return name.endswith("_") and not name.endswith("__")
