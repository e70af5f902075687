"""Operations that a per-channel affine map passes through unchanged.

Floor 2: imports ``kinds``, ``layout`` and ``shapes``. A new operation is one entry of ``THROUGH_MODULES`` or
``THROUGH_CALLS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

import canon_bridge.core.channels.shapes as shapes
from canon_bridge.core.channels.layout import Layout
from canon_bridge.core.registry import TypeKey, find_entry

Arguments = Mapping[str, Any]
Move = Callable[[Layout, Arguments], Layout | str]


def _stay(layout: Layout, arguments: Arguments) -> Layout | str:
    return layout


@dataclass(frozen=True)
class Through:
    """An operation ``op`` with ``op(s * x + b) = s * op(x) + b`` for per-channel ``s`` and ``b``.

    Attributes
    ----------
    name : str
        What the plan calls it.
    forward, backward : callable
        From the layout on one side and the arguments of the operation to the layout on the other side, or to the
        reason why the operation does not commute after all.
    keeps_width : bool
        Whether the output has as many channels on axis 1, and as many dimensions, as the input, whatever the arguments.
    rank : int, optional
        The number of dimensions of its input, the batch included, where that is fixed; and of its output.
    """

    name: str
    forward: Move = _stay
    backward: Move = _stay
    keeps_width: bool = True
    rank: int | None = None


def _both(name: str, move: Move, rank: int | None = None) -> Through:
    return Through(name, move, move, rank=rank)


def _spatial(layout: Layout, rank: int | None, name: str) -> Layout | str:
    if layout.axis != 1 or layout.rank != (layout.rank if rank is None else rank):
        return f"{name} acts on another dimension than the channels"
    return layout


def _average_pool(rank: int) -> Through:
    def move(layout: Layout, a: Arguments) -> Layout | str:
        if a.get("divisor_override") is not None:
            return "average pooling with divisor_override does not keep constants"
        padding: Any = a.get("padding", 0)
        pads = any(padding) if isinstance(padding, tuple | list) else padding
        if isinstance(padding, fx.Node) or (pads and a.get("count_include_pad", True)):
            return "average pooling that counts its zero padding does not keep constants"
        found = _spatial(layout, rank, "average pooling")
        return replace(found, point=layout.point and not pads) if isinstance(found, Layout) else found

    return _both("average pooling", move, rank)


def _adaptive_pool(rank: int) -> Through:
    def move(layout: Layout, a: Arguments) -> Layout | str:
        found = _spatial(layout, rank, "adaptive average pooling")
        size = a.get("output_size")
        one = all(n == 1 for n in size) if isinstance(size, list | tuple) else size == 1
        return replace(found, point=one) if isinstance(found, Layout) else found

    def back(layout: Layout, a: Arguments) -> Layout | str:
        return _spatial(layout, rank, "adaptive average pooling")

    return Through("adaptive average pooling", move, back, rank=rank)


def _interpolate(layout: Layout, a: Arguments) -> Layout | str:
    found = _spatial(layout, None, "interpolation")
    return replace(found, point=False) if isinstance(found, Layout) else found


def _copying_pad(layout: Layout, a: Arguments) -> Layout | str:
    if a.get("mode", "replicate") == "constant":
        return "padding with a constant"
    pad = a.get("pad", a.get("padding"))
    if not isinstance(pad, list | tuple) or layout.axis >= layout.rank - len(pad) // 2:
        return "padding of computed dimensions, or of the channels"
    return replace(layout, point=False)


def _dropout(layout: Layout, a: Arguments) -> Layout | str:
    return "dropout is in training mode" if a.get("training") or a.get("train") else layout


def _channel_shuffle(layout: Layout, a: Arguments) -> Layout | str:
    channels, groups = layout.channels, a["groups"]
    if type(groups) is not int or layout.axis != 1 or layout.repeats or len(channels) % groups:
        return "channel shuffle on another dimension than the channels"
    size = len(channels) // groups
    return layout.holding(tuple(channels[group * size + place] for place in range(size) for group in range(groups)))


def _not_back(layout: Layout, a: Arguments) -> Layout | str:
    return "a change of shape behind it cannot be followed back"


_FLATTEN = Through("flatten", shapes.flatten, shapes.flatten_back, False)
_DROPOUT = _both("dropout", _dropout)
_MEAN = Through("mean", shapes.mean, shapes.mean_back, False)
_UPSAMPLE = _both("interpolation", _interpolate)
_PAD = _both("padding", _copying_pad)
_IDENTITY = Through("identity")
_VIEW = Through("reshape", shapes.view, _not_back, False)
_PERMUTE = Through("permute", shapes.permute, shapes.permute_back, False)
_TRANSPOSE = Through("transpose", shapes.transpose, shapes.transpose, False)
_SQUEEZE = Through("squeeze", shapes.squeeze, _not_back, False)
_UNSQUEEZE = Through("unsqueeze", shapes.unsqueeze, shapes.unsqueeze_back, False)
_SHUFFLE = Through("channel shuffle", _channel_shuffle, _not_back)

THROUGH_MODULES: Mapping[TypeKey, Through] = {
    nn.AvgPool1d: _average_pool(3),
    nn.AvgPool2d: _average_pool(4),
    nn.AvgPool3d: _average_pool(5),
    nn.AdaptiveAvgPool1d: _adaptive_pool(3),
    nn.AdaptiveAvgPool2d: _adaptive_pool(4),
    nn.AdaptiveAvgPool3d: _adaptive_pool(5),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _DROPOUT),
    **dict.fromkeys((nn.AlphaDropout, nn.FeatureAlphaDropout), _DROPOUT),
    nn.Identity: _IDENTITY,
    nn.Flatten: _FLATTEN,
    nn.Upsample: _UPSAMPLE,
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d), _PAD),
    **dict.fromkeys((nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d), _PAD),
    **dict.fromkeys((nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d), _PAD),
    nn.ChannelShuffle: _SHUFFLE,
    "canon_bridge.core.modules.layers.Mean": _MEAN,
}

# For a function or method: the entry, and the names and defaults of its arguments behind the tensor.
_CALLS: tuple[tuple[Through, tuple[Any, ...], dict[str, Any]], ...] = (
    (_FLATTEN, (torch.flatten, "flatten"), {"start_dim": 0, "end_dim": -1}),
    # F.dropout defaults to training=True.
    (
        _DROPOUT,
        (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
        {"p": 0.5, "training": True, "inplace": False},
    ),
    (_DROPOUT, (torch.dropout,), {"p": None, "train": None}),
    (Through("contiguous"), ("contiguous", "clone", torch.clone), {}),
    (_MEAN, (torch.mean, "mean"), {"dim": None, "keepdim": False}),
    (_PAD, (F.pad, torch.nn.functional.pad), {"pad": None, "mode": "constant", "value": None}),
    (_UPSAMPLE, (F.interpolate, F.upsample), {}),
    (_VIEW, ("view", "reshape"), {"*": None}),
    (_VIEW, (torch.reshape,), {"*": None}),
    (_PERMUTE, ("permute", torch.permute), {"*": None}),
    (_TRANSPOSE, ("transpose", torch.transpose, "swapaxes", "swapdims"), {"dim0": None, "dim1": None}),
    (_SQUEEZE, ("squeeze", torch.squeeze), {"dim": None}),
    (_UNSQUEEZE, ("unsqueeze", torch.unsqueeze), {"dim": None}),
    (_SHUFFLE, (F.channel_shuffle, torch.channel_shuffle), {"groups": None}),
)
THROUGH_CALLS: Mapping[Any, tuple[Through, Mapping[str, Any]]] = {
    target: (through, names) for through, targets, names in _CALLS for target in targets
}


def find_through(node: fx.Node, module: nn.Module | None) -> tuple[Through, Arguments] | None:
    """Return the entry for a node and the arguments of the call, or None if there is no entry.

    Parameters
    ----------
    node : fx.Node
        A call.
    module : nn.Module or None
        The module that is called, or that the function becomes.
    """
    if module is not None:
        entry = find_entry(THROUGH_MODULES, module)
        return None if entry is None or "forward" in vars(module) else (entry, vars(module))
    if node.op == "call_module" or node.target not in THROUGH_CALLS:
        return None
    through, names = THROUGH_CALLS[node.target]
    given = node.args[1:]
    if "*" in names:
        keywords = [value for key, value in node.kwargs.items() if key in ("shape", "dims", "size")]
        return through, {"*": (*given, *keywords), "input": node.args[0] if node.args else node.kwargs.get("input")}
    return through, {**names, **dict(zip(names, given, strict=False)), **node.kwargs}
