"""How operations that change the shape of a tensor move its channels, forwards and backwards.

Floor 1: imports ``layout``. Each function takes the layout and the arguments of the call and returns the layout on the
other side, or a reason why there is none.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import fx

from canon_bridge.core.channels.layout import Layout, position

Arguments = Mapping[str, Any]


def _dims(value: Any) -> tuple[int, ...] | None:
    """Return dimensions that are written as numbers, alone or in a list; None if one of them is computed."""
    dims = tuple(value) if isinstance(value, list | tuple) else (value,)
    return dims if all(type(dim) is int for dim in dims) else None


def flatten(layout: Layout, a: Arguments) -> Layout | str:
    """Follow a flatten."""
    dims = _dims([a["start_dim"], a["end_dim"]])
    if dims is None:
        return "a flatten of computed dimensions"
    start, end = (position(dim, layout.rank) for dim in dims)
    axis, merged = layout.axis, max(end - start, 0)
    rank = layout.rank - merged
    if axis < start or merged == 0:
        return layout.moved(axis, rank)
    if axis > end:
        return layout.moved(axis - merged, rank)
    if axis > start:
        return "flatten puts other dimensions in front of the channels"
    if end != layout.rank - 1 and not layout.point:
        return "flatten keeps dimensions behind the channels"
    return replace(layout.moved(axis, rank), repeats=layout.repeats or not layout.point)


def flatten_back(layout: Layout, a: Arguments) -> Layout | str:
    """Follow a flatten from its output to its input."""
    dims = _dims([a["start_dim"], a["end_dim"]])
    if dims is None or min(dims) < 0:
        return "flatten repeats channels"  # how many dimensions its input has is not known
    start, end = dims
    merged = max(end - start, 0)
    if layout.axis == start and merged:
        return "flatten repeats channels"
    return layout.moved(layout.axis + (merged if layout.axis > start else 0), layout.rank + merged)


def mean(layout: Layout, a: Arguments) -> Layout | str:
    """Follow a mean over other dimensions than the channels."""
    dims = _dims(a.get("dim"))
    if dims is None:
        return "a mean over all dimensions, or over computed ones"
    axes = {position(dim, layout.rank) for dim in dims}
    if layout.axis in axes:
        return "a mean over the channels"
    point = layout.point or axes >= set(range(1, layout.rank)) - {layout.axis}
    if a.get("keepdim"):
        return replace(layout, point=point)
    before = sum(axis < layout.axis for axis in axes)
    return replace(layout.moved(layout.axis - before, layout.rank - len(axes)), point=point)


def mean_back(layout: Layout, a: Arguments) -> Layout | str:
    """Follow a mean from its output to its input."""
    dims = _dims(a.get("dim"))
    if dims is None:
        return "a mean over all dimensions, or over computed ones"
    if a.get("keepdim"):
        axes = {position(dim, layout.rank) for dim in dims}
        return "a mean over the channels" if layout.axis in axes else layout
    rank = layout.rank + len(dims)
    kept = [axis for axis in range(rank) if axis not in {position(dim, rank) for dim in dims}]
    return layout.moved(kept[layout.axis], rank)


def permute(layout: Layout, a: Arguments) -> Layout | str:
    """Follow a permutation of the dimensions."""
    dims = _order(layout, a)
    if isinstance(dims, str):
        return dims
    return replace(layout.moved(dims.index(layout.axis)), point=layout.point and dims[0] == 0)


def permute_back(layout: Layout, a: Arguments) -> Layout | str:
    """Follow a permutation from its output to its input."""
    dims = _order(layout, a)
    return dims if isinstance(dims, str) else replace(layout.moved(dims[layout.axis]), point=False)


def _order(layout: Layout, a: Arguments) -> list[int] | str:
    given = a["*"]
    dims = _dims(given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given)
    if dims is None or len(dims) != layout.rank:
        return "a permutation of other dimensions than the tensor has"
    return [position(dim, layout.rank) for dim in dims]


def transpose(layout: Layout, a: Arguments) -> Layout | str:
    """Follow the exchange of two dimensions, in either direction."""
    dims = _dims([a["dim0"], a["dim1"]])
    if dims is None:
        return "a transposition of computed dimensions"
    one, other = (position(dim, layout.rank) for dim in dims)
    moved = layout.moved({one: other, other: one}.get(layout.axis, layout.axis))
    return replace(moved, point=layout.point and 0 not in (one, other))


def unsqueeze(layout: Layout, a: Arguments) -> Layout | str:
    """Follow a new dimension of length one."""
    dims = _dims(a["dim"])
    if dims is None:
        return "a new dimension at a computed place"
    dim = position(dims[0], layout.rank + 1)
    if layout.repeats and dim > layout.axis:
        return "a new dimension behind repeated channels"
    return replace(layout.moved(layout.axis + (dim <= layout.axis), layout.rank + 1), point=layout.point and dim > 0)


def unsqueeze_back(layout: Layout, a: Arguments) -> Layout | str:
    """Follow a new dimension from the output to the input."""
    dims = _dims(a["dim"])
    if dims is None or position(dims[0], layout.rank) == layout.axis:
        return "a new dimension at the place of the channels"
    return layout.moved(layout.axis - (position(dims[0], layout.rank) < layout.axis), layout.rank - 1)


def squeeze(layout: Layout, a: Arguments) -> Layout | str:
    """Follow the removal of dimensions that are known to have length one."""
    dims = _dims(a.get("dim"))
    if dims is None or not layout.point:
        return "squeeze of dimensions whose length is not known"
    axes = {position(dim, layout.rank) for dim in dims}
    if axes & {0, layout.axis}:
        return "squeeze of the batch or the channels"
    return layout.moved(layout.axis - sum(axis < layout.axis for axis in axes), layout.rank - len(axes))


def view(layout: Layout, a: Arguments) -> Layout | str:
    """Follow a view or reshape that keeps the batch and keeps channels together."""
    given = a["*"]
    sizes = tuple(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else tuple(given)
    if len(sizes) < 2 or layout.axis != 1:
        return "a reshape of other kind than (batch, channels, ...)"
    width, rest, x = len(layout.channels), sizes[2:], a["input"]
    all_one = all(size == 1 for size in rest)
    if not is_size(sizes[0], x, 0) and not (sizes[0] == -1 and layout.point and sizes[1] == width and all_one):
        return "a reshape that may split or join the batch"
    if not rest and type(sizes[1]) is int:  # everything behind the batch, because the batch is kept
        return flatten(layout, {"start_dim": 1, "end_dim": -1})
    if layout.repeats:
        return "a reshape of repeated channels"
    if sizes[1] == width or is_size(sizes[1], x, 1) or (sizes[1] == -1 and layout.point and all_one):
        # The elements of a channel stay together, in their order.
        return replace(layout.moved(1, len(sizes)), point=layout.point and all_one)
    return "a reshape that may split or join channels"


def is_size(value: Any, tensor: fx.Node, dim: int) -> bool:
    """Return whether the value is ``x.size(dim)`` or ``x.shape[dim]`` of a tensor with the same batch."""
    if not isinstance(value, fx.Node):
        return False
    asked: Any = None
    if value.op == "call_method" and value.target == "size" and len(value.args) == 2:
        asked = value.args
    elif getattr(value.target, "__name__", "") == "getitem" and isinstance(value.args[0], fx.Node):
        shape = value.args[0]
        is_shape = shape.op == "call_method" and shape.target == "size" and len(shape.args) == 1
        if is_shape or (shape.target is getattr and shape.args[1:] == ("shape",)):
            asked = (shape.args[0], value.args[1])
    if asked is None or asked[1] != dim:
        return False
    # The plan notes where the batch of each tensor comes from.
    return asked[0] is tensor or (dim == 0 and asked[0].meta.get("batch", asked[0]) is tensor.meta.get("batch"))
