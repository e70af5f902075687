"""BatchNorms merged to the right where the flow joins or parts: concatenation, division, several consumers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.core.test_search_right import SIZES, behind, fc, to, wide, written
from tests.support.decisions import LINEAR, Case, check
from tests.support.pieces import Written, conv, norm


def both(target: str) -> dict[str, str | tuple[str, str]]:
    return {"norm": f"right {target}", "other": f"right {target}"}


def halves(m: nn.Module, x: Tensor) -> Tensor:
    first, second = m.norm(x).chunk(2, dim=1)
    return m.a(torch.cat([F.relu(first), second], 1))


def swapped(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x)
    return m.a(torch.cat([y[:, -2:], y[:, :-2]], 1))


def unequal(m: nn.Module, x: Tensor) -> Tensor:
    one, three = torch.split(m.norm(x), [1, 3], dim=-3)
    return m.a(one) + m.b(three)


def parts_of_parts(m: nn.Module, x: Tensor) -> Tensor:
    # In each part there are channels of both, because they are mixed before.
    first, second = m.mix(torch.cat([m.norm(x), m.other(x)], 1)).split([3, 5], 1)
    return m.a(F.gelu(first)) + m.b(second.chunk(2, 1)[1])


def lists(m: nn.Module, x: Tensor) -> Tensor:
    # As a DenseNet collects its features.
    features = [x]
    features.append(m.grow(F.relu(m.norm(torch.cat(features, 1)))))
    features.append(m.last(F.relu(m.other(torch.cat(features, 1)))))
    return torch.cat(features, 1)


def inner(m: nn.Module, x: Tensor) -> Tensor:
    # A Linear layer puts its features on the last axis, not on the axis of the concatenation.
    first, second = m.one(x[:, :3]), m.two(torch.cat([x, x[:, :1]], 1))
    return m.a(torch.cat([first, m.norm1(x), second], 1))


CONCATENATIONS: dict[str, Case] = {
    "with the input": Case(written(lambda m, x: m.a(torch.cat([x, m.norm(x)], 1)), a=wide(8)), to("a"), SIZES),
    "by name": Case(written(lambda m, x: m.a(torch.cat(tensors=(m.norm(x), x), dim=-3)), a=wide(8)), to("a"), SIZES),
    "with itself": Case(
        written(lambda m, x: (y := m.norm(x), m.a(torch.cat([y, x, y], 1)))[1], a=wide(12)), to("a"), SIZES
    ),
    "nested": Case(
        written(
            lambda m, x: m.a(torch.cat([x, torch.cat([m.norm(x), F.relu(m.other(x))], 1), m.b(x)], 1)),
            **{"other": norm, "b": lambda: conv(4, 2), "a": wide(14)},
        ),
        *(both("a"), SIZES),
    ),
    "before the activation": Case(
        written(lambda m, x: m.a(F.silu(torch.cat([m.norm(x), x], 1))), a=wide(8)), to("a"), SIZES
    ),
    "of two, before one ReLU": Case(
        written(lambda m, x: m.a(F.relu(torch.cat([m.norm(x), x, m.other(x)], 1))), other=norm, a=wide(12)),
        *(both("a"), SIZES),
    ),
    "of two, before pool and PReLU": Case(
        written(
            lambda m, x: m.a(m.act(m.pool(torch.cat([m.norm(x), m.other(x)], 1)))),
            **{"other": norm, "act": lambda: nn.PReLU(8), "pool": lambda: nn.MaxPool2d(2, 1, 1), "a": wide(8)},
        ),
        *(both("a"), SIZES),
    ),
    "of an activation and what comes before it": Case(
        written(lambda m, x: (y := m.norm(x), m.a(torch.cat([y, F.relu(y)], 1)))[1], a=wide(8)), to("a"), SIZES
    ),
    "at a point, before a Linear": Case(
        written(lambda m, x: m.fc(torch.cat([m.norm(x).mean((2, 3)), m.b(x).mean((2, 3))], 1)), b=conv, fc=fc(8)),
        to("fc"),
    ),
    "collected in lists": Case(
        written(lists, grow=lambda: conv(4, 3), other=lambda: norm(7), last=lambda: conv(7, 2)),
        {"norm": "right grow", "other": "right last"},
    ),
    "along the image": Case(written(lambda m, x: (y := m.norm(x), m.a(torch.cat([y, y], 2)))[1], a=conv), to("a")),
    "with something as wide as the input": Case(
        written(lambda m, x: m.a(torch.cat([x.roll(1, 2) * 2, m.norm(x)], 1)), a=wide(8)), to("a")
    ),
    "with something of unknown width": Case(
        written(lambda m, x: m.a(torch.cat([x.view(x.size(0), -1, 6, 6), m.norm(x)], 1)), a=wide(8)), {"norm": LINEAR}
    ),
    "with layers called by keyword": Case(
        written(
            lambda m, x: m.a(torch.cat([m.act(input=m.b(x)), torch.add(input=x, other=m.b(x)), m.norm(x)], 1)),
            **{"act": nn.ReLU, "b": conv, "a": wide(12)},
        ),
        to("a"),
    ),
    "with features on the last axis": Case(
        lambda: Written(
            inner, norm1=nn.BatchNorm1d(4), one=nn.Linear(4, 4), two=nn.Linear(4, 4), a=nn.Conv1d(12, 3, 1)
        ),
        {"norm1": LINEAR},
        ((2, 4, 4),),
    ),
}
DIVISIONS: dict[str, Case] = {
    "halves, one through a ReLU": Case(written(halves, a=conv), to("a"), SIZES),
    "slices, the other way round": Case(written(swapped, a=conv), to("a"), SIZES),
    "into two layers": Case(written(unequal, a=wide(1), b=wide(3)), to("a", "b"), SIZES),
    "parts of parts of a concatenation": Case(
        written(parts_of_parts, other=norm, mix=lambda: nn.ChannelShuffle(2), a=wide(3), b=wide(2)),
        *(both("a, b"), SIZES),
    ),
    "every other channel": Case(
        written(lambda m, x: m.a(m.norm(x)[:, ::2, 1:-1]), a=wide(2)), to("a"), ((2, 4, 6, 6), (1, 4, 3, 5))
    ),
    "a part of each axis": Case(written(lambda m, x: m.a(m.norm(x)[0:1, ..., 1:]), a=conv), to("a")),
    "the same layer for other channels": Case(
        written(lambda m, x: (y := m.norm(x), m.a(y[:, :2]) + m.a(y[:, 2:]))[1], a=wide(2)), to("a", "a_2")
    ),
}


def consumers(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x)
    return m.a(y) + m.b(F.relu(y)) + m.c(m.pool(y)) + m.d(m.act(m.pool(y))) + m.e(m.other(y))


CONSUMERS: dict[str, Case] = {
    "linear, activation, pool and another BatchNorm": Case(
        written(
            consumers,
            **{"a": conv, "b": conv, "c": conv, "d": conv, "e": conv, "other": norm, "act": nn.GELU},
            pool=lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        ),
        {"norm": "right a, b, c, d, other", "other": "right e"},
        SIZES,
    ),
    "a convolution and a Linear": Case(
        written(lambda m, x: (y := m.norm(x), m.a(y).mean((2, 3)) + m.fc(y.mean((2, 3))))[1], a=wide(4), fc=fc()),
        *(to("a", "fc"), SIZES),
    ),
    "one activation for two layers": Case(
        written(lambda m, x: (y := F.relu(m.norm(x)), m.a(y) + m.b(y))[1], a=conv, b=conv), to("a", "b"), SIZES
    ),
    "one activation at two places": Case(
        written(lambda m, x: (y := m.norm(x), m.a(m.act(y)) + m.b(m.act(y)))[1], a=conv, b=conv, act=nn.GELU),
        *(to("a", "b"), SIZES),
    ),
    "one that reads only its size": Case(
        written(lambda m, x: (y := m.norm(x), m.a(y) / y.size(2) + m.b(x).view_as(y))[1], a=conv, b=conv),
        *(to("a"), SIZES),
    ),
    "one that takes nothing": Case(
        written(lambda m, x: (y := m.norm(x), m.a(y) + y)[1], a=conv), {"norm": LINEAR}, SIZES
    ),
    "two results": Case(
        written(lambda m, x: (y := m.norm(x), torch.stack([m.a(y), y]))[1], a=conv), {"norm": LINEAR}, SIZES
    ),
}


@pytest.mark.parametrize("name", CONCATENATIONS)
def test_through_a_concatenation_by_ranges_of_channels(name: str) -> None:
    check(CONCATENATIONS[name])


@pytest.mark.parametrize("name", DIVISIONS)
def test_through_a_division_of_the_channels(name: str) -> None:
    check(DIVISIONS[name])


@pytest.mark.parametrize("name", CONSUMERS)
def test_into_several_consumers_that_can_all_take_it(name: str) -> None:
    check(CONSUMERS[name])


SEVERAL: tuple[tuple[Any, ...], ...] = (
    (nn.ReLU, nn.ReLU),
    (nn.ReLU, nn.SiLU),
    (nn.Tanh, nn.ReLU6),
    (nn.LeakyReLU, lambda: nn.MaxPool2d(2), nn.Hardswish),
    (lambda: nn.MaxPool2d(2, 1), lambda: nn.MaxPool2d(2, 1), nn.ReLU),
    (lambda: nn.AvgPool2d(2, 1), nn.Sigmoid, lambda: nn.Dropout(0.3), nn.ELU, nn.GELU),
)


@pytest.mark.parametrize("layers", SEVERAL)
def test_through_several_activations_and_pools_in_a_row(layers: tuple[Any, ...]) -> None:
    check(Case(behind(*layers, conv), {"0": f"right {len(layers) + 1}"}))
