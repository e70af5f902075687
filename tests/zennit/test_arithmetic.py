"""Explicit modules in zennit's types: the function of the original, and relevance by hand under zennit's rules."""

import operator

import pytest
import torch
from torch import nn
from zennit.composites import EpsilonPlus, LayerMapComposite
from zennit.layer import Sum
from zennit.rules import Norm, Pass
from zennit.types import Activation

from canon_bridge.core import Add, Divide, ElementWise, LinearMap, Multiply, Normaliser, Product, Subtract
from canon_bridge.core.explicit import Slot
from canon_bridge.zennit.arithmetic import SignalTimesGate, adapt

pytestmark = pytest.mark.zennit

EPSILON = 0.5


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def away(z):
    return z + EPSILON * torch.where(z < 0, -1.0, 1.0)


def of_two(function):
    """Return the arguments of an explicit module with two values."""
    return function, (Slot(0), Slot(1)), {}


def moved(a, b):
    return 2 * a - b.flip(-1)


# The module, and the relevance of each operand for the relevance r of the output, from the operands and the output.
CASES = {
    "a sum": (Add(), lambda a, b, z, r: (a * r / away(z), b * r / away(z))),
    "a difference": (Subtract(), lambda a, b, z, r: (a * r / away(z), -b * r / away(z))),
    "a signal on the left": (Multiply(0), lambda a, b, z, r: (r, 0 * r)),
    "a signal on the right": (Multiply(1), lambda a, b, z, r: (0 * r, r)),
    "two signals": (Multiply(), lambda a, b, z, r: (r / 2, r / 2)),
    "a quotient": (Divide(0), lambda a, b, z, r: (r, 0 * r)),
    "an element-wise function": (ElementWise(*of_two(torch.atan2), 1), lambda a, b, z, r: (r, 0 * r)),
    "a normaliser": (Normaliser(*of_two(lambda a, b: a / a.norm() + 0 * b), 1), lambda a, b, z, r: (r, 0 * r)),
    "a linear map of one": (
        LinearMap(*of_two(lambda a, b: 3 * a.flip(-1) + 0 * b), 1),
        lambda a, b, z, r: (3 * a * (r / away(z)).flip(-1), 0 * r),
    ),
    "a linear map of two": (
        LinearMap(*of_two(moved), 2),
        lambda a, b, z, r: (2 * a * r / away(z), -b * (r / away(z)).flip(-1)),
    ),
    "a product and its signal": (
        Product(*of_two(torch.matmul), 2, 1),
        lambda a, b, z, r: (0 * r, b * (a.mT @ (r / away(z)))),
    ),
    "a product of two signals": (
        Product(*of_two(torch.matmul), 2),
        lambda a, b, z, r: (a * (r / away(z) @ b.mT) / 2, b * (a.mT @ (r / away(z))) / 2),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_function_the_gradient_and_the_relevance(name):
    module, by_hand = CASES[name]
    adapted = adapt(module)
    leaves = random(4, 4).requires_grad_(), random(4, 4).requires_grad_()
    relevance = random(4, 4)
    output = module(*leaves)
    assert torch.allclose(adapted(*leaves), output, rtol=1e-14, atol=1e-14)
    expected = torch.autograd.grad(output, leaves, relevance)
    gradients = torch.autograd.grad(adapted(*leaves), leaves, relevance)
    for one, wanted in zip(gradients, expected, strict=True):
        assert torch.allclose(one, wanted, rtol=1e-12, atol=1e-14)
    wanted = by_hand(*(leaf.detach() for leaf in leaves), output.detach(), relevance)
    with EpsilonPlus(stabilizer=EPSILON, canonizers=[]).context(adapted):
        found = torch.autograd.grad(adapted(*leaves), leaves, relevance, allow_unused=True)
    for leaf, one, by_rule in zip(leaves, found, wanted, strict=True):
        assert torch.allclose(torch.zeros_like(leaf) if one is None else one, by_rule, rtol=1e-12, atol=1e-13)


def test_shapes_broadcast_and_an_operand_may_be_a_number():
    a, b = random(2, 3, 4), random(3, 1)
    for adapted, function in ((adapt(Add()), operator.add), (adapt(Subtract()), operator.sub)):
        assert torch.equal(adapted(a, b), function(a, b))
        assert torch.equal(adapted(2, b), function(2, b))
        assert adapted(a.int(), 0.5).dtype == torch.float32
    for signal in (None, 0):
        assert torch.equal(SignalTimesGate(operator.truediv, signal)(b, a), b / a)
    assert torch.equal(SignalTimesGate(operator.truediv, None)(2.0, a), 2 / a)


def test_relevance_of_a_signal_that_was_broadcast_is_summed():
    signal, gate, relevance = random(3, 1).requires_grad_(), random(2, 3, 4), random(2, 3, 4)
    gated = SignalTimesGate(operator.mul, 0)
    with EpsilonPlus().context(gated):
        (found,) = torch.autograd.grad(gated(signal, gate), signal, relevance)
    assert torch.allclose(found, relevance.sum((0, 2))[:, None], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("module", "kind"), [(nn.LayerNorm(3), Activation), (nn.GroupNorm(1, 3), Activation), (nn.Upsample(2), Sum)]
)
def test_a_twin_is_of_its_own_type_and_of_the_one_that_composites_know(module, kind):
    twin = adapt(module)
    assert isinstance(twin, kind)
    assert isinstance(twin, type(module))
    assert type(twin) is type(adapt(module))
    x = random(2, 3) if kind is Activation else random(1, 3, 3)
    assert torch.equal(twin.double()(x), module.double()(x))
    hook = EpsilonPlus().module_map({}, "", twin)
    assert isinstance(hook, Pass if kind is Activation else Norm)


def test_what_composites_know_and_what_nobody_knows_stays_itself():
    class Own(nn.LayerNorm):
        def forward(self, input):
            return super().forward(input) * 2

    for module in (nn.ReLU(), nn.AvgPool2d(2), nn.Linear(1, 1), Own(3)):
        assert adapt(module) is module


def test_a_class_of_a_user_that_computes_the_same_is_adapted_and_still_of_that_class():
    class Own(nn.GroupNorm):
        def __init__(self, channels):
            super().__init__(1, channels)

    twin = adapt(Own(3))
    assert isinstance(twin, Own)
    assert isinstance(EpsilonPlus().module_map({}, "", twin), Pass)
    assert isinstance(LayerMapComposite([(Own, Norm())]).module_map({}, "", twin), Norm)
