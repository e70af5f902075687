"""Operations that a per-channel affine map passes through unchanged.

Floor 1: imports torch alone. A new operation is one entry of ``THROUGH_MODULES`` or ``THROUGH_CALLS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn


@dataclass(frozen=True)
class Through:
    """An operation ``op`` with ``op(s * x + b) = s * op(x) + b`` for per-channel ``s`` and ``b``.

    Attributes
    ----------
    name : str
        What the plan calls it.
    obstacle : callable
        From the arguments of the operation to the reason why it does not commute after all, or None.
    flattens : bool
        Whether the output is ``(N, C * k)`` with each channel repeated ``k`` times.
    rank : int or None
        Number of dimensions that a batch ``(N, C, *spatial)`` has for it; None where any number will do.
    """

    name: str
    obstacle: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    flattens: bool = False
    rank: int | None = None


def _average_pool(arguments: Mapping[str, Any]) -> str | None:
    if arguments.get("divisor_override") is not None:
        return "average pooling with divisor_override does not keep constants"
    padding: Any = arguments.get("padding", 0)
    pads = any(padding) if isinstance(padding, tuple | list) else padding
    if pads and arguments.get("count_include_pad", True):
        return "average pooling that counts its zero padding does not keep constants"
    return None


def _flatten(arguments: Mapping[str, Any]) -> str | None:
    if (arguments.get("start_dim", 0), arguments.get("end_dim", -1)) != (1, -1):
        return "flatten over other dimensions than (1, -1) mixes channels with the batch"
    return None


def _dropout(arguments: Mapping[str, Any]) -> str | None:
    return "dropout is in training mode" if arguments.get("training") or arguments.get("train") else None


_FLATTEN = Through("flatten", _flatten, flattens=True)
_DROPOUT = Through("dropout", _dropout)

THROUGH_MODULES: Mapping[type[nn.Module], Through] = {
    nn.AvgPool1d: Through("average pooling", _average_pool, rank=3),
    nn.AvgPool2d: Through("average pooling", _average_pool, rank=4),
    nn.AvgPool3d: Through("average pooling", _average_pool, rank=5),
    nn.AdaptiveAvgPool1d: Through("adaptive average pooling", rank=3),
    nn.AdaptiveAvgPool2d: Through("adaptive average pooling", rank=4),
    nn.AdaptiveAvgPool3d: Through("adaptive average pooling", rank=5),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _DROPOUT),
    nn.Identity: Through("identity"),
    nn.Flatten: _FLATTEN,
}

# For a function or method: the entry, and the names of its arguments behind the tensor.
THROUGH_CALLS: Mapping[Any, tuple[Through, tuple[str, ...]]] = {
    **dict.fromkeys((torch.flatten, "flatten"), (_FLATTEN, ("start_dim", "end_dim"))),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), (_DROPOUT, ("p", "training", "inplace"))),
    torch.dropout: (_DROPOUT, ("p", "train")),
    "contiguous": (Through("contiguous"), ()),
}


def find_through(node: fx.Node, module: nn.Module | None) -> tuple[Through, str | None] | None:
    """Return the entry for a node and what keeps it from commuting (or None), or None if there is no entry.

    Parameters
    ----------
    node : fx.Node
        A call.
    module : nn.Module or None
        The module that is called, or that the function becomes.
    """
    if module is not None:
        through = THROUGH_MODULES.get(type(module))
        if through is None or "forward" in vars(module):
            return None
        return through, through.obstacle(vars(module))
    entry = THROUGH_CALLS.get(node.target)
    if entry is None:
        return None
    through, names = entry
    # F.dropout defaults to training=True: an argument that is not given counts as torch's default.
    defaults = {"training": True} if "training" in names else {}
    arguments = {**defaults, **dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    return through, through.obstacle(arguments)
