"""Where the channels lie after an operation: ``op(s x + b) = s' op(x) + b'`` by hand, with what the numbers say.

The reference shares no code with the package: it puts a scale and a shift for each channel where the positions say,
at several sizes, and it tries every axis where the positions say that no map passes.
"""

import itertools
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from canon_bridge.core.labels import OUTSIDE, Labels, Mixed, Positions, encode

Function = Callable[[Tensor], Tensor]
CHANNELS = 6
TOLERANCE, WRONG = 1e-12, 1e-3
# Where the channels lie: on which axis of a tensor of which rank.
IMAGE, VOLUME, LINE, ROW, LAST, MIDDLE = (1, 4), (1, 5), (1, 3), (1, 2), (3, 4), (2, 4)
# The sizes beside the channels: batch and others.
SIZES = ((2, 12, 7, 9), (3, 8, 8, 8), (1, 9, 12, 10))


def shape(axis: int, rank: int, sizes: tuple[int, ...], channels: int = CHANNELS) -> tuple[int, ...]:
    lengths = list(sizes[: rank - 1])
    lengths.insert(axis, channels)
    return tuple(lengths)


def labels(function: Function, axis: int, rank: int) -> Labels:
    start = Labels.start(range(CHANNELS), axis, rank)
    return start.moved(lambda world: function(start.value(world)))


def placed(values: Tensor, positions: Positions, axis: int, x: Tensor) -> Tensor | None:
    """Return ``(C,)`` values where positions say on an axis of ``x``; None where they do not fit it."""
    one = torch.tensor([1.0 if values[0] == SCALE[0] else 0.0], dtype=torch.float64)  # of what is no channel
    line = torch.cat([values, one])[list(positions.channels)]
    times, rest = divmod(x.shape[axis], len(line))
    if rest or (times != 1 and not positions.repeats):
        return None
    view = [1] * x.dim()
    view[axis] = -1
    return line.repeat_interleave(times).view(view)


SCALE = torch.tensor([0.7, -1.9, 2.3, 0.4, -0.6, 3.1], dtype=torch.float64)
SHIFT = torch.tensor([1.1, 0.3, -2.2, 0.9, -1.4, 0.5], dtype=torch.float64)


def deviation(function: Function, axis: int, rank: int, positions: Positions, to: int, sizes: tuple[int, ...]) -> float:
    """Return how far ``op(s x + b)`` is from ``s' op(x) + b'``, infinity where the positions do not fit."""
    x = torch.randn(shape(axis, rank, sizes), dtype=torch.float64)
    view = [1] * rank
    view[axis] = -1
    inner, outer = function(SCALE.view(view) * x + SHIFT.view(view)), function(x)
    scale, shift = (placed(values, positions, to, outer) for values in (SCALE, SHIFT))
    if scale is None or shift is None:
        return float("inf")
    return float((inner - scale * outer - shift).abs().max() / outer.abs().max().clamp(min=1e-9))


def check(function: Function, place: tuple[int, int], to: int) -> Positions:
    """Compare what is said of one axis with what the function does, at every size; return the positions."""
    positions = labels(function, *place).along(to)
    assert positions is not None
    turned = Positions(tuple(reversed(positions.channels)), positions.repeats)
    for sizes in SIZES:
        assert deviation(function, *place, positions, to, sizes) < TOLERANCE
        if turned != positions:
            assert deviation(function, *place, turned, to, sizes) > WRONG  # the known-wrong variant
    return positions


