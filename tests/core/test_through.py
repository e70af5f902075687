"""Every entry of ``THROUGH_MODULES`` and ``THROUGH_CALLS``: ``op(s x + b) = s' op(x) + b'`` with the layouts returned.

Where a reason is returned, no layout of the output makes the equation hold (known-wrong variants: padding that counts,
another divisor, dropout), or the input is one of those that are not supported. Changes of shape: ``test_layout``.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge.core.channels.layout import Layout
from canon_bridge.core.channels.through import THROUGH_CALLS, THROUGH_MODULES, Through, find_through
from canon_bridge.core.modules.layers import Mean
from tests.core.layouts import CHANNELS, TOLERANCE, WRONG, Call, deviation, layout, only_call, passes, shape_of

Arguments = dict[str, Any]
Draw = Callable[[random.Random, int], Arguments]
Function = Callable[[Tensor], Tensor]
SIZES = {2: (4, 5), 3: (2, 4, 12), 4: (2, 4, 6, 7), 5: (2, 4, 4, 5, 6)}  # the channels are put in
# Of several channels, in another order, one of them of another map.
MIXED = Layout((2, -1, 0, 1), 1, 4)


def average(draw: random.Random, spatial: int) -> Arguments:
    kernel = draw.choice([1, 2, 3, tuple(draw.randint(1, 3) for _ in range(spatial))])
    smallest = min(kernel) if isinstance(kernel, tuple) else kernel
    arguments = {
        "kernel_size": kernel,
        "stride": draw.choice([None, 1, 2, 3]),
        "padding": draw.choice([0, (0,) * spatial, smallest // 2, (*(0,) * (spatial - 1), smallest // 2)]),
        "ceil_mode": draw.random() < 0.5,
        "count_include_pad": draw.random() < 0.4,
    }
    if spatial > 1 and draw.random() < 0.2:
        arguments["divisor_override"] = 30  # more than any kernel holds
    return arguments


def adaptive(draw: random.Random, spatial: int) -> Arguments:
    several = tuple(draw.choice([None, 1, 2, 5]) for _ in range(spatial))
    return {"output_size": draw.choice([1, 3, 11, (1,) * spatial, several if spatial > 1 else 2])}


def padding(draw: random.Random, spatial: int) -> Arguments:
    return {"padding": draw.choice([1, 2, tuple(draw.randint(0, 2) for _ in range(2 * spatial))])}


def same_padding(draw: random.Random, spatial: int) -> Arguments:
    """Return a padding that leaves the outermost dimension as long as it was."""
    return {"padding": (*(draw.randint(0, 2) for _ in range(2 * spatial - 2)), 1, -1)}


def upsampling(draw: random.Random, spatial: int) -> Arguments:
    modes = {1: ("linear",), 2: ("bilinear", "bicubic"), 3: ("trilinear",)}[spatial]
    mode = draw.choice(["nearest", "nearest-exact", "area", *modes])
    arguments = {"size": draw.randint(1, 9)} if draw.random() < 0.5 else {"scale_factor": draw.choice([0.5, 1.5, 2])}
    return {"mode": mode, **arguments, **({"align_corners": draw.random() < 0.5} if mode in modes else {})}


def nothing(draw: random.Random, spatial: int) -> Arguments:
    return {}


def _numbered(name: str, draw: Draw) -> dict[Any, tuple[tuple[int, ...], Draw]]:
    return {getattr(nn, f"{name}{spatial}d"): ((spatial,), draw) for spatial in (1, 2, 3)}


# The numbers of spatial dimensions, and random arguments.
MODULES: dict[Any, tuple[tuple[int, ...], Draw]] = {
    **_numbered("AvgPool", average),
    **_numbered("AdaptiveAvgPool", adaptive),
    **_numbered("ReflectionPad", padding),
    **_numbered("ReplicationPad", padding),
    **_numbered("CircularPad", padding),
    **_numbered("Dropout", lambda draw, _: {"p": draw.random(), "inplace": draw.random() < 0.5}),
    nn.Dropout: ((1, 2, 3), nothing),
    nn.AlphaDropout: ((1, 2, 3), nothing),
    nn.FeatureAlphaDropout: ((1, 2, 3), nothing),
    nn.Identity: ((1, 2, 3), nothing),
    nn.Upsample: ((1, 2, 3), upsampling),
    nn.Flatten: ((1, 2, 3), lambda draw, _: {"start_dim": draw.randint(0, 2), "end_dim": draw.choice([-1, 2])}),
    nn.ChannelShuffle: ((1, 2, 3), lambda draw, _: {"groups": draw.choice([1, 2, 3])}),
    Mean: ((2,), lambda draw, _: {"dim": draw.choice([2, (2, 3), (-1, -2), 1]), "keepdim": draw.random() < 0.5}),
}
# Entries whose backward may say that it does not know; never the pools, which the left direction needs.
ONE_WAY = ("flatten", "channel shuffle", "squeeze")


def check(function: Function, found: tuple[Through, Any] | None, before: Layout, is_supported: bool = True) -> bool:
    """Compare the layouts with what the function does; return whether the map passes."""
    assert found is not None
    through, arguments = found
    after, shape = through.forward(before, arguments), shape_of(before, SIZES[before.rank])
    try:
        if not function(torch.randn(shape)).numel():
            return False
    except (RuntimeError, ValueError, IndexError):
        return False  # a kernel larger than the input, or more dimensions
    if isinstance(after, str):
        assert not (is_supported and passes(function, before, shape)), after
        return False
    assert deviation(function, before, after, shape) < TOLERANCE
    wrong = replace(after, channels=(*after.channels[1:], after.channels[0]))
    assert deviation(function, before, wrong, shape) > WRONG
    back = through.backward(after, arguments)
    if isinstance(back, str):
        assert through.name in ONE_WAY, back
    else:
        assert (back.channels, back.axis, back.rank) == (before.channels, before.axis, before.rank)
    return True


def kind_name(kind: Any) -> str:
    return kind if isinstance(kind, str) else kind.__name__


def example(kind: Any) -> type[nn.Module]:
    return Mean if isinstance(kind, str) else kind


@pytest.mark.parametrize("kind", THROUGH_MODULES, ids=kind_name)
def test_modules_commute_or_say_why_not(kind: Any) -> None:
    kind = example(kind)
    assert kind in MODULES, f"add random arguments for {kind.__name__} to MODULES"
    spatials, arguments = MODULES[kind]
    draw, passed = random.Random(0), 0
    for index in range(24):
        rank = spatials[index % len(spatials)] + 2
        module = kind(**arguments(draw, rank - 2)).eval()
        found = find_through(only_call(nn.Sequential(module)), module)
        is_supported = kind is not nn.Flatten  # all of its arguments: test_layout
        passed += check(module, found, layout(1, rank), is_supported)
        check(module, found, layout(1, rank, point=True), is_supported)
        check(module, found, replace(MIXED, rank=rank), is_supported)
        # Channels elsewhere, or a tensor that the module takes for one without a batch: right, or not supported.
        check(module, found, layout(rank - 1, rank), is_supported=False)
        if "Dropout" not in kind.__name__:  # they warn that they take the tensor for one with a batch for now
            check(module, found, layout(1, max(rank - 1, 3)), is_supported=False)
    assert passed > 5


PADS = [kind for kind in MODULES if "Pad" in kind.__name__]


@pytest.mark.parametrize("kind", PADS, ids=kind_name)
def test_padding_of_the_channels_is_no_padding_that_a_map_passes(kind: Any) -> None:
    # A two-dimensional padding takes a tensor (N, C, L) for one without a batch, and pads its channels.
    spatial = MODULES[kind][0][0]
    module = kind(**same_padding(random.Random(0), spatial))
    found = find_through(only_call(nn.Sequential(module)), module)
    assert not check(module, found, layout(1, spatial + 1))


def flattens(flatten: Callable[..., Tensor]) -> list[Function]:
    inner = [lambda x: flatten(x, 1), lambda x: flatten(x, start_dim=2), lambda x: flatten(x, 1, end_dim=-1)]
    return [*inner, flatten, lambda x: flatten(x, end_dim=1), lambda x: flatten(x, -3), lambda x: flatten(x, 0, 1)]


def dropouts(function: Callable[..., Tensor]) -> list[Function]:
    inner = [lambda x: function(x, training=False), lambda x: function(x, 0.4, False, True)]
    return [*inner, lambda x: function(x, p=0.4, training=False, inplace=True), lambda x: function(x, 0.4, True)]


def shapes_of(name: str, *arguments: tuple[Any, ...], **keywords: Any) -> dict[Any, list[Function]]:
    """Return the calls of a method, and of the function of the same name, with each of the arguments."""
    spellings: dict[Any, Callable[..., Tensor]] = {name: lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)}
    if getattr(torch, name, None) in THROUGH_CALLS:
        spellings[getattr(torch, name)] = getattr(torch, name)
    calls: dict[Any, list[Function]] = {}
    for key, function in spellings.items():
        calls[key] = [lambda x, a=a, f=function: f(x, *a) for a in arguments]
        calls[key] += [lambda x, f=function: f(x, **keywords)] if keywords else []
    return calls


CALLS: dict[Any, list[Function]] = {
    torch.flatten: flattens(torch.flatten),
    "flatten": flattens(lambda x, *args, **kwargs: x.flatten(*args, **kwargs)),
    **{f: dropouts(f) for f in (F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout)},
    **{f: [] for f in (F.dropout1d, F.dropout3d)},  # of other ranks; their entry is that of F.dropout
    torch.dropout: [lambda x: torch.dropout(x, 0.4, False), lambda x: torch.dropout(x, p=0.4, train=True)],
    "contiguous": [lambda x: x.contiguous(), lambda x: x.contiguous(memory_format=torch.channels_last)],
    **shapes_of("clone", ()),
    **shapes_of("mean", ((2, 3),), (-1, True), ([-1, -2],), (1,), dim=(2, 3), keepdim=True),
    F.pad: [
        lambda x: F.pad(x, (1, 2), mode="reflect"),
        lambda x: F.pad(x, (1, 2, 0, 1), "circular"),
        lambda x: F.pad(x, [1, 2, 2, 1], mode="replicate"),
        lambda x: F.pad(x, (1, 1)),
        lambda x: F.pad(x, (1, 1), "constant", 0.5),
    ],
    F.interpolate: [lambda x: F.interpolate(x, scale_factor=2), lambda x: F.interpolate(x, (3, 9), mode="bicubic")],
    F.upsample: [],  # deprecated; it calls F.interpolate, which is what a trace sees
    **shapes_of("permute", (0, 2, 3, 1), ((0, 1, 3, 2),), (0, -1, 1, -2), dims=(0, 3, 2, 1))
    | {torch.permute: [lambda x: torch.permute(x, (0, 2, 3, 1)), lambda x: torch.permute(x, dims=[0, 3, 2, 1])]},
    **shapes_of("transpose", (1, 2), (-1, -3), (0, 1), dim0=2, dim1=-1),
    **shapes_of("swapaxes", (1, 3)),
    **shapes_of("swapdims", (1, 3), dim0=1, dim1=2),
    **shapes_of("squeeze", (-1,), (2,), (), dim=3),
    **shapes_of("unsqueeze", (-1,), (1,), dim=2),
    F.channel_shuffle: [lambda x: F.channel_shuffle(x, 3), lambda x: F.channel_shuffle(x, groups=3)],
    **{key: [] for key in ("view", "reshape", torch.reshape)},  # see test_layout
}


@pytest.mark.parametrize("target", THROUGH_CALLS, ids=kind_name)
def test_calls_commute_or_say_why_not(target: Any) -> None:
    assert target in CALLS, f"add calls of {target} to CALLS"
    for function in CALLS[target]:
        node = only_call(Call(function))
        assert node.target == target, node.format_node()
        found = find_through(node, None)
        supported = found is not None and found[0].name != "squeeze"
        check(function, found, layout(), supported)
        check(function, found, layout(point=True), is_supported=False)
        check(function, found, layout(channels=2 * CHANNELS), supported)
