"""Operations that join tensors along the channels, take them apart or read their shape.

Floor 1: imports ``layout``.
"""

import operator
from typing import Any

import torch
from torch import fx

from canon_bridge.core.channels.layout import Layout, position

_JOINS = frozenset({torch.cat, torch.concat, torch.concatenate})
_CHUNKS = frozenset({torch.chunk, "chunk"})
_SPLITS = frozenset({torch.split, "split", torch.split_with_sizes, "split_with_sizes"})


_AS_ANOTHER = frozenset({"reshape_as", "view_as", "expand_as", "type_as"})


def reads_shape_alone(node: fx.Node, tensor: fx.Node) -> bool:
    """Return whether a node takes from a tensor nothing but its shape (or dtype), as ``x.reshape_as(tensor)``."""
    return node.op == "call_method" and node.target in _AS_ANOTHER and node.args[0] is not tensor


def concatenated(node: fx.Node) -> tuple[list[fx.Node], int] | None:
    """Return the tensors that a node concatenates and the dimension, or None if it is no such call."""
    if node.op != "call_function" or node.target not in _JOINS:
        return None
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    if not isinstance(tensors, list | tuple) or type(dim) is not int:
        return None
    parts = [part for part in tensors if isinstance(part, fx.Node)]
    return (parts, dim) if len(parts) == len(tensors) else None


def divided(node: fx.Node, layout: Layout) -> list[Layout] | str | None:
    """Return the layouts of the parts into which a node divides a tensor, a reason, or None if it is no such call."""
    is_chunk = node.target in _CHUNKS
    if not is_chunk and node.target not in _SPLITS:
        return None
    names = ("chunks" if is_chunk else "split_size_or_sections", "split_size", "split_sizes", "dim")
    given = {**dict(zip((names[0], "dim"), node.args[1:], strict=False)), **node.kwargs}
    size: Any = next((given[name] for name in names[:3] if name in given), None)
    dim: Any = given.get("dim", 0)
    sizes = list(size) if isinstance(size, list | tuple) else [size]
    if type(dim) is not int or any(type(n) is not int for n in sizes):
        return "a division at computed places"
    if position(dim, layout.rank) != layout.axis or layout.repeats:
        return "a division of other dimensions than the channels"
    width = len(layout.channels)
    if not isinstance(size, list | tuple):
        step = -(-width // size) if is_chunk else size
        sizes = [min(step, width - start) for start in range(0, width, step)]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [layout.holding(layout.channels[start : start + n]) for start, n in zip(starts, sizes, strict=True)]


def selected(node: fx.Node, whole: Layout | list[Layout]) -> Layout | str | None:
    """Return the layout of what a node picks from a tensor or from the parts of one, a reason, or None."""
    if node.target is not operator.getitem:
        return None
    index: Any = node.args[1]
    if isinstance(whole, list):
        if type(index) is not int or not -len(whole) <= index < len(whole):
            return "a choice of parts that is computed or not there"
        return whole[index]
    keys = index if isinstance(index, tuple) else (index,)
    numbers = [n for key in keys if isinstance(key, slice) for n in (key.start, key.stop, key.step)]
    is_plain = all(isinstance(key, slice) for key in keys) and all(n is None or type(n) is int for n in numbers)
    if not is_plain or whole.repeats or len(keys) > whole.rank:
        return "an index of other kind than slices"
    key = keys[whole.axis] if whole.axis < len(keys) else slice(None)
    return whole.holding(whole.channels[key])
