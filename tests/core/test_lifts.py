"""Every entry of ``LIFTS``: the module computes what the call computes, however its arguments are spelled.

The reference is the traced function itself. What has no module form is refused.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from canon_bridge.core.modules.arithmetic import Add, Divide, Multiply, Negate, Subtract
from canon_bridge.core.modules.layers import BatchNorm, Mean
from canon_bridge.core.tracing.lifts import LIFTS, Lift, build_module, computed_sizes, find_lift, operands
from canon_bridge.core.tracing.trace import trace
from tests.core.calls import SHAPES, WAYS, Tensors, accepted, inputs, rank_of

# The known-wrong variants are this far off, relative to values around one.
WRONG = 1e-2

Function = Callable[..., Any]


def made_by(model: nn.Module) -> fx.Node:
    """Trace the model and return the call that makes its output."""
    node = next(iter(reversed(trace(model).graph.nodes))).args[0]
    assert isinstance(node, fx.Node)
    return node


def last_call(function: Function) -> fx.Node:
    return made_by(Tensors(lambda m, x, y: function(x, y)))


def taken_by(node: fx.Node, lift: Lift, model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Return what the operands of a call are when it is reached."""
    taken: list[Tensor] = []

    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n is node:
                taken.extend(self.env[operand].clone() for operand in operands(node, lift))
            return super().run_node(n)

    Run(model, graph=node.graph).run(x.clone(), y.clone())
    return taken


def name_of(target: Any) -> str:
    return str(getattr(target, "__name__", target))


EVERY = pytest.mark.parametrize("target", LIFTS, ids=name_of)


@EVERY
def test_module_computes_what_the_call_computes(target: Any) -> None:
    name = LIFTS[target].name
    assert name in WAYS, f"add ways to call {name} to WAYS"
    functions = accepted(target, name)
    assert len(functions) >= 2
    targets = set()
    for function in functions:
        model = Tensors(function, rank_of(name))
        node = made_by(model)
        targets.add(node.target)
        lift = find_lift(node)
        assert lift is not None, node.format_node()
        assert lift.name == name
        module = build_module(node, lift, model)
        assert not any(part.training for part in module.modules())
        assert not getattr(module, "inplace", False)
        assert computed_sizes(node, lift) == {}
        x, y = inputs(name)
        expected, taken = function(model, x.clone(), y.clone()), taken_by(node, lift, model, x, y)
        kept = [value.clone() for value in taken]
        result = module(*taken)
        assert all(torch.equal(*pair) for pair in zip(taken, kept, strict=True)), "the module works in place"
        assert torch.equal(result, expected), node.format_node()
    # fx may write a function down under its other name; then both are entries.
    assert target in targets or targets <= set(LIFTS), targets


KINDS: dict[str, type[nn.Module]] = {
    "add": Add,
    "multiply": Multiply,
    "subtract": Subtract,
    "divide": Divide,
    "negate": Negate,
    "mean": Mean,
    "batch_norm": BatchNorm,
    "interpolate": nn.Upsample,
    "linear": nn.Linear,
    "relu": nn.ReLU,
    "conv2d": nn.Conv2d,
    "conv_transpose3d": nn.ConvTranspose3d,
    "max_pool1d": nn.MaxPool1d,
}


OURS = (Add, Subtract, Multiply, Divide, Negate, Mean, BatchNorm)


@EVERY
def test_modules_are_of_the_exact_type_that_rules_know(target: Any) -> None:
    name = LIFTS[target].name
    for function in accepted(target, name):
        model = Tensors(function, rank_of(name))
        node = made_by(model)
        kind = type(build_module(node, LIFTS[node.target], model))
        assert kind.__module__.startswith("torch.nn.modules.") or kind in OURS
        if name in KINDS:
            assert kind is KINDS[name]
        elif name not in ("clamp", "clip", "clamp_min"):
            assert kind.__name__.lower() == name.replace("_", "")


def refusal(function: Function, rank: int = 2) -> str:
    """Return why the last call does not become a module."""
    model = Tensors(lambda m, x, y: function(x, y), rank)
    node = made_by(model)
    lift = find_lift(node)
    if lift is None:
        return "no entry"
    try:
        build_module(node, lift, model)
    except ValueError as error:
        return str(error)
    return ""


def pools() -> list[tuple[Function, int]]:
    names = [(f"{kind}max_pool{rank}d", rank) for kind in ("", "adaptive_") for rank in SHAPES]
    return [(getattr(F, name), rank) for name, rank in names]


@pytest.mark.parametrize(("pool", "rank"), pools())
def test_indices_are_refused(pool: Function, rank: int) -> None:
    assert len(pool(torch.randn(SHAPES[rank]), 2, return_indices=True)) == 2
    assert refusal(lambda x, y: pool(x, 2, return_indices=True), rank) != ""
    assert refusal(lambda x, y: pool(x, 2, return_indices=False), rank) == ""


def test_a_pool_that_always_returns_indices_is_not_lifted() -> None:
    # torch.adaptive_max_pool1d is another function than F.adaptive_max_pool1d: it returns a pair.
    assert len(torch.adaptive_max_pool1d(torch.randn(2, 3, 8), 2)) == 2
    assert refusal(lambda x, y: torch.adaptive_max_pool1d(x, 2), 1) != ""


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
    assert "a weighted sum is not the sum of two branches" in refusal(function)


