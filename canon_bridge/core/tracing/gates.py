"""Which operand of a product is the gate, and which the signal.

Floor 5: imports ``data``, ``kinds`` and ``lifts``. A new gate is one entry of ``GATES`` or ``GATE_CALLS``.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import fx, nn

from canon_bridge.core.registry import TypeKey, find_entry
from canon_bridge.core.tracing.data import is_tensor
from canon_bridge.core.tracing.lifts import Lift, operands

ModuleOf = Callable[[fx.Node], nn.Module | None]

# How sure it is that something behind this activation is a gate: from zero to one, or bounded in another way.
_SURE, _LIKELY = 2, 1
_TIMM: Final = "timm.layers.activations"
GATES: Final[Mapping[TypeKey, int]] = {
    **dict.fromkeys((nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softmax2d), _SURE),
    **dict.fromkeys((f"{_TIMM}.Sigmoid", f"{_TIMM}.HardSigmoid", f"{_TIMM}_me.HardSigmoidMe"), _SURE),
    **dict.fromkeys((nn.Tanh, nn.ReLU6, nn.Hardtanh, f"{_TIMM}.Tanh"), _LIKELY),
}
GATE_CALLS: Final[Mapping[Any, int]] = {
    **dict.fromkeys((torch.sigmoid, F.sigmoid, F.hardsigmoid, torch.softmax, F.softmax, "sigmoid", "softmax"), _SURE),
    **dict.fromkeys((torch.sigmoid_, "sigmoid_", torch.special.expit), _SURE),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh", F.relu6, F.hardtanh, torch.clamp, "clamp"), _LIKELY),
    **dict.fromkeys((operator.gt, operator.lt, operator.ge, operator.le, operator.eq, operator.ne), _SURE),
}

_LIKE: Final = frozenset({"expand_as", "view_as", "reshape_as", "type_as"})  # the second operand lends its shape alone

# A gate stays one behind these, where no other data join it.
_KEEP: Final = frozenset(
    _LIKE
    | {"expand", "view", "reshape", "unsqueeze", "squeeze", "flatten", "permute", "transpose"}
    | {"contiguous", "clone", "chunk", "split", "unbind", "repeat", "to", "float", "double", "half", "mean"}
    | {"add", "sub", "mul", "div", "add_", "mul_", "div_", "sub_", "multiply"}
)
_KEEP_FUNCTIONS: Final = frozenset(
    {operator.add, operator.sub, operator.mul, operator.truediv, operator.getitem, operator.iadd, operator.imul}
    | {operator.itruediv, operator.isub, F.interpolate, F.dropout}
    | {getattr(torch, name) for name in _KEEP if hasattr(torch, name)}
)
_KEEPERS: Final = (nn.Dropout, nn.Identity, nn.Flatten, nn.Unflatten, nn.Upsample)


def find_signal(nodes: Iterable[fx.Node], lift: Lift, module_of: ModuleOf) -> int | None:
    """Return which operand carries the signal in all these calls, or None; see :class:`Arithmetic`.

    Parameters
    ----------
    nodes : iterable of fx.Node
        The calls of one call site.
    lift : Lift
        Its entry, with two operands.
    module_of : callable
        From a node to the module that it calls, or None.
    """
    found = {_signal(operands(node, lift), lift.name, module_of) for node in nodes}
    return found.pop() if len(found) == 1 else None


def _signal(values: tuple[Any, ...], name: str, module_of: ModuleOf) -> int | None:
    with_data = [index for index, value in enumerate(values) if is_tensor(value)]
    if len(with_data) == 1:
        return with_data[0]
    if name == "divide":
        return 0
    if name != "multiply":
        return None
    left, right = (_certainty(value, module_of) for value in values)
    return None if left == right else int(left > right)


def _certainty(node: fx.Node, module_of: ModuleOf) -> int:
    """Return how sure it is that the node is a gate; zero if nothing speaks for it."""
    while True:
        module = module_of(node)
        if module is not None:
            found, keeps = find_entry(GATES, module), isinstance(module, _KEEPERS)
        else:
            found, keeps = GATE_CALLS.get(node.target), node.target in _KEEP | _KEEP_FUNCTIONS
        inputs = node.all_input_nodes[:1] if node.target in _LIKE else node.all_input_nodes
        before = [value for value in inputs if value.meta.get("has_data", True)]
        if found is not None or not keeps or len(before) != 1:
            return found or 0
        (node,) = before
