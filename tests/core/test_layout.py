"""Changes of shape, one by one and in sequence: ``op(s x + b) = s' op(x) + b'`` with the layouts that are returned.

Where a reason is returned instead, no layout of the output makes the equation hold, or the case is listed as not
supported. Backward layouts are the inverse of the forward ones.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canon_bridge.core.channels import shapes
from canon_bridge.core.channels.layout import Layout, position
from canon_bridge.core.channels.through import find_through
from canon_bridge.core.tracing.trace import trace
from tests.core.layouts import CHANNELS, TOLERANCE, WRONG, Call, deviation, layout, passes, shape_of

Move = Callable[[Layout, dict[str, Any]], Layout | str]
# The function of torch, its arguments by name as the table hands them on, and the layouts of its input.
Case = tuple[Callable[..., Tensor], dict[str, Any], Layout]


def places(*ranks: int) -> list[Layout]:
    """Return the layouts of channels on every axis behind the batch, at points and where a flatten has been, too."""
    plain = [layout(axis, rank) for rank in ranks for axis in range(1, rank)]
    repeated = [layout(rank - 1, rank, repeats=True) for rank in ranks]
    return [*plain, *(replace(place, point=True) for place in plain), *repeated]


def dims_of(place: Layout) -> range:
    return range(-place.rank, place.rank)


def flattens() -> Iterator[Case]:
    for place in places(2, 3, 4, 5):
        for start, end in itertools.product(dims_of(place), repeat=2):
            if position(start, place.rank) <= position(end, place.rank):
                yield torch.flatten, {"start_dim": start, "end_dim": end}, place


def means() -> Iterator[Case]:
    for place in places(2, 3, 4):
        for size, keepdim in itertools.product(range(1, place.rank), (False, True)):
            for dims in itertools.combinations(range(place.rank), size):
                yield torch.mean, {"dim": dims, "keepdim": keepdim}, place
        yield torch.mean, {"dim": -1, "keepdim": False}, place
        yield torch.mean, {"dim": [-1, -place.rank], "keepdim": True}, place


def permutations() -> Iterator[Case]:
    for place in places(2, 3, 4):
        for dims in itertools.permutations(range(place.rank)):
            yield torch.permute, {"*": (dims,)}, place
            yield torch.permute, {"*": (tuple(dim - place.rank for dim in dims),)}, place


def transpositions() -> Iterator[Case]:
    for place in places(2, 3, 4):
        for one, other in itertools.product(dims_of(place), repeat=2):
            yield torch.transpose, {"dim0": one, "dim1": other}, place


def unsqueezes() -> Iterator[Case]:
    for place in places(2, 3, 4):
        for dim in range(-place.rank - 1, place.rank + 1):
            yield torch.unsqueeze, {"dim": dim}, place


def squeezes() -> Iterator[Case]:
    for place in places(3, 4):
        for dim in dims_of(place):
            yield torch.squeeze, {"dim": dim}, place
        yield torch.squeeze, {"dim": (-2, -1)}, place


FAMILIES: dict[str, tuple[Callable[[], Iterator[Case]], Move, Move | None]] = {
    "flatten": (flattens, shapes.flatten, shapes.flatten_back),
    "mean": (means, shapes.mean, shapes.mean_back),
    "permute": (permutations, shapes.permute, shapes.permute_back),
    "transpose": (transpositions, shapes.transpose, shapes.transpose),
    "unsqueeze": (unsqueezes, shapes.unsqueeze, shapes.unsqueeze_back),
    "squeeze": (squeezes, shapes.squeeze, None),
}
# Reasons that stand for "not supported": the equation may hold all the same.
UNSUPPORTED = (
    "flatten keeps dimensions behind the channels",  # so do repeated channels with dimensions behind them
    "squeeze of dimensions whose length is not known",
    "squeeze of the batch or the channels",  # torch leaves a dimension as it is that is longer than one
    "a new dimension behind repeated channels",
)
UNSUPPORTED_AT_A_POINT = ("flatten puts other dimensions in front of the channels",)  # of length one


def call(function: Callable[..., Tensor], arguments: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    given = arguments.get("*", ())
    return lambda x: function(x, *given, **{name: value for name, value in arguments.items() if name != "*"})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layout_behind_a_change_of_shape_is_where_the_map_is(family: str) -> None:
    cases, forward, _ = FAMILIES[family]
    for function, arguments, before in cases():
        after, operation, shape = forward(before, arguments), call(function, arguments), shape_of(before)
        if isinstance(after, Layout):
            assert deviation(operation, before, after, shape) < TOLERANCE, (arguments, before, after)
            other = replace(after, channels=after.channels[::-1])
            assert deviation(operation, before, other, shape) > WRONG  # the known-wrong variant
        elif after not in UNSUPPORTED and not (before.point and after in UNSUPPORTED_AT_A_POINT):
            assert not passes(operation, before, shape), (arguments, before, after)


@pytest.mark.parametrize("family", [family for family, (_, _, back) in FAMILIES.items() if back])
def test_the_layout_before_a_change_of_shape_is_the_inverse(family: str) -> None:
    cases, forward, backward = FAMILIES[family]
    assert backward is not None
    followed = 0
    for _, arguments, before in cases():
        after = forward(before, arguments)
        if isinstance(after, str) or before.repeats or after.repeats:
            continue
        found = backward(after, arguments)
        if isinstance(found, Layout):
            followed += 1
            assert (found.channels, found.axis, found.rank) == (before.channels, before.axis, before.rank), arguments
        else:  # only where the arguments do not tell how many dimensions the input had, or which held the channels
            assert (family == "flatten" and min(arguments.values()) < 0) or before.point, (arguments, before, found)
    assert followed > 20


def test_computed_dimensions_are_no_obstacle_to_planning() -> None:
    computed = trace(nn.Sequential(nn.Identity())).graph.find_nodes(op="call_module", target="0")[0]
    for move in (shapes.mean, shapes.mean_back, shapes.unsqueeze, shapes.unsqueeze_back, shapes.squeeze):
        assert isinstance(move(layout(point=True), {"dim": computed, "keepdim": True}), str)
    assert isinstance(shapes.transpose(layout(), {"dim0": computed, "dim1": 1}), str)
    assert isinstance(shapes.permute(layout(), {"*": (0, 1, computed, 3)}), str)


def follow(function: Callable[[Tensor], Tensor], before: Layout) -> Layout | str:
    """Return the layout behind a function of several operations, each by its entry."""
    places: dict[Any, Layout] = {}
    last: Layout | str = before
    for node in trace(Call(function)).graph.nodes:
        if node.op == "placeholder":
            places[node] = before
        elif node.op.startswith("call") and node.meta["has_data"]:
            found = find_through(node, None)
            assert found is not None, node
            last = found[0].forward(places[node.args[0]], found[1])
            if isinstance(last, str):
                return last
            places[node] = last
    return last


# (the call, the layout of its input, whether it is followed; None where it might be, and is not)
VIEWS: dict[str, tuple[Callable[[Tensor], Tensor], Layout, bool | None]] = {
    "view(n, -1)": (lambda x: x.view(x.size(0), -1), layout(), True),
    "reshape(n, -1)": (lambda x: x.reshape(x.shape[0], -1), layout(), True),
    "reshape of a list": (lambda x: torch.reshape(x, [x.size()[0], -1]), layout(), True),
    "reshape(shape=...)": (lambda x: x.reshape(shape=(x.size(0), -1)), layout(), True),
    "view((n, 72))": (lambda x: x.view((x.size(0), 72)), layout(), True),
    "n, c, -1": (lambda x: x.view(x.size(0), x.size(1), -1), layout(), True),
    "n, C, -1": (lambda x: x.reshape(x.shape[0], CHANNELS, -1), layout(), True),
    "n, c, h * w": (lambda x: x.view(x.size(0), x.size(1), x.size(2) * x.size(3)), layout(), True),
    "n, c, w, h": (lambda x: x.reshape(x.size(0), x.size(1), x.size(3), x.size(2)), layout(), True),
    "n, c at a point": (lambda x: x.view(x.size(0), x.size(1)), layout(point=True), True),
    "n, -1, 1, 1 at a point": (lambda x: x.view(x.size(0), -1, 1, 1), layout(rank=2, point=True), True),
    "-1, C at a point": (lambda x: x.view(-1, CHANNELS), layout(point=True), True),
    "n, -1 of repeated channels": (lambda x: x.view(x.size(0), -1), layout(rank=2, repeats=True), True),
    "-1, C, 2, 2 at a point": (lambda x: x.view(-1, CHANNELS, 2, 2), layout(point=True), False),
    "-1, C": (lambda x: x.view(-1, CHANNELS), layout(), False),
    "literal batch": (lambda x: x.view(4, 12, 6), layout(), None),
    "split channels": (lambda x: x.view(x.size(0), CHANNELS * 4, -1), layout(), None),
    "joined batch": (lambda x: x.reshape(x.size(0) * x.size(1), x.size(2), -1), layout(), False),
    "exchanged batch": (lambda x: x.reshape(x.size(1), x.size(0), -1), layout(), False),
    "last axis": (lambda x: x.reshape(x.size(0), -1), layout(2, 3), False),
    "split repeated channels": (lambda x: x.view(x.size(0), 2, 3), layout(rank=2, repeats=True), False),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_reshape_is_followed_where_it_keeps_channels_together(name: str) -> None:
    function, before, is_followed = VIEWS[name]
    shape = shape_of(before, (4, 5, 4, 6, 7))
    after = follow(function, before)
    assert isinstance(after, Layout) is bool(is_followed), after
    if isinstance(after, Layout):
        assert deviation(function, before, after, shape) < TOLERANCE
    else:
        assert passes(function, before, shape) is (is_followed is None)


STEPS: dict[str, Callable[[Tensor, random.Random], Tensor]] = {
    "flatten": lambda x, r: x.flatten(r.randint(-2, 1)),
    "flatten of two": lambda x, r: torch.flatten(x, start_dim=1, end_dim=2),
    "mean": lambda x, r: x.mean(r.choice([-1, 2, (2, 3), (-2, -1)]), keepdim=r.random() < 0.5),
    "transpose": lambda x, r: x.transpose(r.randint(-3, 3), r.randint(-3, 3)),
    "permute": lambda x, r: x.permute(r.sample(range(r.randint(2, 4)), k=2) if r.random() < 0.3 else (0, 2, 3, 1)),
    "unsqueeze": lambda x, r: x.unsqueeze(dim=r.randint(-3, 3)),
    "squeeze": lambda x, r: x.squeeze(r.randint(-3, 3)),
    "contiguous": lambda x, r: x.contiguous().clone(),
    "view": lambda x, r: x.reshape(x.size(0), r.choice([-1, x.size(1), CHANNELS]), *r.choice([(), (-1,), (1,)])),
}


@pytest.mark.parametrize("seed", range(10))
def test_changes_of_shape_in_sequence_are_followed(seed: int) -> None:
    # Sizes that are one at run time are not known to be one, and the batch may be of any length.
    generator, followed = random.Random(seed), 0
    for _ in range(30):
        state = generator.getrandbits(32)

        def function(x: Tensor, state: int = state) -> Tensor:
            choices = random.Random(state)
            for name in choices.choices(list(STEPS), k=choices.randint(1, 5)):
                x = STEPS[name](x, choices)
            return x

        before = layout(point=generator.random() < 0.5)
        try:
            after = follow(function, before)
        except (ValueError, IndexError):
            continue
        for lengths in ((4, 5, 4, 6), (1, 1, 1, 1), (3, 1, 3, 1)):
            shape = shape_of(before, lengths)
            try:
                function(torch.randn(shape))
            except (RuntimeError, IndexError):
                continue  # the model cannot do that either
            if isinstance(after, Layout):
                followed += 1
                assert deviation(function, before, after, shape) < TOLERANCE, (state, lengths)
    assert followed > 5
