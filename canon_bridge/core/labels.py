"""Where the channels of a norm lie in a tensor, followed by running each operation on tensors that hold their numbers.

An operation ``op`` with ``op(s * x + b) = s * op(x) + b`` for per-channel ``s`` and ``b`` is one whose every output is
a mean (or a copy) of inputs of one channel. So each channel gets a random number, the operation is computed on a tensor
of these numbers, and where an output is none of them, or not the same along all other axes, no map passes. Sizes that
are not known take several values, worlds, and what holds in all of them is taken to hold. Each world has random numbers
of its own: a mean of several channels that is the number of another one by chance is so in one world alone.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

OUTSIDE: Final = -1  # the number of every element that is no channel of the norm and stays as it is

# Batch and other sizes in each world. A window of a pool may be larger than all sizes of a world, which then drops out.
_SIZES: Final = ((1, (1, 1, 1)), (2, (3, 4, 5)), (2, (8, 9, 10)), (1, (33, 34, 35)))
WORLDS: Final = range(len(_SIZES))
_LEAST_WORLDS: Final = 2
_ACCURACY: Final = 1e-6
_COUNT: Final = 1 << 16


@dataclass(frozen=True)
class Positions:
    """Which channel lies at which position of an axis.

    Attributes
    ----------
    channels : tuple of int
        For each position the number of the channel, ``OUTSIDE`` for what stays as it is.
    repeats : bool
        Whether each position stands for several neighbouring ones, how many is not known (after a flatten).
    """

    channels: tuple[int, ...]
    repeats: bool = False

    def fits(self, width: int) -> bool:
        """Return whether a layer that takes ``width`` channels takes these."""
        return width % len(self.channels) == 0 if self.repeats else width == len(self.channels)


class Mixed(Exception):  # noqa: N818 - not an error, it says why no map passes
    """Raise where an operation mixes channels, or cannot be followed."""


@dataclass(frozen=True, eq=False)
class Labels:
    """A tensor of channel numbers in each world in which it can be computed.

    Attributes
    ----------
    channels, axis, rank : tuple of int, int, int
        Where the channels lie as long as nothing has moved them; the tensors are made when they are wanted.
    worlds : dict
        By world what stands for the value: a tensor of codes, or a tuple of such; empty as long as nothing has moved.
    """

    channels: tuple[int, ...]
    axis: int
    rank: int
    worlds: dict[int, Any]

    @classmethod
    def start(cls, channels: Sequence[int], axis: int, rank: int) -> "Labels":
        """Return a tensor of ``rank`` dimensions with the channels on an axis."""
        return cls(tuple(channels), axis, rank, {})

    def in_worlds(self, worlds: Sequence[int]) -> "Labels":
        """Return the same in some of the worlds alone."""
        return Labels(self.channels, self.axis, self.rank, {world: self.value(world) for world in worlds})

    def shape(self, world: int) -> tuple[int, ...]:
        """Return the shape of the tensor in a world, as it was at the start."""
        batch, others = _SIZES[world]
        sizes = [batch, *others[: self.rank - 2]]
        sizes.insert(self.axis, len(self.channels))
        return tuple(sizes[: self.rank])

    def value(self, world: int) -> Any:
        """Return the tensor of codes (or the tuple of such) in a world; raise :class:`Mixed` where there is none."""
        if self.worlds:
            if world not in self.worlds:
                raise Mixed("its sizes are too small")
            return self.worlds[world]
        line = encode(self.channels, world)
        # In memory as it would be, so that it can be viewed.
        return line.view(-1, *(1,) * (self.rank - 1 - self.axis)).expand(self.shape(world)).contiguous()

    def moved(self, run: Callable[[int], Any]) -> "Labels":
        """Return what an operation makes of it; ``run`` computes it in one world."""
        worlds: dict[int, Any] = {}
        reason = ""
        for world in WORLDS if not self.worlds else tuple(self.worlds):
            try:
                with torch.no_grad():
                    value = run(world)
                if isinstance(value, Tensor) and not value.numel():
                    raise Mixed("its sizes are too small")
                worlds[world] = value
            except Mixed as mixed:
                reason = str(mixed)
            except Exception as error:  # whatever an operation raises on sizes that it cannot have
                reason = str(error).partition("\n")[0]
        if len(worlds) < _LEAST_WORLDS:
            raise Mixed(reason)
        return Labels(self.channels, self.axis, self.rank, worlds)

    def dimensions(self) -> int | None:
        """Return how many dimensions the tensor has, None if that depends on sizes that are not known."""
        if not self.worlds:
            return self.rank
        ranks = {value.dim() if isinstance(value, Tensor) else None for value in self.worlds.values()}
        return ranks.pop() if len(ranks) == 1 else None

    def along(self, axis: int) -> Positions | None:
        """Return which channel lies where on an axis, or None where the channels do not lie on that axis alone."""
        if not self.worlds:
            if axis % self.rank == self.axis:
                return Positions(self.channels)
            return Positions(self.channels, repeats=True) if len(self.channels) == 1 else None
        lines: list[tuple[int, ...]] = []
        for world, value in self.worlds.items():
            if not isinstance(value, Tensor):
                return None
            line = _line(value, axis, world)
            if line is None:
                return None
            lines.append(line)
        if len(set(lines)) == 1:
            return Positions(lines[0])
        return _repeated(lines)

    def kept(self, sources: Sequence["Labels"]) -> float:
        """Return the share of the elements that are elements of the sources: what else there is mixes or scales."""
        if not self.worlds:
            return 1.0
        # Large enough to have an inside, and not the largest one, of which there are many elements.
        world = sorted(self.worlds, key=lambda world: sum(part.numel() for part in _tensors(self.worlds[world])))[-2]
        parts = [part.flatten() for source in sources for part in _tensors(source.value(world))]
        known = torch.cat([encode((OUTSIDE,)), *parts]).unique()
        found = [_nearest(part.flatten(), known)[1] for part in _tensors(self.worlds[world])]
        return float(torch.cat(found).double().mean()) if found else 1.0

    def renumbered(self, first: int, positions: Positions, run: Callable[[int, Tensor], Any] | None) -> "Labels":
        """Return what is behind an operation that gives each channel of axis 1 another map: new numbers from ``first``.

        ``positions`` are the channels on axis 1 before; ``run`` is the operation, from a world and the value in it, if
        it may change other sizes.
        """
        numbers = tuple(range(first, first + len(positions.channels)))
        if not self.worlds:
            started = Labels.start(numbers, self.axis, self.rank)
            return started if run is None else started.moved(lambda world: run(world, started.value(world)))

        def renumber(world: int) -> Any:
            value = self.worlds[world]
            line = encode(numbers, world).repeat_interleave(value.shape[1] // len(numbers))
            line = line.view(-1, *(1,) * (value.dim() - 2)).expand(value.shape)
            return line if run is None else run(world, line)

        return self.moved(renumber)


def encode(channels: Sequence[int], world: int = 0) -> Tensor:
    """Return the code of each channel, a number of its own between 1 and 2; zero, which pads put in, is none.

    The code of ``OUTSIDE`` is the same in each world.
    """
    numbers = torch.tensor(channels, dtype=torch.long) - OUTSIDE
    if int(numbers.max()) >= _COUNT:
        raise Mixed(f"it has more than {_COUNT} channels")
    return _codes(world)[0][numbers]


@cache
def _codes(world: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes, the same in order, and the number of each of those; no two are nearer than ``0.4 / _COUNT``."""
    with torch.inference_mode(False), torch.device("cpu"):
        generator = torch.Generator().manual_seed(world)
        places = 1 + torch.randperm(_COUNT - 1, generator=generator)
        noise = 0.6 * torch.rand(_COUNT - 1, generator=generator, dtype=torch.float64)
        codes = 1 + torch.cat([torch.tensor([0.3], dtype=torch.float64), places + noise]) / _COUNT
        ordered, numbers = codes.sort()
        return codes, ordered, numbers