WITHOUT: dict[str, tuple[Function, str]] = {
    "a sum into a tensor": (lambda x, y: torch.add(x, y, out=x), ""),
    "a computed weight of a sum": (lambda x, y: torch.add(x, y, alpha=x.shape[0]), "computed in forward"),
    "a product into a tensor": (lambda x, y: torch.mul(x, y, out=x), ""),
    "the mean of all": (lambda x, y: x.mean(), "no module form"),
    "a mean in another dtype": (lambda x, y: x.mean(2, dtype=torch.float32), "no module form"),
    "a mean over a computed dimension": (lambda x, y: x.mean(x.dim() - 1), "computed in forward"),
    "a clamp from another number": (lambda x, y: x.clamp(min=1), "clamp has a module form only"),
    "a clamp to a number": (lambda x, y: x.clamp(max=1), "clamp has a module form only"),
    "a clamp to a tensor": (lambda x, y: torch.clamp(x, y, y + 1), "computed in forward"),
    "a clamp the wrong way round": (lambda x, y: x.clamp(2, 1), "clamp has a module form only"),
    "a hard tanh of one value": (lambda x, y: F.hardtanh(x, 1.0, 1.0), "no module form"),
    "an antialiased interpolation": (
        lambda x, y: F.interpolate(x, 4, mode="bilinear", antialias=True),
        "antialias=True has no module form",
    ),
    "statistics of the batch": (lambda x, y: F.batch_norm(x, None, None, training=True), "statistics of the batch"),
    "a computed slope": (lambda x, y: F.leaky_relu(x, x.shape[0]), "computed in forward"),
    "a convolution by the input": (lambda x, y: F.conv2d(x, y[:, :, :3, :3]), "computed from the input"),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_arguments_without_module_form_are_refused(case: str) -> None:
    function, reason = WITHOUT[case]
    found = refusal(function)
    assert found
    assert reason in found


SIZES: dict[str, tuple[Function, set[str]]] = {
    "kernel": (lambda x, y: F.avg_pool2d(x, x.shape[2]), {"kernel_size", "stride"}),
    "kernel, of two": (lambda x, y: F.avg_pool2d(x, (x.shape[2], x.size(3))), {"kernel_size", "stride"}),
    "kernel, a shape": (lambda x, y: F.avg_pool2d(x, kernel_size=x.size()[2:]), {"kernel_size", "stride"}),
    "kernel, not the stride": (lambda x, y: F.max_pool2d(x, x.size()[2:], stride=2), {"kernel_size"}),
    "stride": (lambda x, y: F.avg_pool2d(x, 2, stride=x.shape[3] // 2), {"stride"}),
    "padding": (lambda x, y: F.max_pool2d(x, 2, padding=x.dim() - 4), {"padding"}),
    "output": (lambda x, y: F.adaptive_avg_pool2d(x, y.shape[2:]), {"output_size"}),
    "output, of two": (lambda x, y: F.adaptive_max_pool2d(x, output_size=(y.shape[2], 1)), {"output_size"}),
    "size": (lambda x, y: F.interpolate(x, y.shape[2:]), {"size"}),
    "size, of two": (lambda x, y: F.interpolate(x, size=(y.shape[2] * 2, 5)), {"size"}),
    "factor": (lambda x, y: F.interpolate(x, scale_factor=y.shape[2] / x.shape[2]), {"scale_factor"}),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_may_be_computed_in_forward(case: str) -> None:
    function, names = SIZES[case]
    node = last_call(function)
    lift = LIFTS[node.target]
    sizes = computed_sizes(node, lift)
    assert set(sizes) == names
    module = build_module(node, lift, nn.Module())
    assert all(hasattr(module, name) for name in names)
    assert not any(isinstance(value, fx.Node) for value in vars(module).values())


@pytest.mark.parametrize(
    "function",
    [
        *[lambda x, y: F.lp_pool2d(x, 2.0, 2), lambda x, y: F.softmax(x, 1)],
        *[lambda x, y: x.shape[0] + y.shape[1], lambda x, y: x.size(0) + x.dim(), lambda x, y: x.numel() + y.ndim],
        *[lambda x, y: x.shape[0] * y.shape[1], lambda x, y: torch.Size([2]) * x.dim()],
        *[lambda x, y: x.shape[:1] + y.shape[1:]],
        *[lambda x, y: 2 / x.shape[0], lambda x, y: -x.dim()],
    ],
)
def test_no_entry_for_other_calls_and_for_numbers(function: Function) -> None:
    assert refusal(function) == "no entry"


def test_operands_are_found_however_they_were_passed() -> None:
    def names(function: Callable[[Tensor, Tensor], Any]) -> list[str]:
        node = last_call(function)
        return [str(operand) for operand in operands(node, LIFTS[node.target])]

    assert names(lambda x, y: torch.add(other=y, input=x)) == ["x", "y"]
    assert names(lambda x, y: x.mul(other=y)) == ["x", "y"]
    assert names(lambda x, y: F.relu(input=x)) == ["x"]
    assert names(lambda x, y: F.max_pool2d(kernel_size=2, input=x)) == ["x"]
