"""Every kind of chain by name, with its steps and what lies in between; where a merge holds for some ranks alone."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import canonize, plan
from canon_bridge.core.plan import Chain, Step
from tests.support.decisions import LINEAR, Case, check, search
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, Written, alive, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

Model = Callable[[], nn.Module]
OWN, NEXT, THIRD = (0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)


def takes(module: str, channels: tuple[int, ...] = OWN) -> Step:
    return Step(module, channels)


def absorbs(module: str, channels: tuple[int, ...] = OWN) -> Step:
    return Step(module, channels, absorbs=True)


class DenseHead(nn.Module):
    """The end of a densely connected network: functional ReLU and pool behind the last BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.MaxPool2d(2), norm())
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.features(x), inplace=True)
        out = F.adaptive_avg_pool2d(out, (1, 1))
        return self.classifier(torch.flatten(out, 1))


def branches(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x)
    return m.a(y) + m.b(m.relu(y)) + m.c(m.silu(y))


def joined(m: nn.Module, x: Tensor) -> Tensor:
    y = torch.cat([x, m.norm(x)], 1)
    return m.a(m.pool(m.act(y))[:, 2:6])


GLOBAL, JOIN = "adaptive_avg_pool2d", "cat"
# name: (model, norm, direction, kind, steps, what lies in between)
CHAINS: dict[str, tuple[Model, str, str, str, tuple[Step, ...], tuple[str, ...]]] = {
    "left": (lambda: nn.Sequential(conv(), norm()), "1", "left", "left", (takes("0"),), ()),
    "left through a pool": (
        lambda: nn.Sequential(conv(), nn.AvgPool2d(2), nn.Dropout2d(), norm()),
        *("3", "left", "left", (takes("0"),), ("avg_pool2d", "dropout")),
    ),
    "left through a concatenation": (
        lambda: Written(lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], 1)), a=conv(4, 1), b=conv(4, 3), norm=norm()),
        *("norm", "left", "mixed", (takes("a", (0,)), takes("b", (1, 2, 3))), (JOIN,)),
    ),
    "right": (lambda: nn.Sequential(norm(), conv()), "0", "right", "right", (takes("1"),), ()),
    "right through a ReLU": (
        lambda: nn.Sequential(norm(), nn.ReLU(True), conv()),
        *("0", "right", "activation", (absorbs("1"), takes("2", NEXT)), ("ReLU 1",)),
    ),
    "right through functions": (
        *(DenseHead, "features.1", "right", "activation", (absorbs("relu"), takes("classifier", NEXT))),
        ("ReLU relu", GLOBAL, "flatten"),
    ),
    "right through a flatten": (
        lambda: nn.Sequential(norm(), nn.Flatten(), nn.ReLU(), nn.Dropout(), nn.Linear(144, 3)),
        *("0", "right", "activation", (absorbs("2"), takes("4", NEXT)), ("flatten", "ReLU 2", "dropout")),
    ),
    "right through two activations": (
        lambda: nn.Sequential(norm(), nn.GELU(), nn.MaxPool2d(2), conv()),
        *("0", "right", "mixed", (absorbs("1"), absorbs("2", NEXT), takes("3", THIRD)), ("GELU 1", "MaxPool2d 2")),
    ),
    "right into several": (
        lambda: Written(branches, norm=norm(), a=conv(), b=conv(), c=conv(), relu=nn.ReLU(), silu=nn.SiLU(True)),
        *("norm", "right", "mixed"),
        (takes("a"), absorbs("relu"), takes("b", NEXT), absorbs("silu"), takes("c", THIRD)),
        ("ReLU relu", "SiLU silu"),
    ),
    "right through a concatenation and a slice": (
        lambda: Written(joined, norm=norm(), act=nn.ReLU(), pool=nn.MaxPool2d(2), a=conv()),
        *("norm", "right", "mixed"),
        (absorbs("act", (-1,) * 4 + OWN), absorbs("pool", tuple(range(4, 12))), takes("a", (14, 15, 16, 17))),
        (JOIN, "ReLU act", "MaxPool2d pool", "getitem"),
    ),
    "right into another norm": (lambda: nn.Sequential(norm(), norm()), "0", "right", "right", (takes("1"),), ()),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_chain_has_its_steps_in_the_order_of_the_flow(name: str) -> None:
    build, path, direction, kind, steps, through = CHAINS[name]
    model = randomize(build().double())
    before = Snapshot(model)
    found = search(model, path, direction)
    before.check()
    assert found == Chain(path, 4, direction, steps, through)
    assert isinstance(found, Chain)
    assert found.kind == kind
    assert found.targets == tuple(step.module for step in steps if not step.absorbs)
    assert found.absorbers == tuple(step.module for step in steps if step.absorbs)
    assert plan(model, prefer=direction).merges[0].chain == found


