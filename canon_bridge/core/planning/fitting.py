"""Whether the channels of a map are those that a linear or normalization layer takes in or puts out.

Floor 12: imports ``explicit`` and the tables below it.
"""

from torch import nn

from canon_bridge.core.channels.layout import Layout
from canon_bridge.core.layers.linear import in_channels, linear_type, out_channels
from canon_bridge.core.norms import is_norm, norm_type, width
from canon_bridge.core.planning.chains import Words, words
from canon_bridge.core.tracing.explicit import Operation


def name_of(operation: Operation) -> Words:
    """Return the path of a module, or its type."""
    return Words(operation.path, type(operation.module).__name__)


def why_not_taken(layer: Operation, layout: Layout) -> str | None:
    """Return why a layer does not take a tensor with this layout for its input, or None if it does."""
    if not _is_on_axis(layer.module, layout):
        return _wrong_dimension(layer)
    takes = width(layer.module) if is_norm(layer.module) else in_channels(layer.module)
    has = len(layout.channels)
    if takes % has == 0 if layout.repeats else takes == has:
        return None
    return words("{} takes {} channels, it has {}", name_of(layer), *_numbers(takes, has))


def why_not_put_out(layer: Operation, layout: Layout) -> str | None:
    """Return why the output of a layer is no tensor with this layout, or None if it is."""
    gives = width(layer.module) if is_norm(layer.module) else out_channels(layer.module)
    wanted = len(layout.channels)
    if gives != wanted:
        return words("{} puts out {} channels, it wants {}", name_of(layer), *_numbers(gives, wanted))
    return None if _is_on_axis(layer.module, layout) else _wrong_dimension(layer)


def _is_on_axis(module: nn.Module, layout: Layout) -> bool:
    """Return whether the layer works along the axis of the channels, on tensors of this rank."""
    if is_norm(module):
        return layout.axis == 1 and layout.rank in norm_type(module).ranks
    spatial = linear_type(module).spatial
    return layout.axis == 1 and layout.rank == spatial + 2 if spatial else layout.is_last


def _wrong_dimension(layer: Operation) -> Words:
    if is_norm(layer.module):
        where = "another dimension than the channels"
    elif linear_type(layer.module).spatial:
        where = "other dimensions"
    else:
        where = "the last dimension, not on channels"
    return words(f"{{}} acts on {where}", name_of(layer))


def _numbers(one: int, other: int) -> tuple[Words, Words]:
    return Words(str(one), "n"), Words(str(other), "m")