def _line(value: Tensor, axis: int, world: int) -> tuple[int, ...] | None:
    """Return the numbers along an axis, or None where they differ along another, or are no codes."""
    if value.dim() < 2 or not value.numel() or not value.is_floating_point():
        return None
    rows = value.movedim(axis, 0).flatten(1)
    first = rows[:, 0].to(torch.float64)
    if not bool(((rows - first[:, None]).abs() <= _ACCURACY).all()):
        return None
    _, codes, order = _codes(world)
    near, is_near = _nearest(first, codes)
    return tuple((order[near] + OUTSIDE).tolist()) if bool(is_near.all()) else None


def _nearest(values: Tensor, ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Return the place of the nearest of some ordered numbers, and whether the value is that number."""
    near = torch.searchsorted(ordered, values - _ACCURACY).clamp(max=len(ordered) - 1)
    return near, (ordered[near] - values).abs() <= 2 * _ACCURACY


def _tensors(value: Any) -> list[Tensor]:
    parts = value if isinstance(value, tuple | list) else [value]
    return [part.double() for part in parts if isinstance(part, Tensor) and part.is_floating_point()]


def _repeated(lines: list[tuple[int, ...]]) -> Positions | None:
    """Return the numbers of which all lines are repetitions, each number as often as any other."""
    base = min(lines, key=len)
    base = base[:: math.gcd(*(len(list(run)) for _, run in itertools.groupby(base)))]
    for line in lines:
        times, rest = divmod(len(line), len(base))
        if rest or line != tuple(number for number in base for _ in range(times)):
            return None
    return Positions(base, repeats=True)
