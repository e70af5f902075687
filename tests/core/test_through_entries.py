"""Which modules and calls have an entry in the tables of ``through``, and when an entry does not count."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from canon_bridge.core.channels.layout import Layout
from canon_bridge.core.channels.through import THROUGH_MODULES, find_through
from tests.core.layouts import WRONG, Call, deviation, layout, only_call, shape_of
from tests.core.test_through import MODULES, example, kind_name

DROPOUTS = [kind for kind in MODULES if "Dropout" in kind.__name__]


@pytest.mark.parametrize("kind", DROPOUTS, ids=kind_name)
def test_dropout_in_training_mode_is_an_obstacle(kind: type[nn.Module]) -> None:
    module, before = kind().train(), layout(1, MODULES[kind][0][0] + 2)
    found = find_through(only_call(nn.Sequential(module)), module)
    assert found is not None
    for move in (found[0].forward, found[0].backward):
        assert move(before, found[1]) == "dropout is in training mode"
    assert deviation(module, before, before, shape_of(before)) > WRONG


@pytest.mark.parametrize("function", [F.dropout, F.dropout1d, F.dropout3d], ids=kind_name)
def test_the_functions_of_dropout_are_in_training_mode_unless_told(function: Any) -> None:
    for call, reason in (
        (lambda x: function(x, 0.4), "dropout is in training mode"),
        (lambda x: function(x, training=True), "dropout is in training mode"),
        (lambda x: function(x, 0.4, False), layout()),
    ):
        found = find_through(only_call(Call(call)), None)
        assert found is not None
        assert found[0].forward(layout(), found[1]) == reason


def test_upsample_of_functional_is_an_interpolation() -> None:
    node = only_call(Call(lambda x: F.interpolate(x, scale_factor=2)))
    node.target = F.upsample
    found = find_through(node, None)
    assert found is not None
    assert found[0].name == "interpolation"
    assert found[0].forward(layout(), found[1]) == layout()


@pytest.mark.parametrize(
    "module",
    [
        *(nn.MaxPool2d(2), nn.ReLU(), nn.LPPool2d(2, 2), nn.Softmax(1), nn.PixelShuffle(2), nn.ZeroPad2d(1)),
        *(nn.ConstantPad1d(1, 0.5), nn.GLU(1), nn.Unflatten(1, (1, 3)), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_other_modules_have_no_entry(module: nn.Module) -> None:
    assert find_through(only_call(nn.Sequential(module)), module) is None


@pytest.mark.parametrize(
    "function",
    [torch.relu, torch.sigmoid, lambda x: x * 2, lambda x: x.roll(1, 1), lambda x: x.flip(1), lambda x: x.sum(2)],
)
def test_other_calls_have_no_entry(function: Any) -> None:
    assert find_through(only_call(Call(function)), None) is None


@pytest.mark.parametrize("kind", THROUGH_MODULES, ids=kind_name)
def test_a_subclass_counts_as_its_base_class_where_it_overrides_nothing(kind: Any) -> None:
    arguments: dict[str, Any] = {
        "Pool": {"output_size": 1} if "Adaptive" in kind_name(kind) else {"kernel_size": 2},
        "Pad": {"padding": 1},
        "Shuffle": {"groups": 1},
        "Mean": {"dim": 2},
    }
    given = next((value for part, value in arguments.items() if part in kind_name(kind)), {})
    base = example(kind)
    module = base(**given)
    node = only_call(nn.Sequential(module))
    entry = find_through(node, module)
    assert entry is not None
    named = find_through(
        node, type("Named", (base,), {"__init__": lambda self, **k: base.__init__(self, **k)})(**given)
    )
    assert named is not None
    assert named[0] is entry[0]
    assert find_through(node, type("Other", (base,), {"forward": lambda self, x: x + 1})(**given)) is None
    module.forward = lambda x: x + 1
    assert find_through(node, module) is None


def test_the_arguments_are_those_of_the_call_by_position_or_by_name_or_the_defaults() -> None:
    for call, expected in (
        (lambda x: x.flatten(1), (1, -1)),
        (lambda x: torch.flatten(x, end_dim=2), (0, 2)),
        (lambda x: x.flatten(end_dim=3, start_dim=2), (2, 3)),
    ):
        found = find_through(only_call(Call(call)), None)
        assert found is not None
        assert (found[1]["start_dim"], found[1]["end_dim"]) == expected


@pytest.mark.parametrize("call", [lambda x: x.flatten(x.dim() - 3), lambda x: F.channel_shuffle(x, x.size(1) // 3)])
def test_computed_arguments_are_an_obstacle_and_no_error(call: Any) -> None:
    node = next(n for n in reversed(torch.fx.symbolic_trace(Call(call)).graph.nodes) if find_through(n, None))
    found = find_through(node, None)
    assert found is not None
    assert not isinstance(found[0].forward(layout(), found[1]), Layout)
    assert not isinstance(found[0].backward(layout(rank=2), found[1]), Layout)