# name: (operation, where the channels lie before, and after)
PASSES: dict[str, tuple[Function, tuple[int, int], int]] = {
    "identity": (lambda x: x, IMAGE, 1),
    "flatten(1)": (lambda x: x.flatten(1), IMAGE, 1),
    "flatten(2)": (lambda x: x.flatten(2), IMAGE, 1),
    "flatten of others": (lambda x: x.flatten(0, 1), LAST, 2),
    "view(n, -1)": (lambda x: x.view(x.size(0), -1), IMAGE, 1),
    "view(n, c, -1)": (lambda x: x.view(x.size(0), x.size(1), -1), VOLUME, 1),
    "view in groups, and back": (lambda x: x.view(x.size(0), 2, 3, *x.shape[2:]).flatten(1, 2), IMAGE, 1),
    "shuffle by view": (lambda x: x.view(x.size(0), 2, 3, *x.shape[2:]).transpose(1, 2).flatten(1, 2), IMAGE, 1),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 3), IMAGE, 1),
    "permute": (lambda x: x.permute(0, 2, 3, 1), IMAGE, 3),
    "transpose": (lambda x: x.transpose(1, 3), IMAGE, 3),
    "to the front": (lambda x: x.movedim(1, 0), IMAGE, 0),
    "channels last, and back": (lambda x: x.permute(0, 3, 1, 2), LAST, 1),
    "unsqueeze": (lambda x: x.unsqueeze(1).unsqueeze(-1), ROW, 2),
    "mean": (lambda x: x.mean((2, 3)), IMAGE, 1),
    "mean that keeps": (lambda x: x.mean((-1, -2), keepdim=True), IMAGE, 1),
    "mean over the batch": (lambda x: x.mean(0, keepdim=True), IMAGE, 1),
    "mean over another axis": (lambda x: x.mean(1), LAST, 2),
    "slice": (lambda x: x[:, 1:4], IMAGE, 1),
    "slice with a step": (lambda x: x[:, ::2], IMAGE, 1),
    "slice of others": (lambda x: x[:, :, 1:-1, ..., ::2], IMAGE, 1),
    "index": (lambda x: x[:, [3, 0, 0, 5]], IMAGE, 1),
    "index_select": (lambda x: x.index_select(1, torch.tensor([4, 1])), IMAGE, 1),
    "first of a split": (lambda x: x.split([2, 4], 1)[0], IMAGE, 1),
    "second chunk": (lambda x: x.chunk(4, 1)[1], IMAGE, 1),
    "parts the other way round": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), IMAGE, 1),
    "cat with itself": (lambda x: torch.cat([x, x[:, :2]], 1), IMAGE, 1),
    "cat along the image": (lambda x: torch.cat([x, x.flip(2)], 2), IMAGE, 1),
    "cat of flattened ones": (lambda x: torch.cat([x.flatten(1), x.flatten(1)], 1), IMAGE, 1),
    "stack, mean": (lambda x: torch.stack([x, x.flip(3)]).mean(0), IMAGE, 1),
    "flip of the channels": (lambda x: x.flip(1), IMAGE, 1),
    "roll of the channels": (lambda x: x.roll(2, 1), IMAGE, 1),
    "roll of the image": (lambda x: x.roll((1, 2), (2, 3)), IMAGE, 1),
    "repeat of the channels": (lambda x: x.repeat(1, 2, 1, 1), IMAGE, 1),
    "repeat_interleave": (lambda x: x.repeat_interleave(3, 1), IMAGE, 1),
    "expand": (lambda x: x[:, :, :1, :1].expand(-1, -1, 3, 4), IMAGE, 1),
    "max_pool's window by unfold": (lambda x: x.unfold(2, 2, 2).mean(-1), IMAGE, 1),
    "reflection": (lambda x: F.pad(x, (1, 2, 1, 1), "reflect"), IMAGE, 1),
    "replication": (lambda x: F.pad(x, (1, 2, 1, 1), "replicate"), IMAGE, 1),
    "circular": (lambda x: F.pad(x, (1, 2, 1, 1), "circular"), IMAGE, 1),
    "negative padding": (lambda x: F.pad(x, (-1, -1, 0, -1)), IMAGE, 1),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), IMAGE, 1),
    "avg_pool2d without counted padding": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), IMAGE, 1),
    "avg_pool2d, ceil": (lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True), IMAGE, 1),
    "avg_pool2d with its own divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=4), IMAGE, 1),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), VOLUME, 1),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2), LINE, 1),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (3, None)), IMAGE, 1),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), IMAGE, 1),
    "nearest-exact": (lambda x: F.interpolate(x, (4, 5), mode="nearest-exact"), IMAGE, 1),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=True), IMAGE, 1),
    "antialiased": (lambda x: F.interpolate(x, (4, 4), mode="bilinear", antialias=True), IMAGE, 1),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), IMAGE, 1),
    "area": (lambda x: F.interpolate(x, (3, 2), mode="area"), IMAGE, 1),
    "trilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), VOLUME, 1),
    "linear": (lambda x: F.interpolate(x, 11, mode="linear"), LINE, 1),
    "lerp": (lambda x: torch.lerp(x, x.flip(2), 0.3), IMAGE, 1),
    "dropout in evaluation": (lambda x: F.dropout(x, 0.5, False), IMAGE, 1),
    "to float32": (lambda x: x.float().double(), ROW, 1),
    "diagonal": (lambda x: x[:, :, :3, :3].diagonal(dim1=2, dim2=3), IMAGE, 1),
    "im2col of one": (lambda x: F.unfold(x, 1), IMAGE, 1),
}
# Rounding to single precision, or a cubic whose weights sum to one but for rounding.
ROUNDED = {"to float32": 1e-6}


