"""BatchNorms merged to the right: what their map passes, what absorbs it, and the layers that take it, end to end."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge.core.activations import ACTIVATIONS, MAX_POOLS
from tests.support.decisions import LINEAR, Case, check
from tests.support.pieces import Written, conv, norm

Function = Callable[[nn.Module, Tensor], Tensor]
SIZES = ((2, 4, 6, 6), (1, 4, 3, 5), (3, 4, 1, 1))  # also other sizes than one would plan with


def behind(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(norm(), *(layer() for layer in layers))


def written(function: Function, **children: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Written(function, **{name: child() for name, child in {"norm": norm, **children}.items()})


def fc(width: int = 4) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(width, 3)


def wide(channels: int) -> Callable[[], nn.Module]:
    return lambda: conv(channels, 3)


def to(*targets: str) -> dict[str, str | tuple[str, str]]:
    return {"norm": f"right {', '.join(targets)}"}


ARGUMENTS = {nn.PReLU: {"num_parameters": 4}, nn.Threshold: {"threshold": 0.2, "value": -0.5}}
LAYERS = [kind for kind in ACTIVATIONS if not isinstance(kind, str)]


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_through_every_activation_into_a_convolution_that_pads(kind: type[nn.Module]) -> None:
    check(Case(behind(lambda: kind(**ARGUMENTS.get(kind, {})), conv), {"0": "right 2"}))


@pytest.mark.parametrize("function", [F.silu, F.gelu, F.relu6, F.hardswish, torch.tanh, torch.sigmoid, F.leaky_relu])
def test_through_activations_written_as_functions(function: Callable[[Tensor], Tensor]) -> None:
    check(Case(written(lambda m, x: m.a(function(m.norm(x))), a=conv), to("a"), SIZES))


def test_through_an_activation_that_was_subclassed() -> None:
    class Named(nn.SiLU):
        def __init__(self) -> None:
            super().__init__(inplace=True)

    check(Case(behind(Named, conv), {"0": "right 2"}))


POOLS = [kind for kind in MAX_POOLS if not isinstance(kind, str)]


@pytest.mark.parametrize("kind", POOLS, ids=lambda kind: kind.__name__)
def test_through_every_max_pool_by_the_sign_of_the_scale(kind: type[nn.Module]) -> None:
    spatial = int(kind.__name__[-2])
    layers = (getattr(nn, f"{name}{spatial}d") for name in ("BatchNorm", "Conv"))
    make_norm, make_conv = layers
    shape = (2, 4, *(6, 5, 6)[:spatial])
    for activation in (nn.Identity, nn.GELU):
        build = lambda a=activation: nn.Sequential(make_norm(4), a(), kind(2), make_conv(4, 3, 2))  # noqa: E731
        check(Case(build, {"0": "right 3"}, (shape, (1, 4, *(7,) * spatial))))


def test_a_max_pool_of_another_rank_pools_the_channels() -> None:
    # For a BatchNorm1d's (N, C, L) it is a tensor without a batch: C and L are pooled.
    build = lambda: nn.Sequential(nn.BatchNorm1d(4), nn.MaxPool2d(3, 1, 1), nn.Conv1d(4, 3, 1))  # noqa: E731
    check(Case(build, {"0": LINEAR}, ((2, 4, 6),)))


SHAPES: dict[str, Case] = {
    "view to a vector": Case(
        written(lambda m, x: (lambda y: m.fc(y.view(y.size(0), -1)))(F.relu(m.norm(x))), fc=fc(144)),
        *(to("fc"), ((2, 4, 6, 6), (1, 4, 9, 4))),
    ),
    "reshape(N, C, -1)": Case(
        written(lambda m, x: (y := m.norm(x), m.a(y.reshape(y.shape[0], 4, -1)))[1], a=lambda: nn.Conv1d(4, 3, 1)),
        *(to("a"), SIZES),
    ),
    "flatten(2), transpose, linear": Case(
        written(lambda m, x: m.fc(F.gelu(m.norm(x)).flatten(2).transpose(1, 2)), fc=fc()), to("fc"), SIZES
    ),
    "permute, linear": Case(written(lambda m, x: m.fc(m.norm(x).permute(0, 2, 3, 1)), fc=fc()), to("fc"), SIZES),
    "torch.permute by name": Case(
        written(lambda m, x: m.fc(torch.permute(m.norm(x), dims=(0, 2, -1, 1)).contiguous()), fc=fc()), to("fc"), SIZES
    ),
    "mean": Case(written(lambda m, x: m.fc(F.silu(m.norm(x)).mean((-1, -2))), fc=fc()), to("fc"), SIZES),
    "mean that keeps the dimensions": Case(
        written(lambda m, x: m.fc(m.norm(x).mean([2, 3], keepdim=True).flatten(1)), fc=fc()), to("fc"), SIZES
    ),
    "mean, then another": Case(
        written(lambda m, x: m.fc(torch.mean(m.norm(x).mean(3), dim=-1)), fc=fc()), to("fc"), SIZES
    ),
    "squeeze behind a global pool": Case(
        written(lambda m, x: m.fc(F.adaptive_avg_pool2d(F.relu(m.norm(x)), 1).squeeze(-1).squeeze(2)), fc=fc()),
        *(to("fc"), SIZES),
    ),
    "view(-1, C) behind a global pool": Case(
        written(lambda m, x: m.fc(m.pool(m.norm(x)).view(-1, 4)), fc=fc(), pool=lambda: nn.AdaptiveAvgPool2d((1, 1))),
        *(to("fc"), SIZES),
    ),
    "unsqueeze": Case(
        written(lambda m, x: m.a(m.norm1(x).unsqueeze(-1).unsqueeze(2)), norm1=lambda: nn.BatchNorm1d(4), a=wide(4)),
        {"norm1": "right a", "norm": LINEAR},
        ((3, 4), (1, 4)),
    ),
    "squeeze of what may be longer": Case(
        written(lambda m, x: m.fc(m.norm(x).squeeze(-1)), fc=fc(5)), {"norm": LINEAR}, ((2, 4, 6, 5),)
    ),
    "flatten of what is no point": Case(
        written(lambda m, x: m.fc(m.norm(x).flatten(0, 1).flatten(1)), fc=fc(36)), {"norm": LINEAR}
    ),
    "view with literal sizes": Case(written(lambda m, x: m.fc(m.norm(x).view(2, 144)), fc=fc(144)), {"norm": LINEAR}),
    "view that joins images": Case(written(lambda m, x: m.fc(m.norm(x).view(-1, 72)), fc=fc(72)), {"norm": LINEAR}),
    "view that joins images behind a global pool": Case(
        written(lambda m, x: m.a(F.adaptive_avg_pool2d(m.norm(x), 1).view(-1, 4, 2, 2)), a=conv),
        *({"norm": LINEAR}, ((4, 4, 6, 6),)),
    ),
    "a pool to a computed size": Case(
        written(lambda m, x: m.fc(F.adaptive_avg_pool2d(m.norm(x), x.size(-1) // 3).view(-1, 4)), fc=fc()),
        {"norm": LINEAR},
    ),
    "a pool that makes a point larger": Case(
        written(lambda m, x: m.fc(F.adaptive_avg_pool2d(m.norm(x).mean((2, 3), True), 3).view(-1, 4)), fc=fc()),
        {"norm": LINEAR},
    ),
    "a batch moved behind a global pool": Case(
        written(lambda m, x: m.fc(m.norm(x).mean((2, 3)).unsqueeze(0).transpose(1, 2).squeeze(2)), fc=fc()),
        *({"norm": LINEAR}, ((4, 4, 6, 6), (1, 4, 6, 6))),
    ),
    "flatten at a computed place": Case(
        written(lambda m, x: m.fc(m.norm(x).flatten(x.dim() - 3)), fc=fc(144)), to("fc")
    ),
    "channel shuffle": Case(
        written(lambda m, x: m.a(F.relu(m.mix(m.norm(x)))), mix=lambda: nn.ChannelShuffle(2), a=conv), to("a"), SIZES
    ),
    "interpolation": Case(
        written(lambda m, x: m.a(F.interpolate(m.norm(x), scale_factor=2, mode="bilinear")), a=conv), to("a"), SIZES
    ),
    "padding that copies": Case(
        written(lambda m, x: m.a(F.pad(m.norm(x), (1, 2, 1, 1), "replicate")), a=conv), to("a")
    ),
    "padding of the channels": Case(  # which turns them round
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.CircularPad2d((0, 0, 1, -1)), nn.Conv1d(4, 3, 1)),
        *({"0": "right 2"}, ((2, 4, 6),)),
    ),
    "a parameter for each of several features a channel": Case(
        behind(nn.Flatten, lambda: nn.PReLU(144), fc(144)), {"0": LINEAR}
    ),
    "a parameter for each channel, and several features": Case(
        behind(lambda: nn.PReLU(4), nn.Flatten, nn.PReLU, fc(144)), {"0": "right 4"}
    ),
    "several features a channel": Case(
        behind(nn.Flatten, lambda: nn.BatchNorm1d(144), nn.GELU, nn.Dropout, fc(144)),
        {"0": "right 2", "2": "right 5"},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_through_changes_of_shape(name: str) -> None:
    check(SHAPES[name])


BATCHES: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Tensor]] = {
    "the activation": lambda m, x, y, z: z.view(z.size(0), -1),
    "before the norm": lambda m, x, y, z: z.view(y.size(0), -1),
    "the input": lambda m, x, y, z: z.view(x.size(0), -1),
    "the input, from the end": lambda m, x, y, z: z.view(x.size(-4), -1),
    "shape": lambda m, x, y, z: z.reshape(x.shape[0], -1),
    "size()": lambda m, x, y, z: z.view((x.size()[0], -1)),
    "all sizes": lambda m, x, y, z: (lambda n, c, h, w: z.view(n, -1))(*x.shape),
    "and channels": lambda m, x, y, z: z.view(x.size(0), x.size(1), -1).flatten(1),
    "of a copy": lambda m, x, y, z: z.view((x * 2 - 1).abs().size(0), -1),
    "with a product": lambda m, x, y, z: z.view(x.size(0) * 4 // 4, -1),
}


@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("name", BATCHES)
def test_a_view_with_the_batch_of_another_tensor(name: str, is_scaled: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.first((x - 0.5) / 2 if is_scaled else x)
        z = m.norm(y)
        return m.last(BATCHES[name](m, x, y, F.adaptive_avg_pool2d(F.relu(z, inplace=True), (1, 1))))

    build = written(forward, first=lambda: nn.Sequential(conv(), nn.Tanh()), last=lambda: nn.Linear(4, 3))
    check(Case(build, {"norm": "right last"}, SIZES))


@pytest.mark.parametrize("name", ["the input", "shape"])
def test_a_view_to_the_left_with_the_batch_of_the_input(name: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.norm(BATCHES[name](m, x, x, m.pool(m.first(x)))).tanh()

    build = written(forward, first=conv, pool=lambda: nn.AdaptiveAvgPool2d(1), norm=lambda: nn.BatchNorm1d(4))
    check(Case(build, {"norm": "left first"}, SIZES))


def test_a_view_with_a_size_of_something_else_is_not_followed() -> None:
    build = written(lambda m, x: m.last(F.relu(m.norm(x)).flatten(2).view(x.size(2), -1)), last=fc(4 * 6 * 2))
    check(Case(build, {"norm": LINEAR}, ((2, 4, 6, 6),)))


def test_instance_norm_keeps_the_number_of_channels() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.last(F.relu(torch.cat([m.other(m.first(x)), m.norm(torch.tanh(x))], 1)))

    build = written(
        forward, first=conv, other=lambda: nn.InstanceNorm2d(4), norm=lambda: nn.BatchNorm2d(4), last=lambda: conv(8)
    )
    check(Case(build, {"norm": "right last"}, ((2, 4, 6, 6), (3, 4, 5, 7))))
