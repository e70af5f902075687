"""Which kernel taps of a convolution lie inside its input, position by position.

On one axis the set of valid taps takes few distinct values (four for a 3-tap kernel
with padding 1); everything that depends on the border is kept once for each distinct set and gathered by position.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

Number = Any  # an integer, or a tensor of integers


@dataclass(frozen=True)
class AxisGeometry:
    """One spatial axis of a (transposed) convolution: sizes, and the zero padding at both ends.

    Attributes
    ----------
    low, high : int
        The padding; where it depends on the size, the most that there is for any size.
    extra : int
        Only for a transposed convolution: how many positions ``output_padding`` may add at the upper end.
    by_size : bool
        Whether just so much is padded that there are ``ceil(size / stride)`` positions, the odd element at the upper
        end ("same" padding as TensorFlow has it); never for a transposed convolution.
    """

    kernel: int
    stride: int
    dilation: int
    low: int
    high: int
    transposed: bool = False
    extra: int = 0
    by_size: bool = False

    @property
    def has_border(self) -> bool:
        """Whether some output position may see fewer taps than another."""
        if self.transposed:
            return self.kernel > 1 or self.stride > 1 or self.extra > 0 or self.low > 0
        return self.low > 0 or self.high > 0

    def padding(self, size: Number) -> tuple[Number, Number]:
        """Return the padding at both ends of an input of ``size`` elements."""
        if not self.by_size:
            return self.low, self.high
        last = (-(-size // self.stride) - 1) * self.stride  # where the first tap of the last position stands
        total = _clip(last + self.dilation * (self.kernel - 1) + 1 - size, 0, self.kernel * self.dilation)
        return total // 2, total - total // 2

    def valid_taps(self, position: Number, size: Number) -> tuple[Number, Number, Number]:
        """Return ``(first, last, phase)`` of the taps that lie inside an input of ``size`` elements.

        Numbers, or tensors of integers, so that it can be computed where sizes are symbols.

        The taps are those in ``first..last`` and, for a transposed convolution, only those that are congruent to
        the phase. An empty set has ``first > last``. Values are clipped to the range that :meth:`Border.of` lists.
        """
        if self.transposed:
            # Tap k reads input (position + low - k * dilation) / stride, if that is an integer in [0, size).
            origin = position + self.low
            first, last = -(((size - 1) * self.stride - origin) // self.dilation), origin // self.dilation
            return _clip(first, 0, self.kernel), _clip(last, -1, self.kernel - 1), origin % self.stride
        # Tap k reads input position * stride - low + k * dilation, if that is in [0, size).
        origin = position * self.stride - self.padding(size)[0]
        first, last = -(origin // self.dilation), (size - 1 - origin) // self.dilation
        return _clip(first, 0, self.kernel), _clip(last, -1, self.kernel - 1), 0

    def taps(self, first: int, last: int, phase: int) -> tuple[float, ...]:
        """Return the set as 0/1 weights for each tap."""
        return tuple(
            float(first <= tap <= last and (not self.transposed or (tap * self.dilation - phase) % self.stride == 0))
            for tap in range(self.kernel)
        )


def number_of_tap_sets(geometry: AxisGeometry) -> int:
    """Return how many sets :class:`Border` lists, without listing them."""
    kernel, dilation = geometry.kernel, geometry.dilation
    if geometry.transposed:
        # The taps of one phase are those of one remainder; all runs of them occur, and none.
        phases = Counter(tap * dilation % geometry.stride for tap in range(kernel))
        return 1 + sum(taps * (taps + 1) // 2 for taps in phases.values())
    firsts = min(kernel, -(-geometry.low // dilation)) + 1
    lowest = max(-1, kernel - 1 + (-geometry.high // dilation))
    runs = sum(kernel - max(first, lowest) for first in range(min(firsts, kernel)))
    return runs + (lowest < firsts - 1)  # the last for no tap at all


@dataclass(frozen=True)
class Border:
    """One spatial axis of a layer: the distinct sets of taps that positions see, for any size, and where each holds.

    Attributes
    ----------
    geometry : AxisGeometry
        The axis.
    sets : tuple
        The distinct sets, each as 0/1 weights for each tap.
    table : tuple
        Which of the sets it is by first tap, by last tap plus one, and by phase; zero for what cannot occur.
    inner : int or None
        The set of all taps, which holds everywhere but at the border; None for a transposed convolution with a stride,
        where it holds nowhere.
    """

    geometry: AxisGeometry
    sets: tuple[tuple[float, ...], ...]
    table: tuple[tuple[tuple[int, ...], ...], ...]
    inner: int | None

    @classmethod
    @cache
    def of(cls, geometry: AxisGeometry) -> "Border":
        """List the sets once and for all."""
        kernel, dilation, ends = geometry.kernel, geometry.dilation, range(geometry.kernel + 1)
        if geometry.transposed:
            firsts, lasts, phases = ends, range(-1, kernel), range(geometry.stride)
        else:
            # At the lower end at most ceil(low / dilation) taps fall outside, at the upper end ceil(high / dilation).
            firsts = range(min(kernel, -(-geometry.low // dilation)) + 1)
            lasts = range(max(-1, kernel - 1 + (-geometry.high // dilation)), kernel)
            phases = range(1)
        sets: dict[tuple[float, ...], int] = {}
        row_of = {
            (first, last, phase): sets.setdefault(geometry.taps(first, last, phase), len(sets))
            for first in firsts
            for last in lasts
            for phase in phases
        }
        table = tuple(tuple(tuple(row_of.get((f, e - 1, p), 0) for p in phases) for e in ends) for f in ends)
        inner = None if geometry.transposed and geometry.stride > 1 else row_of[0, kernel - 1, 0]
        return cls(geometry, tuple(sets), table, inner)

    def rows(self, size: Number, output_size: Number, device: torch.device) -> Tensor:
        """Return what :func:`rows_by_position` returns, as a tensor that is computed from the sizes if need be.

        Where a graph is recorded (``torch.compile``, ``torch.export``, ``torch.jit.trace``), sizes may be symbols that
        stand for any size.
        """
        if type(size) is int and type(output_size) is int and not torch.compiler.is_compiling():
            return torch.tensor(rows_by_position(self.geometry, size, output_size), device=device)
        positions = torch.arange(output_size, device=device)
        first, last, phase = self.geometry.valid_taps(positions, positions.new_zeros(()) + size)
        return torch.tensor(self.table, device=device)[first, last + 1, phase]


@lru_cache(maxsize=4096)
def rows_by_position(geometry: AxisGeometry, size: int, output_size: int) -> tuple[int, ...]:
    """Return for each of ``output_size`` positions on an axis which of the sets of :class:`Border` holds there."""
    table = Border.of(geometry).table
    taps = (geometry.valid_taps(position, size) for position in range(output_size))
    return tuple(table[first][last + 1][phase] for first, last, phase in taps)


def gather(compact: Tensor, borders: tuple[Border, ...], sizes: list[tuple[Number, Number]], first: int = 1) -> Tensor:
    """Spread a compact map ``(C, n_1, ..., n_d)`` over the positions of the output, ``(C, *output sizes)``.

    It has one entry for each channel and each combination of tap sets; an axis of length 1 broadcasts. Every
    element-wise change of it commutes with this, so rules may clamp, square or zero it. ``sizes`` are those of the
    input and of the output on each axis; axes before ``first`` stay as they are.
    """
    for axis, (border, (size, output_size)) in list(enumerate(zip(borders, sizes, strict=True), start=1))[first - 1 :]:
        if compact.shape[axis] > 1:
            compact = compact.index_select(axis, border.rows(size, output_size, compact.device))
    return compact


def inner_values(compact: Tensor, borders: tuple[Border, ...]) -> Tensor | None:
    """Return what a compact map is where all taps are valid, ``(C,)``; None where that is nowhere."""
    for border in borders:
        if border.inner is None:
            return None
        compact = compact.select(1, border.inner if compact.shape[1] > 1 else 0)
    return compact


def add_at_border(
    output: Tensor, rest: Tensor, borders: tuple[Border, ...], sizes: list[tuple[Number, Number]]
) -> None:
    """Add a compact map that is zero inside to an output ``(..., C, *output sizes)``, in place: only at its border.

    ``rest`` is a compact map minus its :func:`inner_values`; borders and sizes are those of :func:`gather`.
    """
    for axis, (border, (size, output_size)) in enumerate(zip(borders, sizes, strict=True), start=1):
        if rest.shape[axis] == 1:
            continue
        rows, inner = rows_by_position(border.geometry, size, output_size), border.inner
        assert inner is not None  # else there are no inner values
        start = rows.index(inner) if inner in rows else output_size
        stop = start + rows.count(inner)  # positions that see all taps are neighbours
        for begin, end in ((0, start), (stop, output_size)):
            if begin < end:
                strip = rest.index_select(axis, torch.tensor(rows[begin:end], device=rest.device))
                there = output.narrow(axis - rest.dim(), begin, end - begin)
                there += gather(strip, borders, sizes, axis + 1).to(output.dtype)
        output, rest = output.narrow(axis - rest.dim(), start, stop - start), rest.narrow(axis, inner, 1)


def _clip(value: Number, low: int, high: int) -> Number:
    return value.clamp(low, high) if isinstance(value, Tensor) else torch.sym_min(torch.sym_max(value, low), high)
