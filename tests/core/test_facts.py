"""What is known of traced values: data or sizes, memory, sizes; against the model run on tensors."""

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from canon_bridge.core.facts import UNKNOWN, Aliases, Facts, carries, has_data, is_tensor, reads_values
from canon_bridge.core.rewrite import make_explicit
from canon_bridge.core.trace.trace import trace
from tests.support.samples import SAMPLES, function_of

Function = Callable[..., Any]


class Call(nn.Module):
    """A model whose forward is one function of itself and of two inputs, with weights and modules to use."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(3, 1))
        self.register_buffer("mask", torch.ones(3, 1))
        self.conv = nn.Conv1d(3, 3, 1)
        self.relu, self.relu_inplace = nn.ReLU(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(self, x, y)


def traced(function: Function) -> tuple[fx.Graph, fx.Node]:
    """Return the graph of a model and the last call in it."""
    graph = trace(Call(function).eval()).graph
    return graph, [node for node in graph.nodes if node.op.startswith("call")][-1]


# name: (forward, whether its last call is a tensor that relevance flows through, whether values of the input reach it)
DATA: dict[str, tuple[Function, bool, bool]] = {
    "function": (lambda m, x, y: torch.exp(x), True, True),
    "method": (lambda m, x, y: x.mean(1), True, True),
    "module": (lambda m, x, y: m.conv(x), True, True),
    "reversed operator": (lambda m, x, y: 1 - x, True, True),
    "with a weight": (lambda m, x, y: m.weight * x, True, True),
    "with a size": (lambda m, x, y: x / x.shape[1], True, True),
    "part": (lambda m, x, y: x[:, 0], True, True),
    "one of several outputs": (lambda m, x, y: torch.split(x, 2, 1)[0], True, True),
    "reshaped by sizes": (lambda m, x, y: x.view(x.size(0), -1), True, True),
    "attribute": (lambda m, x, y: x.mT, True, True),
    "data": (lambda m, x, y: x.data, True, True),
    "of both": (lambda m, x, y: torch.cat([x, y]), True, True),
    "joined parts": (lambda m, x, y: torch.cat(x.chunk(2, 1), 1), True, True),
    "a tensor of data": (lambda m, x, y: torch.as_tensor(x), True, True),
    "several tensors": (lambda m, x, y: x.chunk(2, 1), False, True),
    "joined tuples of tensors": (lambda m, x, y: x.chunk(2, 1) + y.chunk(2, 1), False, True),
    "a pool with indices": (lambda m, x, y: F.max_pool1d_with_indices(x, 2), False, True),
    "comparison": (lambda m, x, y: x > 0, False, True),
    "index of the largest": (lambda m, x, y: x.argmax(1), False, True),
    "detached": (lambda m, x, y: x.detach(), False, True),
    "number": (lambda m, x, y: x.max().item(), False, True),
    "a number made a tensor": (lambda m, x, y: torch.tensor(x.max().item()), False, True),
    "whole numbers": (lambda m, x, y: x.long(), False, True),
    "drawn by the data": (lambda m, x, y: torch.bernoulli(x), False, True),
    "shape": (lambda m, x, y: x.shape, False, False),
    "element of a shape": (lambda m, x, y: x.shape[0], False, False),
    "size": (lambda m, x, y: x.size(0), False, False),
    "rank": (lambda m, x, y: x.ndim, False, False),
    "number of elements": (lambda m, x, y: torch.numel(x), False, False),
    "sum of sizes": (lambda m, x, y: x.size(0) + y.size(1), False, False),
    "arithmetic of sizes": (lambda m, x, y: (x.shape[1] * 2 - y.shape[2]) // 3 % 2, False, False),
    "negated size": (lambda m, x, y: -x.shape[0], False, False),
    "joined shapes": (lambda m, x, y: x.shape[:1] + y.shape[1:], False, False),
    "comparison of sizes": (lambda m, x, y: x.shape[0] == y.shape[0], False, False),
    "type": (lambda m, x, y: x.dtype, False, False),
    "floating point": (lambda m, x, y: x.is_floating_point(), False, False),
    "of weights alone": (lambda m, x, y: m.weight * m.mask + 1, False, False),
    "method of a weight": (lambda m, x, y: m.weight.expand(2, 3, 1), False, False),
    "created from a size": (lambda m, x, y: torch.arange(x.shape[1]), False, False),
    "full of a number": (lambda m, x, y: torch.full((x.size(0), 2), 0.5), False, False),
    "zeros like the data": (lambda m, x, y: torch.zeros_like(x), False, False),
    "stride": (lambda m, x, y: x.stride(0), False, False),
}


@pytest.mark.parametrize("name", DATA)
def test_what_carries_data(name: str) -> None:
    function, is_data, reached = DATA[name]
    _, node = traced(function)
    assert (is_tensor(node), has_data(node)) == (is_data, reached), node.format_node()
    assert carries(node) or not is_data


@pytest.mark.parametrize("name", [name for name in DATA if name != "drawn by the data"])
def test_values_of_the_input_reach_what_changes_with_them(name: str) -> None:
    # The reference: run it twice.
    function, _, reached = DATA[name]
    model, x, y = Call(function).eval(), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    with torch.no_grad():
        first, second = model(x, y), model(x * -3.5, y * -3.5)
    same = [
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(_flat(first), _flat(second), strict=True)
    ]
    assert all(same) is not reached


def _flat(value: Any) -> list[Any]:
    return [part for item in value for part in _flat(item)] if isinstance(value, tuple | list) else [value]


@pytest.mark.parametrize("value", [1, 2.5, None, "x", (1, 2), torch.ones(1)])
def test_what_is_no_node_is_no_tensor_of_the_graph(value: object) -> None:
    assert not is_tensor(value)
    assert not has_data(value)


def test_inputs_are_data_and_weights_are_not() -> None:
    nodes = {str(n): n for n in trace(Call(lambda m, x, y: x * m.weight + m.mask * y)).graph.nodes}
    found = {name: (is_tensor(nodes[name]), has_data(nodes[name])) for name in ("x", "y", "weight", "mask")}
    assert found == {"x": (True, True), "y": (True, True), "weight": (False, False), "mask": (False, False)}


def written(m: Call, x: Tensor, y: Tensor) -> Tensor:
    z = torch.zeros(2, 3, 4)
    z[:, :2] = x[:, :2]
    return z * 1


def test_data_come_to_a_tensor_that_they_are_written_to() -> None:
    model = Call(written).eval()
    flow = trace(model)
    Aliases(flow.graph, {})
    last = [node for node in flow.graph.nodes if node.op.startswith("call")][-1]
    assert is_tensor(last)


READERS: dict[str, tuple[Function, list[bool]]] = {
    "view_as": (lambda m, x, y: y.view_as(x), [False]),
    "expand_as": (lambda m, x, y: y.expand_as(x), [False]),
    "type_as": (lambda m, x, y: y.type_as(x), [False]),
    "zeros_like": (lambda m, x, y: torch.zeros_like(x) + y, [False]),
    "shape": (lambda m, x, y: y.view(x.shape), [False]),
    "sum": (lambda m, x, y: y + x, [True]),
    "as_tensor": (lambda m, x, y: torch.as_tensor(x), [True]),
    "full of its mean": (lambda m, x, y: torch.full((2,), x.mean()), [True]),
    "output": (lambda m, x, y: (x, y), [True]),
    "itself": (lambda m, x, y: x.view_as(x), [True]),
}


@pytest.mark.parametrize("name", READERS)
def test_who_reads_values_and_not_the_shape_alone(name: str) -> None:
    function, expected = READERS[name]
    graph = trace(Call(function).eval()).graph
    (x, *_) = graph.nodes
    assert [reads_values(user, x) for user in x.users] == expected


# Memory.

VIEWS = [
    *("view", "reshape", "reshape_as", "view_as", "flatten", "ravel", "unflatten", "permute", "transpose", "t"),
    *("mT", "adjoint", "swapaxes", "movedim", "squeeze", "unsqueeze", "expand", "expand_as", "broadcast_to"),
    *("type_as", "to", "contiguous", "alias", "narrow", "select", "slice", "index_select", "gather"),
    *("split_with_sizes", "chunk", "tensor_split", "unbind", "cat", "stack", "flip", "roll", "repeat", "pad"),
    *("unfold", "diagonal", "where", "masked_fill", "dropout", "clone", "identity", "relu", "exp", "add", "mul"),
    *("sum", "mean", "max_pool2d", "amax", "softmax", "positive", "detach", "sum_to_size"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", VIEWS)
def test_memory_that_is_shared_is_known_to_be(name: str) -> None:
    sample, function = SAMPLES.get(name), function_of(name)
    call = sample.call if sample is not None else lambda f, x: f(x)
    shape = sample.shape if sample is not None else (2, 4, 6, 5)

    def forward(m: Call, x: Tensor, y: Tensor) -> Any:
        return call(function, x)

    graph = trace(Call(forward).eval(), (torch.ones(shape).double(), torch.ones(1))).graph
    aliases = Aliases(graph, {})
    (x, *_) = graph.nodes
    last = [node for node in graph.nodes if node.op.startswith("call")]
    is_known = bool(last) and x in aliases.origins(last[-1])
    value = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        results = [part for part in _flat(call(function, value)) if isinstance(part, Tensor)]
    shares = any(part.untyped_storage().data_ptr() == value.untyped_storage().data_ptr() for part in results)
    assert is_known or not shares or not last


# name: (forward, whether its last overwriting call has its memory read later by a former name)
LATER: dict[str, tuple[Function, bool]] = {
    "the result alone": (lambda m, x, y: F.relu_(x + y) * 2, False),
    # Who reads by the very name that was overwritten gets the result.
    "the same name": (lambda m, x, y: (z := x + y, F.relu_(z), z * 2)[-1], False),
    "a view written, the base read": (lambda m, x, y: (z := x + y, F.relu_(z.flatten(1)), z * 2)[-1], True),
    "the base written, a view read": (lambda m, x, y: (z := x + y, v := z.flatten(1), F.relu_(z), v * 2)[-1], True),
    "a part written, another part read": (
        lambda m, x, y: (z := x + y, p := z.tensor_split(2, 1), F.relu_(p[0]), p[1] * 2)[-1],
        True,
    ),
    "a copy written": (lambda m, x, y: (z := x + y, F.relu_(z.clone()), z * 2)[-1], False),
    "detached, written": (lambda m, x, y: (z := x + y, z.detach().relu_(), z * 2)[-1], True),
    "positive, written": (lambda m, x, y: (z := x + y, F.relu_(+z), z * 2)[-1], True),
    "a permutation by einsum": (
        lambda m, x, y: (z := x + y, torch.einsum("nct->ntc", z).relu_(), z * 2)[-1],
        True,
    ),
    "the size read": (lambda m, x, y: (z := x + y, r := F.relu_(z), r.view(z.size(0), -1))[-1], False),
    "read before": (lambda m, x, y: (z := x + y, w := z * 2, F.relu_(z) + w)[-1], False),
    "a module in place": (lambda m, x, y: (z := x + y, m.relu_inplace(z), z * 2)[-1], False),
    "a module in place, a view read": (
        lambda m, x, y: (z := x + y, v := z.mT, m.relu_inplace(z), v * 2)[-1],
        True,
    ),
    "out=, a view read": (lambda m, x, y: (z := x + y, v := z.mT, torch.mul(x, 2, out=z), v * 2)[-1], True),
    "an index, a view read": (lambda m, x, y: (z := x + y, v := z.mT, operator.setitem(z, 0, 1.0), v * 2)[-1], True),
    "an augmented slice": (lambda m, x, y: (z := x + y, operator.iadd(z[:, 0], 1.0), z * 2)[-1], True),
}


@pytest.mark.parametrize("name", LATER)
def test_what_is_read_after_it_was_overwritten(name: str) -> None:
    function, expected = LATER[name]
    model = Call(function).eval()
    flow = trace(model)
    modules = {node: model.get_submodule(str(node.target)) for node in flow.graph.nodes if node.op == "call_module"}
    aliases = Aliases(flow.graph, modules)
    writers = [n for n in flow.graph.nodes if n.op.startswith("call") and aliases.overwritten(n) is not None]
    assert any(aliases.read_after(node) for node in writers) is expected


# Sizes.


class Net(nn.Module):
    """A convolution, a norm, and what a function makes of it."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)
        self.fc, self.register = nn.Linear(7, 6), nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.norm(self.first(x)), x)


