"""Which nodes of a graph carry data of the input, and which calls work in place.

Floor 0: imports torch alone.
"""

import operator
from typing import Final

import torch
from torch import fx, nn

IN_PLACE_OPERATORS: Final = frozenset(
    {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.ipow, operator.imod}
)
_SIZES = frozenset(
    {"size", "dim", "numel", "ndimension", "nelement", "element_size", "get_device", "stride", "storage_offset"}
    | {"is_contiguous", "is_floating_point", "is_complex"}
)
_NUMBERS = frozenset({"item", "tolist"})
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
    is_number = node.op == "call_method" and node.target in _NUMBERS
    return not (is_number or asks_for_sizes(node)) and any(
        before.meta.get("has_data", True) for before in node.all_input_nodes
    )


def asks_for_sizes(node: fx.Node) -> bool:
    """Return whether a call reads the size, type or device of a tensor, and no value of it."""
    return (
        (node.op == "call_method" and node.target in _SIZES)
        or (node.op == "call_function" and node.target in _SIZE_FUNCTIONS)
        or (node.target is getattr and node.args[1] in _SIZE_ATTRIBUTES)
    )


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
