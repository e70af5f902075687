"""Every entry of ``LIFTS``: the module computes what the call computes, however its arguments are spelled.

The reference is the traced function itself. What has no module form is refused.
"""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from canon_bridge.core.layers import Add
from canon_bridge.core.lifts import LIFTS, build_module, find_lift, operands
from canon_bridge.core.trace import trace

SHAPES = {1: (2, 3, 12), 2: (2, 3, 9, 12), 3: (2, 3, 6, 7, 8)}
# The known-wrong variants are this far off, relative to values around one.
WRONG = 1e-2

Function = Callable[..., Any]


class Call(nn.Module):
    """A model of two inputs and a weight, whose forward is one function."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(3, 1))

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(x, y)


def last_call(function: Function) -> fx.Node:
    """Trace the function and return the call that makes its output."""
    node = next(iter(reversed(trace(Call(function)).graph.nodes))).args[0]
    assert isinstance(node, fx.Node)
    return node


def averages(pool: Function) -> list[Function]:
    return [
        lambda x, y: pool(x, 3),
        lambda x, y: pool(x, 3, 2),
        lambda x, y: pool(x, 3, None, 1),
        lambda x, y: pool(x, 2, 2, 1, True, False),
        lambda x, y: pool(x, kernel_size=3, stride=2, padding=1, count_include_pad=False),
        lambda x, y: pool(x, kernel_size=3, stride=2, ceil_mode=True),
        lambda x, y: pool(input=x, kernel_size=2, stride=1),
        lambda x, y: pool(x, 3, padding=1, stride=2),
    ]


def divided(pool: Function, rank: int) -> list[Function]:
    return [
        lambda x, y: pool(x, 3, 2, 1, False, True, 5),
        lambda x, y: pool(x, 2, divisor_override=3),
        lambda x, y: pool(x, [3, 2, 1][:rank], (1, 2, 3)[:rank]),
    ]


def maxima(pool: Function) -> list[Function]:
    return [
        lambda x, y: pool(x, 3),
        lambda x, y: pool(x, 3, 2),
        lambda x, y: pool(x, 2, 1, 1, 2),
        lambda x, y: pool(x, 3, 2, 1, 1, True),
        lambda x, y: pool(x, kernel_size=3, stride=2, padding=1, dilation=2, ceil_mode=True),
        lambda x, y: pool(input=x, kernel_size=2, stride=1),
        lambda x, y: pool(x, 2, dilation=3, stride=1),
        lambda x, y: pool(x, (2,), padding=0),
    ]


def adaptive(pool: Function, rank: int) -> list[Function]:
    sizes: list[Any] = [1, 5, 15, (4,) * rank, *([(None, 2, 1)[:rank], [3, 1, 2][:rank]] if rank > 1 else [])]
    calls = [lambda x, y, size=size: pool(x, size) for size in sizes]
    return [*calls, lambda x, y: pool(x, output_size=2), lambda x, y: pool(input=x, output_size=2)]


def iadd(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


# For each target: the rank of its input, and calls of it.
CALLS: dict[Any, tuple[int, list[Function]]] = {
    operator.add: (2, [lambda x, y: x + y, lambda x, y: operator.add(y, x), lambda x, y: x + x]),
    operator.iadd: (2, [iadd]),
    torch.add: (
        2,
        [
            torch.add,
            lambda x, y: torch.add(x, y, alpha=1),
            lambda x, y: torch.add(x, other=y),
            lambda x, y: torch.add(input=x, other=y, alpha=1.0),
            lambda x, y: torch.add(other=y, input=x),
        ],
    ),
    "add": (2, [lambda x, y: x.add(y), lambda x, y: x.add(other=y), lambda x, y: x.add(y, alpha=1)]),
    "add_": (2, [lambda x, y: x.add_(y), lambda x, y: x.add_(other=y, alpha=1)]),
    F.relu: (
        1,
        [
            lambda x, y: F.relu(x),
            lambda x, y: F.relu(x, True),
            lambda x, y: F.relu(x, False),
            lambda x, y: F.relu(x, inplace=True),
            lambda x, y: F.relu(input=x, inplace=False),
        ],
    ),
    F.relu_: (1, [lambda x, y: F.relu_(x)]),
    torch.relu: (1, [lambda x, y: torch.relu(x), lambda x, y: torch.relu(input=x)]),
    torch.relu_: (1, [lambda x, y: torch.relu_(x)]),
    "relu": (1, [lambda x, y: x.relu()]),
    "relu_": (1, [lambda x, y: x.relu_()]),
    F.avg_pool1d: (1, averages(F.avg_pool1d)),
    torch.avg_pool1d: (1, averages(torch.avg_pool1d)[:2] + averages(torch.avg_pool1d)[3:]),
    F.avg_pool2d: (2, averages(F.avg_pool2d) + divided(F.avg_pool2d, 2)),
    F.avg_pool3d: (3, averages(F.avg_pool3d) + divided(F.avg_pool3d, 3)),
    F.adaptive_avg_pool1d: (1, adaptive(F.adaptive_avg_pool1d, 1)),
    torch.adaptive_avg_pool1d: (1, adaptive(torch.adaptive_avg_pool1d, 1)),
    F.adaptive_avg_pool2d: (2, adaptive(F.adaptive_avg_pool2d, 2)),
    F.adaptive_avg_pool3d: (3, adaptive(F.adaptive_avg_pool3d, 3)),
    F.adaptive_max_pool1d: (1, adaptive(F.adaptive_max_pool1d, 1)),
    F.adaptive_max_pool2d: (2, adaptive(F.adaptive_max_pool2d, 2)),
    F.adaptive_max_pool3d: (3, adaptive(F.adaptive_max_pool3d, 3)),
    F.max_pool1d: (1, maxima(F.max_pool1d)),
    torch.max_pool1d: (1, maxima(torch.max_pool1d)),
    F.max_pool2d: (2, maxima(F.max_pool2d)),
    torch.max_pool2d: (2, maxima(torch.max_pool2d)),
    F.max_pool3d: (3, maxima(F.max_pool3d)),
    torch.max_pool3d: (3, maxima(torch.max_pool3d)),
}


def name_of(target: Any) -> str:
    return str(getattr(target, "__name__", target))


@pytest.mark.parametrize("target", LIFTS, ids=name_of)
def test_module_computes_what_the_call_computes(target: Any) -> None:
    assert target in CALLS, f"add calls of {target} to CALLS"
    rank, functions = CALLS[target]
    targets = set()
    for function in functions:
        node = last_call(function)
        targets.add(node.target)
        lift = find_lift(node)
        assert lift is LIFTS[target], node.format_node()
        module = build_module(node, lift)
        assert not module.training
        assert not getattr(module, "inplace", False)
        values = {"x": torch.randn(SHAPES[rank]).double(), "y": torch.randn(SHAPES[rank]).double()}
        kept = {name: value.clone() for name, value in values.items()}
        result = module(*(values[str(operand)] for operand in operands(node, lift)))
        assert all(torch.equal(values[name], kept[name]) for name in values), "the module works in place"
        assert torch.equal(result, function(kept["x"], kept["y"])), node.format_node()
    # fx may write a function down under its other name; then both are entries.
    assert target in targets or targets <= set(LIFTS), targets


def refused(function: Function) -> bool:
    node = last_call(function)
    lift = find_lift(node)
    if lift is None:
        return True
    try:
        build_module(node, lift)
    except ValueError:
        return True
    return False


def pools() -> list[tuple[Function, int]]:
    return [
        *((pool, 1) for pool in (F.max_pool1d, F.adaptive_max_pool1d)),
        *((pool, 2) for pool in (F.max_pool2d, F.adaptive_max_pool2d)),
        *((pool, 3) for pool in (F.max_pool3d, F.adaptive_max_pool3d)),
    ]


@pytest.mark.parametrize(("pool", "rank"), pools())
def test_indices_are_refused(pool: Function, rank: int) -> None:
    def function(x: Tensor, y: Tensor) -> Any:
        return pool(x, 2, return_indices=True)

    assert len(function(torch.randn(SHAPES[rank]), None)) == 2
    assert refused(function)
    assert not refused(lambda x, y: pool(x, 2, return_indices=False))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: torch.add(x, y, alpha=2),
        lambda x, y: x.add(y, alpha=0.5),
        lambda x, y: x.add_(y, alpha=-1),
        lambda x, y: torch.add(input=x, other=y, alpha=3),
    ],
)
def test_weighted_sums_are_refused(function: Function) -> None:
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    assert float((function(x.clone(), y) - Add()(x, y)).abs().max()) > WRONG
    assert refused(function)
    node = last_call(function)
    with pytest.raises(ValueError, match=r"alpha=.*: a weighted sum is not the sum of two branches"):
        build_module(node, LIFTS[node.target])


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: F.avg_pool2d(x, x.shape[2]),
        lambda x, y: F.avg_pool2d(x, (x.shape[2], x.size(3))),
        lambda x, y: F.avg_pool2d(x, kernel_size=x.size()[2:]),
        lambda x, y: F.avg_pool2d(x, 2, stride=x.shape[3] // 2),
        lambda x, y: F.adaptive_avg_pool2d(x, y.shape[2:]),
        lambda x, y: F.adaptive_max_pool2d(x, output_size=(y.shape[2], 1)),
        lambda x, y: F.max_pool2d(x, 2, padding=x.dim() - 4),
        lambda x, y: torch.add(x, y, alpha=x.shape[0]),
    ],
)
def test_computed_arguments_are_refused(function: Function) -> None:
    node = last_call(function)
    with pytest.raises(ValueError, match="an argument is computed in forward"):
        build_module(node, LIFTS[node.target])


@pytest.mark.parametrize("function", [lambda x, y: torch.add(x, y, out=x), lambda x, y: torch.add(x, y, out=None)])
def test_arguments_without_module_form_are_refused(function: Function) -> None:
    assert refused(function)


@pytest.mark.parametrize(
    "function",
    [
        *[lambda x, y: x + 1, lambda x, y: 2.5 + x, lambda x, y: x.add(1), lambda x, y: torch.add(x, 3)],
        *[lambda x, y: x * y, lambda x, y: x - y, lambda x, y: F.relu6(x), lambda x, y: F.lp_pool2d(x, 2.0, 2)],
        *[lambda x, y: x.shape[0] + y.shape[1], lambda x, y: x.size(0) + x.dim(), lambda x, y: x.numel() + y.ndim],
        *[lambda x, y: x.shape[:1] + y.shape[1:], lambda x, y: x + torch.ones(3), lambda x, y: torch.add(y, x.size(1))],
    ],
)
def test_no_entry_for_other_calls_and_for_numbers(function: Function) -> None:
    assert find_lift(last_call(function)) is None
