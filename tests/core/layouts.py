"""What a layout says, as numbers: a map placed on a tensor, and how far an operation is from passing it through."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from canon_bridge.core.channels.layout import Layout
from canon_bridge.core.tracing.trace import trace

CHANNELS = 3
TOLERANCE = 64 * torch.finfo(torch.float64).eps
WRONG = 1e-2
Function = Callable[[Tensor], Any]


def layout(axis: int = 1, rank: int = 4, channels: int = CHANNELS, **flags: bool) -> Layout:
    """Return the layout of all channels in order."""
    return Layout(tuple(range(channels)), axis, rank, **flags)


def shape_of(place: Layout, lengths: tuple[int, ...] = (2, 5, 4, 6, 7)) -> tuple[int, ...]:
    """Return the shape of a tensor that fits a layout: different lengths, or ones where the layout says so."""
    shape = [1 if place.point and axis else lengths[axis] for axis in range(place.rank)]
    shape[place.axis] = len(place.channels) * (2 if place.repeats else 1)
    return tuple(shape)


def placed(values: Tensor, place: Layout, x: Tensor, elsewhere: float) -> Tensor:
    """Return ``(C,)`` values where the layout says, ``elsewhere`` at the positions of other channels."""
    if x.dim() != place.rank:
        raise ValueError(f"{place} of a tensor with {x.dim()} dimensions")
    one = values.new_full((1,), elsewhere)
    chosen = torch.cat([values, one])[list(place.channels)]  # -1 is the last
    times, rest = divmod(x.shape[place.axis], len(chosen))
    if rest or (times != 1 and not place.repeats):
        raise ValueError(f"{place} of a tensor of shape {tuple(x.shape)}")
    if place.point and any(n != 1 for axis, n in enumerate(x.shape) if axis not in (0, place.axis)):
        raise ValueError(f"{place} of a tensor of shape {tuple(x.shape)}")
    view = [1] * place.rank
    view[place.axis] = -1
    return chosen.repeat_interleave(times).view(view)


def deviation(function: Function, before: Layout, after: Layout, shape: tuple[int, ...]) -> float:
    """Return how far ``op(s x + b)`` is from ``s' op(x) + b'`` with the values placed by the layouts, or infinity."""
    x, numbers = torch.randn(shape, dtype=torch.float64), torch.arange(1, max(before.channels) + 2)
    scale, shift = (0.7 * numbers * (-1) ** numbers).double(), (1.3 * numbers - 2).double()
    try:
        inner = function(placed(scale, before, x, 1) * x + placed(shift, before, x, 0))
        outer = function(x.clone())
        expected = placed(scale, after, outer, 1) * outer + placed(shift, after, outer, 0)
    except ValueError:
        return float("inf")
    if not bool(torch.isfinite(inner).all()):
        return float("inf")
    return float((inner - expected).abs().max() / (1 + expected.abs().max()))


def candidates(before: Layout, output: Tensor) -> Iterator[Layout]:
    """Yield every layout in which the same channels in their order might lie in the output."""
    for axis in range(output.dim()):
        if output.shape[axis] % len(before.channels) == 0:
            repeats = output.shape[axis] != len(before.channels)
            yield Layout(before.channels, axis, output.dim(), repeats)


def passes(function: Function, before: Layout, shape: tuple[int, ...]) -> bool:
    """Return whether the map passes the operation in any layout at all."""
    output = function(torch.randn(shape, dtype=torch.float64))
    return any(deviation(function, before, after, shape) < TOLERANCE for after in candidates(before, output))


class Call(nn.Module):
    """A model that is one function."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def only_call(model: nn.Module) -> fx.Node:
    """Return the node of the only call of a model."""
    (node,) = (n for n in trace(model).graph.nodes if n.op.startswith("call"))
    return node