@pytest.mark.parametrize("name", [name for name in PASSES if name not in ROUNDED])
def test_a_map_passes_and_lies_where_the_positions_say(name: str) -> None:
    check(*PASSES[name])


def test_single_precision_is_precise_enough() -> None:
    assert labels(*_args("to float32")).along(1) == Positions(tuple(range(CHANNELS)))


def _args(name: str) -> tuple[Function, int, int]:
    function, (axis, rank), _ = PASSES[name]
    return function, axis, rank


# name: (operation, where the channels lie before): no map passes in whatever place.
MIXES: dict[str, tuple[Function, tuple[int, int]]] = {
    "avg_pool2d that counts its padding": (lambda x: F.avg_pool2d(x, 3, 2, 1), IMAGE),
    "avg_pool2d that pads one axis": (lambda x: F.avg_pool2d(x, 3, 1, (0, 1)), IMAGE),
    "another divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), IMAGE),
    "sum": (lambda x: x.sum((2, 3)), IMAGE),
    "sum over the channels": (lambda x: x.sum(1), IMAGE),
    "mean over the channels": (lambda x: x.mean(1, keepdim=True), IMAGE),
    "mean over all": (lambda x: x.mean((1, 2, 3)), IMAGE),
    "cumsum": (lambda x: x.cumsum(2), IMAGE),
    "diff": (lambda x: x.diff(dim=2), IMAGE),
    "zeros around": (lambda x: F.pad(x, (1, 1, 1, 1)), IMAGE),
    "ones around": (lambda x: F.pad(x, (1, 1), value=1.0), IMAGE),
    "a constant in one channel": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 1), value=1.5), IMAGE),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(F.pad(x, (0, 0, 0, 0, 0, 2)), 2), IMAGE),
    "pool over the channels": (lambda x: F.avg_pool1d(x, 2), (2, 3)),
    "interpolation over the channels": (lambda x: F.interpolate(x, 11, mode="linear"), (2, 3)),
    "lerp of two channels": (lambda x: torch.lerp(x, x.roll(1, 1), 0.3), IMAGE),
    "extrapolation": (lambda x: torch.lerp(x, x.roll(1, 1), 1.5), IMAGE),
    "a factor": (lambda x: x * 0.5, IMAGE),
    "a term": (lambda x: x + 0.25, IMAGE),
    "fold": (lambda x: F.fold(F.unfold(x, 2), x.shape[2:], 2), IMAGE),
    "triangle": (lambda x: x.tril(), IMAGE),
    "mask": (lambda x: x.masked_fill(torch.rand(x.shape[2:]) > 0.5, 0.0), IMAGE),
    "half precision": (lambda x: x.half().double(), IMAGE),
    "dropout": (lambda x: F.dropout(x, 0.5, True), IMAGE),
    "one image with the next": (lambda x: torch.cat([x[:, :3], x[:, 3:].roll(1, 1)], 0), IMAGE),
    "the channels for the image": (lambda x: torch.cat([x[:, :3, :3, :3], x[:, :3, :3, :3].transpose(1, 2)], 1), IMAGE),
}


@pytest.mark.parametrize("name", MIXES)
def test_where_channels_mix_no_position_is_told(name: str) -> None:
    function, place = MIXES[name]
    try:
        found = labels(function, *place)
    except Mixed:
        return
    rank = found.dimensions() or 1
    assert [found.along(axis) for axis in range(rank) if rank > 1] == [None] * (rank if rank > 1 else 0)


