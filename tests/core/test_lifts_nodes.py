"""What a node of the graph is: a tensor that the input reaches or a size, and whether it overwrites its argument."""

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from canon_bridge.core.tracing.data import is_tensor, works_in_place
from canon_bridge.core.tracing.lifts import find_lift
from canon_bridge.core.tracing.trace import trace


class Call(nn.Module):
    """A model whose forward is one function of itself, of two inputs, with weights and modules to use."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(3, 1))
        self.register_buffer("mask", torch.ones(3, 1))
        self.conv = nn.Conv1d(3, 3, 1)
        self.relu, self.relu_inplace = nn.ReLU(), nn.ReLU(inplace=True)
        self.dropout_inplace = nn.Dropout(inplace=True)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(self, x, y)


def traced(function: Callable[..., Any]) -> tuple[Call, fx.Node]:
    """Return the model and the last call in its graph."""
    model = Call(function).eval()
    return model, [node for node in trace(model).graph.nodes if node.op.startswith("call")][-1]


TENSORS: dict[str, Callable[..., Any]] = {
    "function": lambda m, x, y: torch.exp(x),
    "method": lambda m, x, y: x.mean(1),
    "module": lambda m, x, y: m.conv(x),
    "operator": lambda m, x, y: x * 2,
    "reversed operator": lambda m, x, y: 1 - x,
    "negated": lambda m, x, y: -x,
    "with a weight": lambda m, x, y: m.weight * x,
    "with a size": lambda m, x, y: x / x.shape[1],
    "part": lambda m, x, y: x[:, 0],
    "one of several outputs": lambda m, x, y: torch.split(x, 2, 1)[0],
    "reshaped by sizes": lambda m, x, y: x.view(x.size(0), -1),
    "attribute": lambda m, x, y: x.T,
    "of both": lambda m, x, y: torch.cat([x, y]),
    "gate": lambda m, x, y: x.sigmoid() * y,
    "function of a weight and the input": lambda m, x, y: torch.lerp(x, y, m.weight),
}
NO_TENSORS: dict[str, Callable[..., Any]] = {
    "shape": lambda m, x, y: x.shape,
    "element of a shape": lambda m, x, y: x.shape[0],
    "part of a shape": lambda m, x, y: x.shape[1:],
    "size": lambda m, x, y: x.size(),
    "one size": lambda m, x, y: x.size(0),
    "rank": lambda m, x, y: x.dim(),
    "rank as attribute": lambda m, x, y: x.ndim,
    "number of elements": lambda m, x, y: x.numel(),
    "sum of sizes": lambda m, x, y: x.size(0) + y.size(1),
    "size arithmetic": lambda m, x, y: (x.shape[1] * 2 - y.shape[2]) // 3 % 2,
    "negated size": lambda m, x, y: -x.shape[0],
    "joined shapes": lambda m, x, y: x.shape[:1] + y.shape[1:],
    "math of sizes": lambda m, x, y: math.floor(x.shape[0] / 2),
    "comparison of sizes": lambda m, x, y: x.shape[0] == y.shape[0],
    "type": lambda m, x, y: x.dtype,
    "device": lambda m, x, y: x.device,
    "of weights alone": lambda m, x, y: m.weight * m.mask + 1,
    # Not one of these is reached by a tensor of the input either.
    "function of a weight": lambda m, x, y: torch.exp(m.weight),
    "method of a weight": lambda m, x, y: m.weight.expand(2, 3, 1),
    "created from a size": lambda m, x, y: torch.arange(x.shape[1]),
    "stride": lambda m, x, y: x.stride(0),
    "torch.numel": lambda m, x, y: torch.numel(x),
    "number": lambda m, x, y: x.max().item(),
    "product of sizes": lambda m, x, y: x.size(0) * y.size(1),
    "is floating point": lambda m, x, y: x.is_floating_point(),
    "product of weights": lambda m, x, y: m.weight * m.mask,
    "several tensors": lambda m, x, y: x.chunk(2, 1),
    "joined tuples of tensors": lambda m, x, y: x.chunk(2, 1) + y.chunk(2, 1),
}


@pytest.mark.parametrize("name", TENSORS)
def test_is_tensor(name: str) -> None:
    _, node = traced(TENSORS[name])
    assert is_tensor(node)


@pytest.mark.parametrize("name", NO_TENSORS)
def test_is_no_tensor_that_the_input_reaches(name: str) -> None:
    _, node = traced(NO_TENSORS[name])
    assert not is_tensor(node), node.format_node()
    assert find_lift(node) is None


def test_parts_of_a_tensor_may_be_joined_as_they_come() -> None:
    # A tracer that takes the parts for one tensor cannot go on here; fx alone can.
    _, node = traced(lambda m, x, y: torch.cat(x.chunk(2, 1), 1))
    assert node.target is torch.cat
    assert is_tensor(node)


@pytest.mark.parametrize("value", [1, 2.5, None, "x", (1, 2), torch.ones(1)])
def test_what_is_no_node_is_no_tensor_of_the_graph(value: object) -> None:
    assert not is_tensor(value)


def test_inputs_are_tensors_and_weights_are_not() -> None:
    nodes = {str(n): n for n in trace(Call(lambda m, x, y: x * m.weight + m.mask * y)).graph.nodes}
    assert {name: is_tensor(nodes[name]) for name in ("x", "y", "weight", "mask")} == {
        "x": True,
        "y": True,
        "weight": False,
        "mask": False,
    }


def augmented(operate: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda m, x, y: operate(x, y)


IN_PLACE: dict[str, Callable[..., Any]] = {
    "method": lambda m, x, y: x.add_(y),
    "relu_ method": lambda m, x, y: x.relu_(),
    "mul_ method": lambda m, x, y: x.mul_(2),
    "torch.relu_": lambda m, x, y: torch.relu_(x),
    "F.relu_": lambda m, x, y: F.relu_(x),
    "F.elu_": lambda m, x, y: F.elu_(x, 1.5),
    "F.hardtanh_": lambda m, x, y: F.hardtanh_(x),
    "torch.sigmoid_": lambda m, x, y: torch.sigmoid_(x),
    "clamp_": lambda m, x, y: x.clamp_(0, 1),
    "F.silu positional": lambda m, x, y: F.silu(x, True),
    "F.mish keyword": lambda m, x, y: F.mish(x, inplace=True),
    "F.threshold positional": lambda m, x, y: F.threshold(x, 0.1, 0.2, True),
    "F.relu keyword": lambda m, x, y: F.relu(x, inplace=True),
    "F.relu positional": lambda m, x, y: F.relu(x, True),
    "F.dropout keyword": lambda m, x, y: F.dropout(x, training=False, inplace=True),
    "F.hardswish keyword": lambda m, x, y: F.hardswish(x, inplace=True),
    "module": lambda m, x, y: m.relu_inplace(x),
    "dropout module": lambda m, x, y: m.dropout_inplace(x),
    "+=": augmented(operator.iadd),
    "-=": augmented(operator.isub),
    "*=": augmented(operator.imul),
    "/=": augmented(operator.itruediv),
    # The same by position, for functions with arguments before it.
    "F.relu6 positional": lambda m, x, y: F.relu6(x, True),
    "F.hardtanh positional": lambda m, x, y: F.hardtanh(x, 0.0, 6.0, True),
    "F.leaky_relu positional": lambda m, x, y: F.leaky_relu(x, 0.1, True),
    "F.dropout positional": lambda m, x, y: F.dropout(x, 0.5, False, True),
}
OUT_OF_PLACE: dict[str, Callable[..., Any]] = {
    "method": lambda m, x, y: x.add(y),
    "operator": lambda m, x, y: x + y,
    "torch.relu": lambda m, x, y: torch.relu(x),
    "F.relu": lambda m, x, y: F.relu(x),
    "F.relu positional": lambda m, x, y: F.relu(x, False),
    "F.relu keyword": lambda m, x, y: F.relu(x, inplace=False),
    "F.leaky_relu positional": lambda m, x, y: F.leaky_relu(x, 0.1, False),
    "another True": lambda m, x, y: torch.sum(x, 1, True),
    "F.elu": lambda m, x, y: F.elu(x, 1.5),
    "product": lambda m, x, y: x * y,
    "mean with a dimension kept": lambda m, x, y: x.mean(1, True),
    "interpolation": lambda m, x, y: F.interpolate(x, 5),
    "module": lambda m, x, y: m.relu(x),
    "convolution": lambda m, x, y: m.conv(x),
    "getitem": lambda m, x, y: x[0],
    "dunder method": lambda m, x, y: x.__rsub__(1),
    "and": lambda m, x, y: (x > 0) & (y > 0),
    "or": lambda m, x, y: (x > 0) | (y > 0),
}


def overwrites(function: Callable[..., Any]) -> bool:
    """Return whether the function, called on tensors, changes its first argument's memory or says that it may."""
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    version = x._version
    with torch.no_grad():
        function(Call(lambda m, x, y: x).eval(), x, y)
    return x._version != version


@pytest.mark.parametrize("name", IN_PLACE)
def test_works_in_place(name: str) -> None:
    model, node = traced(IN_PLACE[name])
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    # Dropout in evaluation mode says that it may and does not.
    assert overwrites(IN_PLACE[name]) or "dropout" in name
    assert works_in_place(node, module), node.format_node()


@pytest.mark.parametrize("name", OUT_OF_PLACE)
def test_works_out_of_place(name: str) -> None:
    model, node = traced(OUT_OF_PLACE[name])
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    assert not overwrites(OUT_OF_PLACE[name])
    assert not works_in_place(node, module), node.format_node()
