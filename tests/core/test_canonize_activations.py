"""Whole blocks with every activation: norms are merged to the right through it, written as a module or as a function.

The function in float64 is the same to 1e-12; the statistics hold weights of both signs, a zero and a tiny one.
"""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import canonize, plan
from canon_bridge.core.activations import ACTIVATIONS
from canon_bridge.core.explicit import Multiply
from tests.core.test_activations_general import ACTIVATION, make
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, Written, check, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

# Name: the function, as a module reads it.
FUNCTIONS: dict[str, Any] = {
    "F.relu": lambda x: F.relu(x),
    "F.relu_": lambda x: F.relu_(x),
    "torch.relu": lambda x: torch.relu(x),
    "x.relu_()": lambda x: x.relu_(),
    "F.relu6": lambda x: F.relu6(x, True),
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.3, inplace=True),
    "F.elu": lambda x: F.elu(x, 1.3, True),
    "F.gelu": lambda x: F.gelu(x, approximate="tanh"),
    "F.silu": lambda x: F.silu(x, inplace=True),
    "F.hardswish": lambda x: F.hardswish(x),
    "F.hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0),
    "F.softplus": lambda x: F.softplus(x, 2.0, 5.0),
    "x.clamp(0, 6)": lambda x: x.clamp(0, 6),
    "x.clamp_(min=0)": lambda x: x.clamp_(min=0),
    "torch.tanh": lambda x: torch.tanh(x),
    "x.sigmoid()": lambda x: x.sigmoid(),
}


# One of each way to absorb a map: thresholded, leaky, with a parameter for each channel, any other, with jumps.
SOME = pytest.mark.parametrize("kind", [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.Threshold])


def network(activation: nn.Module) -> nn.Module:
    """A norm in front of the activation, with a pool and a flatten behind it, in images of any size."""
    layers = [conv(), nn.Softmax(1), norm(), activation, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)]
    return randomize(nn.Sequential(*layers).double())


def merged_through(model: nn.Module, **options: Any) -> list[str]:
    return [path for merge in plan(model, **options).merges for path in merge.chain.absorbers]


@ACTIVATION
def test_every_activation(kind: type[nn.Module]) -> None:
    model = network(make(kind, 4))
    assert merged_through(model) == ["3"]
    check(model, image(), image(1, 4, 5, 9))


@SOME
def test_where_relevance_passes(kind: type[nn.Module]) -> None:
    check(network(make(kind, 4)), image(), clipped="pass")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_spelling(name: str) -> None:
    model = network(Written(lambda m, x: FUNCTIONS[name](x)))
    (path,) = merged_through(model)
    assert path.startswith("3.")
    check(model, image(), image(1, 4, 5, 9))
    kept = Snapshot(model)
    with canonize(model, example_inputs=image()) as canonical:
        module = canonical.get_submodule(path)
        assert ACTIVATIONS.find(module) is not None
        assert not getattr(module, "inplace", False)
    kept.check()


@SOME
def test_features_and_sequences(kind: type[nn.Module]) -> None:
    for layers, x in (
        ([nn.BatchNorm1d(4), make(kind, 4), nn.Linear(4, 3)], image(5, 4)),
        ([nn.BatchNorm1d(4), make(kind, 4), nn.Conv1d(4, 3, 3, padding=1)], image(2, 4, 7)),
        ([nn.BatchNorm3d(4), make(kind, 4), nn.Conv3d(4, 3, 2)], image(2, 4, 3, 4, 3)),
        ([norm(), nn.Flatten(), make(kind), nn.Linear(4 * 36, 3)], image()),
    ):
        model = randomize(nn.Sequential(nn.Softmax(1), *layers).double())
        assert len(merged_through(model)) == 1
        check(model, x, x[:1])


def test_a_parameter_for_each_feature_behind_a_flatten_is_no_parameter_for_each_channel() -> None:
    model = randomize(
        nn.Sequential(nn.Softmax(1), norm(), nn.Flatten(), make(nn.PReLU, 144), nn.Linear(144, 3)).double()
    )
    assert merged_through(model) == []
    check(model, image())


@SOME
def test_two_norms_that_one_activation_absorbs(kind: type[nn.Module]) -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        return m.last(m.act(torch.cat([m.norm1(m.gate(x)), m.side(x), m.norm2(m.gate(x * 2))], 1)))

    parts = {"norm1": norm(), "norm2": norm(), "gate": nn.Softmax(1), "side": conv(), "last": conv(12, 3)}
    model = randomize(Written(function, act=make(kind, 12), **parts))
    assert [merge.chain.absorbers for merge in plan(model).merges] == [("act",), ("act",)]
    check(model, image(), image(1, 4, 5, 9))