@pytest.mark.parametrize("name", [name for name in MIXES if name not in ("mask", "dropout", "half precision")])
def test_where_no_position_is_told_no_map_passes(name: str) -> None:
    """The refusals are right: no order of the channels on no axis makes the equation hold."""
    function, place = MIXES[name]
    output = function(torch.randn(shape(*place, SIZES[0]), dtype=torch.float64))
    for axis in range(output.dim()):
        count = output.shape[axis]
        if count in (CHANNELS, CHANNELS // 2) or count % CHANNELS == 0:
            positions = Positions(tuple(range(CHANNELS)), repeats=count != CHANNELS)
            assert min(deviation(function, *place, positions, axis, sizes) for sizes in SIZES) > WRONG


CHANGES: dict[str, Function] = {
    "flatten": lambda x: x.flatten(-2),
    "flatten of two": lambda x: x.flatten(1, 2),
    "mean": lambda x: x.mean(-1),
    "mean that keeps": lambda x: x.mean((2, 3), keepdim=True),
    "transpose": lambda x: x.transpose(1, -1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "unsqueeze": lambda x: x.unsqueeze(2),
    "squeeze": lambda x: x.squeeze(-1),
    "slice": lambda x: x[:, 1:],
    "roll": lambda x: x.roll(1, 1),
    "cat": lambda x: torch.cat([x, x.flip(1)], 1),
    "repeat": lambda x: x.repeat_interleave(2, 1),
    "view": lambda x: x.reshape(x.size(0), -1, x.size(-1)),
    "pool": lambda x: F.avg_pool2d(x, 2, 1, count_include_pad=False),
    "sum": lambda x: x.sum(-1),
    "pad": lambda x: F.pad(x, (0, 1)),
}


@pytest.mark.parametrize("seed", range(12))
def test_sequences_of_operations_are_followed_or_refused(seed: int) -> None:
    draw, followed = random.Random(seed), 0
    for _ in range(60):
        names = draw.choices(list(CHANGES), k=draw.randint(1, 4))
        place = draw.choice([IMAGE, LAST, MIDDLE, LINE, VOLUME])

        def function(x: Tensor, names: list[str] = names) -> Tensor:
            for name in names:
                x = CHANGES[name](x)
            return x

        try:
            found = labels(function, *place)
        except Mixed:
            continue
        for axis in range(found.dimensions() or 0):
            positions = found.along(axis)
            if positions is None or found.dimensions() == 1:
                continue
            for sizes in SIZES:
                try:
                    function(torch.randn(shape(*place, sizes)))
                except (RuntimeError, IndexError, ValueError):
                    continue
                followed += 1
                assert deviation(function, *place, positions, axis, sizes) < TOLERANCE, (names, place, axis)
    assert followed > 10


def test_positions_fit_a_layer_as_wide_or_a_multiple_where_they_repeat() -> None:
    assert [Positions((0, 1, 2)).fits(n) for n in (3, 6, 4)] == [True, False, False]
    assert [Positions((0, 1, 2), repeats=True).fits(n) for n in (3, 6, 4)] == [True, True, False]


def test_a_flatten_repeats_each_channel_and_a_pool_to_a_point_does_not() -> None:
    own = tuple(range(CHANNELS))
    assert labels(lambda x: x.flatten(1), *IMAGE).along(1) == Positions(own, repeats=True)
    assert labels(lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), *IMAGE).along(1) == Positions(own)
    # Four of each, whatever the sizes: no repetition of unknown length.
    four = labels(lambda x: F.adaptive_avg_pool2d(x, 2).flatten(1), *IMAGE).along(1)
    assert four == Positions(tuple(itertools.chain(*([number] * 4 for number in own))))


def test_others_lie_outside() -> None:
    def joined(world: int) -> Tensor:
        value = start.value(world)
        return torch.cat([encode((OUTSIDE,)).expand(value.shape), value], 1)

    start = Labels.start(range(2), 1, 4)
    assert start.moved(joined).along(1) == Positions((OUTSIDE, OUTSIDE, 0, 1))


def test_after_an_activation_channels_have_new_numbers() -> None:
    positions = Positions((0, 1, 2))
    fresh = Labels.start(range(3), 1, 4).renumbered(7, positions, None)
    assert fresh.along(1) == Positions((7, 8, 9))
    moved = Labels.start(range(3), 1, 4)
    moved = moved.moved(lambda world, before=moved: before.value(world).flatten(1))
    again = moved.renumbered(7, moved.along(1), lambda world, value: value)
    assert again.along(1) == Positions((7, 8, 9), repeats=True)


def test_what_fails_at_most_sizes_is_no_way() -> None:
    with pytest.raises(Mixed, match="shape"):
        labels(lambda x: x.view(5, 5), *IMAGE)
    with pytest.raises(Mixed):
        labels(lambda x: x[:, :, 40:], *IMAGE)


def test_a_value_of_several_tensors_lies_nowhere() -> None:
    found = labels(lambda x: x.chunk(2, 1), *IMAGE)  # type: ignore[arg-type, return-value]
    assert found.along(1) is None
    assert found.dimensions() is None


def test_there_are_numbers_for_very_wide_layers() -> None:
    start = Labels.start(range(40_000), 1, 2)
    wide = start.moved(lambda world: start.value(world).flip(1))
    assert wide.along(1) == Positions(tuple(reversed(range(40_000))))
    with pytest.raises(Mixed, match="more than 65536 channels"):
        encode(range(70_000))
