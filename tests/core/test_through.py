"""Every entry of ``THROUGH_MODULES`` and ``THROUGH_CALLS``: ``op(s x + b) = s op(x) + b`` where no obstacle is named.

Where one is named, the equation is wrong (known-wrong variants: padding that counts, another divisor, dropout).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from canon_bridge.core.through import THROUGH_CALLS, THROUGH_MODULES, Through, find_through
from canon_bridge.core.trace import trace

CHANNELS = 3
SHAPES = {1: (2, CHANNELS, 9), 2: (2, CHANNELS, 6, 7), 3: (2, CHANNELS, 4, 5, 6)}
TOLERANCE = 16 * torch.finfo(torch.float64).eps
WRONG = 1e-2

Function = Callable[[Tensor], Tensor]
# For each entry: the ranks of its input, the arguments that it commutes with, and those it does not.
Examples = tuple[tuple[int, ...], list[dict[str, Any]], list[dict[str, Any]]]


def average(rank: int) -> Examples:
    inner = [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 1},
        {"kernel_size": 2, "stride": 3, "count_include_pad": False},
        {"kernel_size": 3, "stride": 2, "ceil_mode": True},
        {"kernel_size": 2, "stride": 2, "ceil_mode": True, "count_include_pad": False},
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
        {"kernel_size": 3, "padding": (0,) * rank},
        {"kernel_size": (3, 2, 1)[:rank], "stride": (1, 2, 2)[:rank]},
    ]
    refused = [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "stride": 1, "padding": (0, 0, 1)[3 - rank :], "count_include_pad": True},
        {"kernel_size": 2, "stride": 2, "padding": 1, "ceil_mode": True},
        *[{"kernel_size": 2, "divisor_override": 3}, {"kernel_size": 3, "divisor_override": 1}][: 2 * (rank > 1)],
    ]
    return (rank,), inner, refused


def adaptive(rank: int) -> Examples:
    sizes: list[Any] = [1, 3, 11, *([(None, 2, 1)[:rank], (4, 1, 7)[:rank]] if rank > 1 else [])]
    return (rank,), [{"output_size": size} for size in sizes], []


MODULES: dict[type[nn.Module], Examples] = {
    nn.AvgPool1d: average(1),
    nn.AvgPool2d: average(2),
    nn.AvgPool3d: average(3),
    nn.AdaptiveAvgPool1d: adaptive(1),
    nn.AdaptiveAvgPool2d: adaptive(2),
    nn.AdaptiveAvgPool3d: adaptive(3),
    nn.Dropout: ((1, 2, 3), [{}, {"inplace": True}], []),
    nn.Dropout1d: ((1,), [{}, {"p": 0.9}], []),
    nn.Dropout2d: ((2,), [{}], []),
    nn.Dropout3d: ((3,), [{}], []),
    nn.Identity: ((1, 2, 3), [{}], []),
    nn.Flatten: (
        (1, 2, 3),
        [{}, {"start_dim": 1, "end_dim": -1}],
        [{"start_dim": 0}, {"end_dim": -2}, {"start_dim": 2}, {"start_dim": 0, "end_dim": 1}],
    ),
}
DROPOUTS = [kind for kind in THROUGH_MODULES if issubclass(kind, nn.modules.dropout._DropoutNd)]


def flatten_calls(flatten: Callable[..., Tensor]) -> tuple[tuple[int, ...], list[Function], list[Function]]:
    inner = [partial(flatten, start_dim=1), lambda x: flatten(x, 1), lambda x: flatten(x, 1, -1)]
    refused = [flatten, partial(flatten, end_dim=1), lambda x: flatten(x, 0, 1), lambda x: flatten(x, 1, -2)]
    return (1, 2, 3), [*inner, lambda x: flatten(x, 1, end_dim=-1)], refused


def dropout_calls(
    function: Callable[..., Tensor], *ranks: int
) -> tuple[tuple[int, ...], list[Function], list[Function]]:
    inner = [
        partial(function, training=False),
        lambda x: function(x, 0.4, False),
        lambda x: function(x, 0.4, False, True),
    ]
    refused = [function, lambda x: function(x, 0.4), partial(function, p=0.4, training=True)]
    return ranks, [*inner, lambda x: function(x, p=0.4, training=False, inplace=True)], refused


CALLS: dict[Any, tuple[tuple[int, ...], list[Function], list[Function]]] = {
    torch.flatten: flatten_calls(torch.flatten),
    "flatten": flatten_calls(lambda x, *args, **kwargs: x.flatten(*args, **kwargs)),
    F.dropout: dropout_calls(F.dropout, 1, 2, 3),
    F.dropout1d: dropout_calls(F.dropout1d, 1),
    F.dropout2d: dropout_calls(F.dropout2d, 2),
    F.dropout3d: dropout_calls(F.dropout3d, 3),
    torch.dropout: (
        (1, 2, 3),
        [lambda x: torch.dropout(x, 0.4, False), lambda x: torch.dropout(x, p=0.4, train=False)],
        [lambda x: torch.dropout(x, 0.4, True), lambda x: torch.dropout(x, 0.4, train=True)],
    ),
    "contiguous": (
        (2,),
        [lambda x: x.contiguous(), lambda x: x.contiguous(memory_format=torch.channels_last)],
        [],
    ),
}


class Call(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def only_call(model: nn.Module) -> fx.Node:
    (node,) = (n for n in trace(model).graph.nodes if n.op.startswith("call"))
    return node


def deviation(function: Function, through: Through, shape: tuple[int, ...]) -> float:
    """Return how far ``op(s x + b)`` is from ``s op(x) + b``, channel by channel."""
    x, scale, shift = torch.randn(shape).double(), torch.randn(CHANNELS).double(), torch.randn(CHANNELS).double()
    view = (-1, *(1,) * (len(shape) - 2))
    inner, outer = function((scale.view(view) * x + shift.view(view)).clone()), function(x.clone())
    if through.flattens:
        if outer.shape != x.flatten(1).shape:
            return torch.inf
        scale, shift = (v.repeat_interleave(outer.shape[1] // CHANNELS) for v in (scale, shift))
        view = (-1,)
    expected = scale.view(view) * outer + shift.view(view)
    return float((inner - expected).abs().max() / (1 + expected.abs().max()))


@pytest.mark.parametrize("kind", THROUGH_MODULES, ids=lambda kind: kind.__name__)
def test_modules_commute_where_no_obstacle_is_named(kind: type[nn.Module]) -> None:
    assert kind in MODULES, f"add examples for {kind.__name__} to MODULES"
    ranks, inner, refused = MODULES[kind]
    for arguments in (*inner, *refused):
        module = kind(**arguments).eval()
        found = find_through(only_call(nn.Sequential(module)), module)
        assert found is not None
        through, obstacle = found
        assert (obstacle is None) is (arguments in inner), arguments
        for rank in ranks:
            error = deviation(module, through, SHAPES[rank])
            assert error < TOLERANCE if obstacle is None else error > WRONG, arguments


@pytest.mark.parametrize("target", THROUGH_CALLS, ids=lambda target: getattr(target, "__name__", target))
def test_calls_commute_where_no_obstacle_is_named(target: Any) -> None:
    assert target in CALLS, f"add examples for {target} to CALLS"
    ranks, inner, refused = CALLS[target]
    for index, function in enumerate((*inner, *refused)):
        node = only_call(Call(function))
        assert node.target == target
        found = find_through(node, None)
        assert found is not None
        through, obstacle = found
        assert (obstacle is None) is (index < len(inner)), f"{node.format_node()}: {obstacle}"
        for rank in ranks:
            error = deviation(function, through, SHAPES[rank])
            assert error < TOLERANCE if obstacle is None else error > WRONG, node.format_node()


@pytest.mark.parametrize("kind", DROPOUTS, ids=lambda kind: kind.__name__)
def test_dropout_in_training_mode_is_an_obstacle(kind: type[nn.Module]) -> None:
    module = kind().train()
    found = find_through(only_call(nn.Sequential(module)), module)
    assert found is not None
    assert found[1] == "dropout is in training mode"
    assert deviation(module, found[0], SHAPES[MODULES[kind][0][0]]) > WRONG


def test_what_a_flatten_repeats_is_no_tile() -> None:
    x, scale = torch.randn(2, CHANNELS, 4), torch.randn(CHANNELS)
    right = scale.repeat_interleave(4) * x.flatten(1)
    assert torch.equal((scale.view(-1, 1) * x).flatten(1), right)
    assert float((scale.repeat(4) * x.flatten(1) - right).abs().max()) > WRONG


@pytest.mark.parametrize(
    "module",
    [nn.MaxPool2d(2), nn.ReLU(), nn.LPPool2d(2, 2), nn.AlphaDropout(), nn.Softmax(1), nn.PixelShuffle(2)],
    ids=lambda module: type(module).__name__,
)
def test_other_modules_have_no_entry(module: nn.Module) -> None:
    assert find_through(only_call(nn.Sequential(module)), module) is None


@pytest.mark.parametrize(
    "function", [torch.relu, torch.sigmoid, lambda x: x.transpose(1, 2), lambda x: x.view(2, -1), lambda x: x * 2]
)
def test_other_calls_have_no_entry(function: Function) -> None:
    assert find_through(only_call(Call(function)), None) is None


@pytest.mark.parametrize("kind", THROUGH_MODULES, ids=lambda kind: kind.__name__)
def test_only_the_exact_type_with_its_own_forward_has_an_entry(kind: type[nn.Module]) -> None:
    module = kind(**MODULES[kind][1][0])
    node = only_call(nn.Sequential(module))
    assert find_through(node, module) is not None
    assert find_through(node, type("Sub", (kind,), {})(**MODULES[kind][1][0])) is None
    module.forward = lambda x: x + 1
    assert find_through(node, module) is None
