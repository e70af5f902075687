"""Convolutions and linear layers that a forward computes by a function, with tensors of the model or made from them.

Inside the block they are layers like all others: norms are merged into them, and the tensors of the model stay.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import canonize, canonized_copy, plan
from canon_bridge.core.rewrite import make_explicit
from canon_bridge.core.trace.trace import trace
from tests.support.calls import Tensors
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, check, conv, image
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZES = {0: (), 1: (9,), 2: (6, 7), 3: (5, 4, 6)}


class Layer(nn.Module):
    """A norm before and a norm behind what ``function(self, x)`` computes with the tensors of the module."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], rank: int = 2) -> None:
        super().__init__()
        kernel = (3,) * rank
        self.function, self.before, self.behind = function, NORMS[rank](4), NORMS[rank](4)
        self.weight, self.bias = nn.Parameter(torch.randn(4, 4, *kernel)), nn.Parameter(torch.randn(4))
        self.grouped, self.gain = nn.Parameter(torch.randn(4, 2, *kernel)), nn.Parameter(torch.randn(4))
        self.register_buffer("filters", torch.rand(4, 1, *kernel))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.behind(self.function(self, self.before(torch.tanh(x)))))


def standardized(m: nn.Module) -> Tensor:
    mean = m.weight.mean((1, 2, 3), keepdim=True)
    return (m.weight - mean) / m.weight.flatten(1).std(1)[:, None, None, None]


# Name: number of spatial dimensions, the function.
LAYERS: dict[str, tuple[int, Callable[[nn.Module, Tensor], Tensor]]] = {
    "F.linear": (0, lambda m, x: F.linear(x, m.weight, m.bias)),
    "F.linear without bias": (0, lambda m, x: F.linear(x, m.weight)),
    "F.linear, computed": (0, lambda m, x: F.linear(x, m.weight.exp() * m.gain, bias=m.bias - 1)),
    "F.conv1d": (1, lambda m, x: F.conv1d(x, m.weight, m.bias, padding=1)),
    "F.conv2d": (2, lambda m, x: F.conv2d(x, m.weight, m.bias)),
    "torch.conv2d": (2, lambda m, x: torch.conv2d(x, m.weight, m.bias, 2, 1)),
    "F.conv3d": (3, lambda m, x: F.conv3d(x, m.weight, None, 1, 1)),
    "strides, padding and dilation": (2, lambda m, x: F.conv2d(x, m.weight, m.bias, (2, 1), (2, 0), (1, 2))),
    "padding by name": (2, lambda m, x: F.conv2d(x, m.weight, padding="same", dilation=2)),
    "groups": (2, lambda m, x: F.conv2d(x, m.grouped, m.bias, padding=1, groups=2)),
    "filters in a buffer": (2, lambda m, x: F.conv2d(x, m.filters / m.filters.sum(), padding=1, groups=4)),
    "standardized": (2, lambda m, x: F.conv2d(x, standardized(m), m.bias, 1, 1)),
    "a gain": (2, lambda m, x: F.conv2d(x, m.weight * m.gain.view(-1, 1, 1, 1), m.bias * m.gain, padding=1)),
    "input by keyword": (2, lambda m, x: F.conv2d(weight=m.weight, bias=m.bias, input=x)),
    "F.conv_transpose1d": (1, lambda m, x: F.conv_transpose1d(x, m.weight, m.bias, 2)),
    "F.conv_transpose2d": (2, lambda m, x: F.conv_transpose2d(x, m.weight, m.bias, 2, 1, 1)),
    "F.conv_transpose3d": (3, lambda m, x: F.conv_transpose3d(x, m.weight, None, 1, 1)),
    "transposed, groups and dilation": (2, lambda m, x: F.conv_transpose2d(x, m.grouped, m.bias, 1, 0, 0, 2, 2)),
    "transposed, computed": (2, lambda m, x: F.conv_transpose2d(x, m.weight.abs(), bias=m.bias.exp(), stride=2)),
}


def make(name: str) -> tuple[nn.Module, list[Tensor]]:
    rank, function = LAYERS[name]
    model = Layer(function, rank)
    sizes = [SIZES[rank], tuple(size + 3 for size in SIZES[rank])]
    return randomize(model.double()), [image(3 - number, 4, *size) for number, size in enumerate(sizes)]


@pytest.mark.parametrize("name", LAYERS)
def test_norms_are_merged_into_it(name: str) -> None:
    model, inputs = make(name)
    taken = {entry.norm: entry.chain.targets for entry in plan(model).merges}
    (layer,) = {target for targets in taken.values() for target in targets}
    assert layer in ("linear", *(f"conv{'_transpose' * t}{rank}d" for t in (0, 1) for rank in (1, 2, 3)))
    assert taken.keys() == ({"before", "behind"} if name != "input by keyword" else taken.keys())
    check(model, *inputs)


