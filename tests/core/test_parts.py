"""Concatenation, division and slices: each position of the result holds the channel that the layout says.

The reference is torch: a tensor that holds at each position the number of its channel goes through the same call.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from canon_bridge.core.channels.layout import Layout
from canon_bridge.core.channels.parts import concatenated, divided, reads_shape_alone, selected
from canon_bridge.core.tracing.trace import trace
from tests.core.layouts import Call, layout, only_call

WIDTH = 7
Function = Callable[[Tensor], Any]


def numbered(place: Layout) -> Tensor:
    """Return a tensor that holds at each position the number of its channel."""
    view = [1] * place.rank
    view[place.axis] = len(place.channels)
    return torch.tensor(place.channels).view(view).expand([3 if n == 1 else n for n in view])


def held(tensor: Tensor, axis: int) -> tuple[int, ...]:
    """Return which channels lie on an axis."""
    rows = tensor.movedim(axis, 0).flatten(1)
    assert bool((rows == rows[:, :1]).all())
    return tuple(rows[:, 0].tolist())


PLACES = [layout(1, 4, WIDTH), layout(2, 3, WIDTH), Layout((3, -1, 0, 5, 2, 2, 1), 1, 4)]

DIVISIONS: dict[str, Callable[[Tensor, int, int], Any]] = {
    "chunk": lambda x, n, dim: x.chunk(n, dim),
    "chunk by name": lambda x, n, dim: x.chunk(chunks=n, dim=dim),
    "torch.chunk": lambda x, n, dim: torch.chunk(x, n, dim=dim),
    "split": lambda x, n, dim: x.split(n, dim),
    "split of sizes": lambda x, n, dim: x.split([n % WIDTH, WIDTH - n % WIDTH], dim=dim),
    "split by name": lambda x, n, dim: x.split(split_size=(n % WIDTH, WIDTH - n % WIDTH), dim=dim),
    "torch.split": lambda x, n, dim: torch.split(x, n, dim),
    "torch.split by name": lambda x, n, dim: torch.split(x, split_size_or_sections=n, dim=dim),
    "split_with_sizes": lambda x, n, dim: x.split_with_sizes([n % WIDTH, WIDTH - n % WIDTH], dim),
    "torch.split_with_sizes": lambda x, n, dim: torch.split_with_sizes(x, [1, 1, WIDTH - 2], dim),
}


@pytest.mark.parametrize("name", DIVISIONS)
def test_each_part_holds_the_channels_that_torch_puts_there(name: str) -> None:
    for place in PLACES:
        for number in range(1, WIDTH + 2):
            for dim in (place.axis, place.axis - place.rank):

                def function(x: Tensor, number: int = number, dim: int = dim) -> Any:
                    return DIVISIONS[name](x, number, dim)

                parts = divided(only_call(Call(function)), place)
                expected = [held(part, place.axis) for part in function(numbered(place))]
                assert isinstance(parts, list)
                assert [part.channels for part in parts] == expected
                assert {(part.axis, part.rank) for part in parts} == {(place.axis, place.rank)}


def test_a_division_of_other_dimensions_or_at_computed_places_is_a_reason() -> None:
    for function, place, reason in (
        (lambda x: x.chunk(2), layout(), "other dimensions"),
        (lambda x: x.split(2, -1), layout(), "other dimensions"),
        (lambda x: x.split(2, 1), layout(rank=2, repeats=True), "other dimensions"),
        (lambda x: torch.split(x, x.size(1) // 2, 1), layout(), "computed places"),
        (lambda x: x.split([1, x.size(1) - 1], 1), layout(), "computed places"),
    ):
        node = trace(Call(function)).graph.output_node().args[0]
        assert isinstance(node, fx.Node)
        found = divided(node, place)
        assert isinstance(found, str)
        assert reason in found
    assert divided(only_call(Call(lambda x: x.flatten(1))), layout()) is None


def test_slices_hold_the_channels_that_torch_puts_there() -> None:
    draw = random.Random(0)
    for _ in range(80):
        place = draw.choice(PLACES)
        bounds = [None, *range(-WIDTH, WIDTH + 1)]
        keys = tuple(
            slice(draw.choice(bounds), draw.choice(bounds), draw.choice([None, 1, 2, 3])) if axis else slice(None)
            for axis in range(draw.randint(0, place.rank - 1) + 1)
        )
        cut = numbered(place)[keys]
        found = selected(only_call(Call(lambda x, keys=keys: x[keys])), place)
        assert isinstance(found, Layout)
        assert len(found.channels) == cut.shape[place.axis]
        if cut.numel():
            assert found.channels == held(cut, place.axis)


@pytest.mark.parametrize(
    "function",
    [
        *(lambda x: x[0], lambda x: x[:, 1], lambda x: x[..., :2], lambda x: x[:, None], lambda x: x[:, [0, 2]]),
        lambda x: x[:, x.size(1) // 2 :],
    ],
)
def test_an_index_that_is_no_slice_is_a_reason(function: Function) -> None:
    node = trace(Call(function)).graph.output_node().args[0]
    assert isinstance(node, fx.Node)
    assert isinstance(selected(node, layout()), str)


def test_a_part_is_picked_by_its_number() -> None:
    parts = [layout(channels=2), layout(channels=3)]
    assert selected(only_call(Call(lambda x: x[1])), parts) is parts[1]
    assert selected(only_call(Call(lambda x: x[-2])), parts) is parts[0]
    assert isinstance(selected(only_call(Call(lambda x: x[0:1])), parts), str)
    assert selected(only_call(Call(lambda x: x.relu())), parts[0]) is None


JOINS: dict[str, tuple[Function, int | None]] = {
    "cat": (lambda x: torch.cat([x, x], 1), 1),
    "concat of a tuple": (lambda x: torch.concat((x, x), dim=-3), -3),
    "concatenate by axis": (lambda x: torch.concatenate([x, x], axis=2), 2),
    "cat by name": (lambda x: torch.cat(tensors=[x, x], dim=1), 1),
    "cat along the batch": (lambda x: torch.cat([x, x]), 0),
    "computed dimension": (lambda x: torch.cat([x, x], x.dim() - 3), None),
    "a constant in it": (lambda x: torch.cat([x, torch.ones(2, 3, 4, 4)], 1), 1),
    "all parts of a division": (lambda x: torch.cat(x.chunk(2, 1), 1), None),
    "stack": (lambda x: torch.stack([x, x], 1), None),
    "hstack": (lambda x: torch.hstack([x, x]), None),
}


@pytest.mark.parametrize("name", JOINS)
def test_a_concatenation_is_found_with_its_tensors_and_dimension(name: str) -> None:
    function, dim = JOINS[name]
    node = trace(Call(function)).graph.output_node().args[0]
    assert isinstance(node, fx.Node)
    found = concatenated(node)
    assert (found is None) is (dim is None)
    if found is not None:
        assert (len(found[0]), found[1]) == (2, dim)
        assert node.all_input_nodes[0] in found[0]


def test_who_reads_the_shape_alone() -> None:
    for function, reads in (
        (lambda x: x.flatten(1).view_as(x), [False, True]),
        (lambda x: x.reshape_as(x), [False]),
        (lambda x: x.relu().type_as(x), [False, True]),
        (lambda x: x.relu().add(x), [False, False]),
    ):
        nodes = list(trace(Call(function)).graph.nodes)
        assert [reads_shape_alone(reader, nodes[0]) for reader in nodes[1:-1]] == reads