RANKS: dict[str, tuple[Model, dict[str, str | tuple[str, str]], tuple[int, ...], tuple[int, ...]]] = {
    # name: (model, decided, the ranks that the merge holds for if these are not all, the shape of an input)
    "Linear": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), {"0": "right 1"}, (2,), (3, 4)),
    "Conv1d": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Conv1d(4, 3, 2)), {"0": "right 1"}, (3,), (3, 4, 6)),
    "another norm": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4)),
        {"0": "right 1", "1": LINEAR},
        (),
        (3, 4, 2),
    ),
    "features": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(12, 3)),
        {"0": "right 2"},
        (3,),
        (2, 4, 3),
    ),
    "features, one a channel": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(4, 3)),
        {"0": "right 2"},
        (),
        (2, 4, 1),
    ),
    "any image": (lambda: nn.Sequential(nn.SyncBatchNorm(4), conv()), {"0": "right 1"}, (4,), (2, 4, 3, 3)),
    "any positions": (
        lambda: nn.Sequential(nn.SyncBatchNorm(4), nn.Flatten(2), nn.Conv1d(4, 3, 1)),
        {"0": "right 2"},
        (3, 4, 5),
        (2, 4, 3, 3),
    ),
    "any norm": (
        lambda: nn.Sequential(nn.SyncBatchNorm(4), norm(), conv()),
        {"0": "right 1", "1": "right 2"},
        (4,),
        (2, 4, 3, 3),
    ),
    "left Linear": (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), {"1": "left 0"}, (2,), (3, 4)),
    "left Conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)), {"1": "left 0"}, (3,), (3, 4, 2)),
    "one rank": (lambda: nn.Sequential(nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4)), {"1": "left 0"}, (), (1, 4, 1, 2, 2)),
}


@pytest.mark.parametrize("name", RANKS)
def test_a_merge_that_holds_for_some_ranks_names_them(name: str) -> None:
    build, decided, ranks, shape = RANKS[name]
    check(Case(build, decided, (shape, (1, *shape[1:]))))
    assert plan(randomize(build())).merges[0].chain.ranks == ranks


# A 1d layer takes (C, L) as well as (N, C, L), so a BatchNorm1d over (N, C) next to one counts other channels.
POOL = lambda: nn.AvgPool1d(3, 1, 1, count_include_pad=False)  # noqa: E731
UNBATCHED: dict[str, tuple[Model, tuple[int, ...]]] = {
    "conv1d, norm": (lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), (3, 8)),
    "norm, conv1d": (lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Conv1d(8, 6, 3)), (8, 8)),
    "norm, activation, conv1d": (lambda: nn.Sequential(nn.BatchNorm1d(8), nn.GELU(), nn.Conv1d(8, 6, 3)), (8, 8)),
    "norm, pool, linear": (lambda: nn.Sequential(nn.BatchNorm1d(8), POOL(), nn.ReLU(), nn.Linear(8, 2)), (3, 8)),
    "linear, pool, norm": (lambda: nn.Sequential(nn.Linear(8, 8), POOL(), nn.BatchNorm1d(8)), (3, 8)),
    "linear, norm": (lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), (3, 8, 8)),
    "norm, max pool, linear": (
        lambda: nn.Sequential(nn.BatchNorm1d(8), nn.MaxPool1d(3, 1, 1), nn.Linear(8, 2)),
        (3, 8),
    ),
}