@SOME
@pytest.mark.parametrize("prefer", BOTH)
def test_hooks_copies_and_nested_blocks(kind: type[nn.Module], prefer: str) -> None:
    model, x, calls = network(make(kind, 4)), image(), Counter[str]()
    model[3].register_forward_hook(lambda *_: calls.update(["behind"]))
    model[3].register_forward_pre_hook(lambda *_: calls.update(["before"]))
    kept, expected = Snapshot(model), model(x)
    calls.clear()
    with canonize(model, prefer=prefer):
        model(x.clone().requires_grad_())
        assert calls == {"behind": 1, "before": 1}
        twin = copy.deepcopy(model)
        inside = Snapshot(model)
        with canonize(model, prefer="right"):
            assert relative_error(model(x), expected) < 1e-12
        inside.check()
    kept.check()
    assert relative_error(twin(x), expected) < 1e-12


def test_one_activation_under_two_names() -> None:
    act = make(nn.SiLU)
    model = network(act)
    model.add_module("again", nn.ModuleList([act]))
    model.forward = (lambda self, x: self[6](self[5](self[4](self.again[0](self[2](self[1](self[0](x)))))))).__get__(
        model
    )
    assert len(merged_through(model)) == 1
    check(model, image())


class Gated(nn.Module):
    """A squeeze-and-excitation: what passes is multiplied by a gate, which stops the norm before it."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.norm, self.down, self.up, self.last = norm(), conv(4, 2, 1, 0), conv(2, 4, 1, 0), conv()
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        if self.spelling == "*=":
            x *= gate
        elif self.spelling == "mul_":
            x.mul_(gate)
        else:
            x = {"*": lambda: x * gate, "mul": lambda: x.mul(gate), "torch.mul": lambda: torch.mul(gate, x)}[
                self.spelling
            ]()
        return self.last(x)


@pytest.mark.parametrize("before", [conv, nn.Tanh])
@pytest.mark.parametrize("spelling", ["*", "*=", "mul", "mul_", "torch.mul"])
def test_a_gate_is_a_module_that_no_norm_passes(spelling: str, before: Any) -> None:
    model = randomize(nn.Sequential(before(), Gated(spelling), nn.Tanh()).double())
    made = plan(model)
    assert len(made.merges) == (before is conv)
    check(model, image(), image(1, 4, 5, 9))
    with canonize(model):
        gates = [module for module in model.modules() if isinstance(module, Multiply)]
        seen: list[tuple[Tensor, ...]] = []
        assert len(gates) == 1
        gates[0].register_forward_hook(lambda module, args, output: seen.append(args))
        model(image())
        assert len(seen) == 1
        assert sorted(tuple(part.shape[2:]) for part in seen[0]) == [(1, 1), (6, 6)]


def gradients(model: nn.Module, x: Tensor, twice: bool = True) -> tuple[Tensor, ...]:
    """Return the first gradient, and the gradient of a function of it."""
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=twice)
    return (first.detach(), *(torch.autograd.grad(first.square().sum(), x) if twice else ()))


# What looks on and replaces nothing is no rule.
LOOKING_ON: dict[str, Callable[[nn.Module], Any]] = {
    "forward hook": lambda module: module.register_forward_hook(lambda *_: None),
    "forward hook that returns the output": lambda module: module.register_forward_hook(lambda m, args, output: output),
    "forward hook that copies the output": lambda module: module.register_forward_hook(lambda m, a, out: out.clone()),
    "forward pre-hook": lambda module: module.register_forward_pre_hook(lambda *_: None),
    "forward pre-hook that copies the input": lambda module: module.register_forward_pre_hook(
        lambda m, args: args[0].clone()
    ),
    "hook of the input": lambda module: module.register_forward_pre_hook(
        lambda m, args: args[0].register_hook(lambda gradient: None) and None
    ),
    "backward hook": lambda module: module.register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda module: module.register_full_backward_pre_hook(lambda *_: None),
}


def gradients_beside(look: Callable[[nn.Module], Any], model: nn.Module, x: Tensor, twice: bool) -> tuple[Tensor, ...]:
    handle = look(model[2])
    found = gradients(model, x, twice)
    handle.remove()
    return found


@pytest.mark.parametrize("clipped", ["absorb", "pass"])
@ACTIVATION
def test_without_rules_gradients_in_the_block_are_those_of_the_function(kind: type[nn.Module], clipped: Any) -> None:
    model, x = randomize(nn.Sequential(conv(), norm(), make(kind, 4), conv()).double(), mild=True), image()
    twice = kind is not nn.Hardsigmoid  # of which torch has no second derivative
    expected = gradients(model, x, twice)
    with canonize(model, prefer="right", clipped=clipped):
        found = gradients(model, x, twice)
        rule = model[2].register_full_backward_hook(lambda module, grad_input, grad_output: grad_output)
        with_rule = gradients(model, x, twice)
        rule.remove()
        looking_on = [gradients_beside(look, model, x, twice) for look in LOOKING_ON.values()]
    for values in (found, *looking_on):
        assert all(relative_error(*pair) < 1e-11 for pair in zip(values, expected, strict=True) if pair[1].any())
    if clipped == "absorb" and kind in (nn.SiLU, nn.GELU, nn.LeakyReLU, nn.Softplus):
        assert relative_error(with_rule[0], expected[0]) > 1e-2