def _times(size: Any, other: Any) -> Any:
    size *= other  # a number, which nothing is written to
    return size


# name: (forward, the sizes of its result as far as they have to be known: None for what depends on the input)
SHAPES: dict[str, tuple[Function, tuple[int | None, ...] | None]] = {
    "norm": (lambda m, h, x: h * 1, (None, 4, None, None)),
    "convolution": (lambda m, h, x: m.last(h), (None, 5, None, None)),
    "input": (lambda m, h, x: x.relu(), (None, 3, None, None)),
    "flatten": (lambda m, h, x: h.flatten(2), (None, 4, None)),
    "mean": (lambda m, h, x: h.mean((2, 3)), (None, 4)),
    "mean that keeps": (lambda m, h, x: h.mean((2, 3), keepdim=True), (None, 4, 1, 1)),
    "adaptive": (lambda m, h, x: F.adaptive_avg_pool2d(h, (3, 2)), (None, 4, 3, 2)),
    "max pool": (lambda m, h, x: F.max_pool2d(h, 3, 2), (None, 4, None, None)),
    "permute": (lambda m, h, x: h.permute(0, 2, 3, 1), (None, None, None, 4)),
    "cat": (lambda m, h, x: torch.cat([h, h[:, 1:]], 1), (None, 7, None, None)),
    "cat with the input": (lambda m, h, x: torch.cat([F.interpolate(h, x.shape[2:]), x], 1), (None, 7, None, None)),
    "cat with what is made on the device": (
        lambda m, h, x: torch.cat([h, torch.zeros(h.size(0), 3, h.size(2), h.size(3), device=h.device)], 1),
        (None, 7, None, None),
    ),
    "to the device": (lambda m, h, x: h.to(x.device) * 1, (None, 4, None, None)),
    "chunk": (lambda m, h, x: h.chunk(2, 1)[1], (None, 2, None, None)),
    "unflatten": (lambda m, h, x: h.unflatten(1, (2, 2)), (None, 2, 2, None, None)),
    "view": (lambda m, h, x: h.view(h.size(0), 2, 2, h.size(2), h.size(3)), (None, 2, 2, None, None)),
    "expand": (lambda m, h, x: h.mean((2, 3), keepdim=True).expand(-1, -1, 8, -1) * 1, (None, 4, 8, 1)),
    "linear": (lambda m, h, x: m.fc(F.adaptive_avg_pool2d(h, (2, 7))), (None, 4, 2, 6)),
    "product of matrices": (lambda m, h, x: h.flatten(2) @ h.flatten(2).mT, (None, 4, 4)),
    "pixel_shuffle": (lambda m, h, x: F.pixel_shuffle(h, 2), (None, 1, None, None)),
    "sum": (lambda m, h, x: h.sum(1), (None, None, None)),
    "pad": (lambda m, h, x: F.pad(h, (0, 0, 0, 0, 0, 3)), (None, 7, None, None)),
    "einsum": (lambda m, h, x: torch.einsum("nchw->nc", h) * 1, (None, 4)),
    "in place": (lambda m, h, x: F.relu_(h), (None, 4, None, None)),
    "sizes multiplied": (lambda m, h, x: h.reshape(h.size(0), 2 * h.size(2), 2, -1), (None, None, 2, None)),
    "sizes multiplied in place": (lambda m, h, x: h.reshape(h.size(0), _times(h.size(1), h.size(2)), -1), (None,) * 3),
    "the rank after a size": (lambda m, h, x: h.reshape(h.size(0), h.size(1) * h.size(2) * h.size(3)), (None, None)),
    "of unknown width": (lambda m, h, x: h.view(h.size(0), -1, 2), (None, None, 2)),
    "the data choose": (lambda m, h, x: h[h > 0], None),
}