@pytest.mark.parametrize("name", UNBATCHED)
@pytest.mark.parametrize("prefer", BOTH)
def test_an_input_of_another_rank_is_right_or_refused_aloud(name: str, prefer: Any) -> None:
    build, shape = UNBATCHED[name]
    model, x = randomize(build().double()), image(*shape)
    before, expected = Snapshot(model), model(x)
    with canonize(model, prefer=prefer):
        try:
            value = model(x)
        except ValueError as error:
            value = None
            message = str(error)
    before.check()
    if value is None:
        assert "merged for input of shape" in message
    else:
        assert relative_error(value, expected) < 1e-12


# Their input may be rows or sequences, of which the norms count other channels.
OF_TWO_RANKS = {
    "layers before and behind": lambda: nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4)
    ),
    "a layer behind": lambda: nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)),
    "two norms behind": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
    "flat behind": lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(0, -2), nn.Linear(4, 3)),
    "a norm in two places": lambda: Written(
        lambda m, x: m.norm(m.fc(m.norm(x).relu())), norm=nn.BatchNorm1d(4), fc=nn.Linear(4, 4)
    ),
}


@pytest.mark.parametrize("prefer", ["left", "right", "untangled"])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 4)], ids=["rows", "sequences"])
@pytest.mark.parametrize("name", OF_TWO_RANKS)
def test_the_example_inputs_tell_how_many_dimensions_there_are(name: str, shape: tuple[int, ...], prefer: Any) -> None:
    model, x = randomize(OF_TWO_RANKS[name]().double()), image(*shape)
    before, expected = Snapshot(model), model(x)
    with canonize(model, prefer=prefer, example_inputs=x):
        assert alive(model) == []
        assert relative_error(model(x), expected) < 1e-12
        other = image(*(shape[:2] if len(shape) == 3 else (*shape, 4)))
        value, message = None, ""
        try:
            value = model(other)
        except ValueError as error:
            message = str(error)
    before.check()
    if value is None:
        assert re.search("merged for input of shape|canonized for", message)
    else:
        assert relative_error(value, model(other)) < 1e-12


def test_a_weight_that_forward_reads_elsewhere_is_not_changed() -> None:
    # An autoencoder with tied weights: the decoder is the transposed encoder.
    def function(model: nn.Module, x: Tensor) -> Tensor:
        return F.linear(F.relu(model.norm(model.encode(x))), model.encode.weight.t())

    build = lambda: Written(function, encode=nn.Linear(6, 4), norm=nn.BatchNorm1d(4))  # noqa: E731
    check(Case(build, {"norm": "right linear"}, ((5, 6),)))


def test_statistics_that_forward_reads_elsewhere_are_not_changed() -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        return model.norm(model.a(x)) - model.norm.running_mean[:, None, None] * model.norm.weight[:, None, None]

    check(Case(lambda: Written(function, norm=norm(), a=conv()), {"norm": "stays"}))


def test_tied_parameters_of_two_layers_are_merged_apart() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(conv(), norm(), nn.Softmax(1), conv(), norm())
        model[3].weight, model[4].weight = model[0].weight, model[1].weight
        return model

    check(Case(build, {"1": "left 0", "4": "left 3"}))


def test_every_merge_around_one_layer_is_carried_out() -> None:
    # The convolution in the middle takes a norm from each side, in either order of writing.
    build = lambda: nn.Sequential(nn.MaxPool2d(2), norm(), nn.ReLU(), conv(4, 6), norm(6), nn.ReLU(), conv(6))  # noqa: E731
    check(Case(build, {"1": "right 3", "4": ("left 3", "right 6")}, ((2, 4, 12, 12), (1, 4, 2, 3))))