@pytest.mark.parametrize("prefer", BOTH)
@pytest.mark.parametrize("name", ["F.conv2d", "standardized", "F.linear"])
def test_new_values_are_used_at_the_next_entry(name: str, prefer: str) -> None:
    model, (x, _) = make(name)
    canonization = canonize(model, prefer=prefer)
    with canonization:
        model(x)
    with torch.no_grad():
        for parameter in (model.weight, model.bias):
            parameter.copy_(torch.randn_like(parameter))
    before, expected = Snapshot(model), model(x)
    with canonization:
        assert relative_error(model(x), expected) < 1e-12
    before.check()


@pytest.mark.parametrize("prefer", BOTH)
@pytest.mark.parametrize("name", LAYERS)
def test_deep_copies_nested_blocks_and_other_dtypes(name: str, prefer: str) -> None:
    model, (x, _) = make(name)
    before, expected = Snapshot(model), model(x)
    with canonize(model, prefer=prefer):
        twin = copy.deepcopy(model)
        inside = Snapshot(model)
        with canonize(model, prefer="right"):
            assert relative_error(model(x), expected) < 1e-12
        inside.check()
    before.check()
    for copied in (twin, canonized_copy(model, prefer=prefer)):
        assert relative_error(copied(x), expected) < 1e-12
        assert {tensor.dtype for tensor in copied.float().parameters()} == {torch.float32}
        assert copied(x.float()).dtype == torch.float32


def test_gradients_reach_a_parameter_of_the_model_where_nothing_was_merged() -> None:
    model = Tensors(lambda m, x, y: F.conv2d(x, m.weight, m.bias))
    x, y = image(2, 3, 9, 12), image(1)
    with canonize(model):
        model(x, y).sum().backward()
    assert model.weight.grad is not None
    assert bool((model.weight.grad != 0).all())


def test_one_weight_for_two_calls_and_for_a_layer() -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        y = F.conv2d(x, model.weight, padding=1)
        return F.conv2d(torch.relu(y), model.weight, model.bias, padding=1)

    model = Layer(function).double()
    model.layer = conv(bias=False).double()
    model.layer.weight = model.weight
    model = randomize(nn.Sequential(model, nn.BatchNorm2d(4), model.layer).double())
    check(model, image())


def test_a_layer_that_calls_the_function_on_its_own_weight_is_a_layer() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 4, 3, 3)), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, self.bias, padding=1)

    model = randomize(nn.Sequential(Own(), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), Own()).double())
    assert [merge.chain.targets for merge in plan(model).merges] == [("0.conv2d",), ("4.conv2d",)]
    check(model, image(), image(1, 4, 9, 5))
    shared = Own()
    check(randomize(nn.Sequential(shared, nn.BatchNorm2d(4), nn.ReLU(), shared).double()), image())


# Tensors that are no parameters or buffers: made in forward, or plain attributes.
CREATED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "made in forward": lambda m, x: F.conv2d(x, torch.ones(4, 1, 3, 3).double(), groups=4),
    "made like the input": lambda m, x: F.conv2d(x, x.new_ones(4, 1, 3, 3), groups=4),
    "a plain attribute": lambda m, x: F.conv2d(x, m.kernel, groups=4),
    "statistics made in forward": lambda m, x: F.batch_norm(x, torch.zeros(4).double(), torch.ones(4).double()),
    "made from a parameter and a new tensor": lambda m, x: F.conv2d(x, m.weight * torch.ones(3).double()),
    "from the input": lambda m, x: F.conv2d(x, x.mean(0)[None].expand(4, 4, 6, 6)),
    "from the size of the input": lambda m, x: F.conv2d(x, m.weight / x.size(2)),
}


@pytest.mark.parametrize("name", CREATED)
def test_tensors_from_elsewhere(name: str) -> None:
    model = Layer(CREATED[name])
    model.kernel = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    check(randomize(model.double()), image())


def test_a_weight_that_depends_on_the_size_of_the_input_follows_it() -> None:
    model = randomize(Layer(CREATED["from the size of the input"]).double())
    check(model, image(), image(1, 4, 9, 9))


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))


def test_a_weight_of_another_module() -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, model.embedding.weight), model.embedding.weight.t())

    model: Any = Layer(function, 0)
    model.embedding = Hooked()
    check(randomize(model.double()), image(3, 4))


def test_tensors_of_the_model_stay_the_same_objects() -> None:
    def made(model: nn.Module) -> nn.Module:
        (call,) = make_explicit(model, trace(model)).operations.values()
        return call.module

    model = Tensors(lambda m, x, y: F.conv2d(x, m.weight, m.bias))
    module = made(model)
    assert (module.weight, module.bias) == (model.weight, model.bias)
    model = Tensors(lambda m, x, y: F.batch_norm(x, m.mean, m.variance, m.gain, m.offset))
    module = made(model)
    assert (module.running_mean, module.running_var) == (model.mean, model.variance)
    assert (module.weight, module.bias) == (model.gain, model.offset)
    assert module.state_dict().keys() == {"weight", "bias"}


class Answering(nn.Module):
    """A module that has every attribute that it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(4)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return None

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


def test_a_module_that_has_every_attribute_gets_modules_by_free_names() -> None:
    model = Answering()
    check(randomize(model.double()), image())
    with canonize(model):
        assert type(vars(model)["_modules"]["relu"]) is nn.ReLU