def facts_of(model: nn.Module) -> tuple[Facts, fx.Node]:
    explicit = make_explicit(model, trace(model))
    modules = {node: operation.module for node, operation in explicit.operations.items()}
    facts = Facts(explicit.flow.graph, modules, explicit.flow.values, model)
    (output,) = [node for node in explicit.flow.graph.nodes if node.op == "output"]
    last = output.args[0]
    assert isinstance(last, fx.Node)
    return facts, last


INPUTS = [torch.ones(2, 3, 20, 30), torch.ones(1, 3, 34, 18), torch.ones(5, 3, 26, 26)]


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_that_are_known_are_those_of_every_run(name: str) -> None:
    function, wanted = SHAPES[name]
    model = Net(function).eval()
    facts, last = facts_of(model)
    if wanted is None:
        assert facts.of(last) is UNKNOWN
        assert facts.rank(last) is None
        assert facts.size(last, 1) is None
        return
    assert facts.rank(last) == len(wanted)
    found = tuple(facts.size(last, axis) for axis in range(len(wanted)))
    assert found == wanted
    with torch.no_grad():
        for x in INPUTS:
            assert all(size in (None, length) for size, length in zip(found, model(x).shape, strict=True))


def test_sizes_that_are_not_known_are_no_coincidence() -> None:
    # Neither are two unknown sizes taken for one, nor their sum or product for a third.
    facts, last = facts_of(Net(lambda m, h, x: h * 1).eval())
    shapes = facts.shapes(last)
    assert shapes is not None
    unknown = [size for shape in shapes[1:] for size in (shape[0], *shape[2:])]
    assert len(set(unknown)) == len(unknown)
    assert all(math.gcd(a, b) == 1 for a in unknown for b in unknown if a != b)


def test_without_anything_that_tells_nothing_is_known() -> None:
    model = nn.Sequential(nn.Tanh(), nn.Flatten()).eval()
    facts, last = facts_of(model)
    assert facts.of(last) is UNKNOWN
    assert facts.shapes(last) is None


def test_values_tell_the_channels_and_no_other_sizes() -> None:
    model = nn.Sequential(nn.Tanh(), nn.Dropout()).eval()
    x = torch.ones(2, 3, 20, 30)
    flow = trace(Valued(model).eval(), (x,))
    facts = Facts(flow.graph, {}, flow.values, model)
    (output,) = [node for node in flow.graph.nodes if node.op == "output"]
    last = output.args[0]
    assert [facts.size(last, axis) for axis in range(4)] == [None, 3, None, None]


class Valued(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else x
