"""Relevance after an affine map that was absorbed: which share of it an activation lets pass to its input.

Rules put the relevance of a module's output on its input (Pass); what the activation does about it stands in front of
the module. LRP-0 of the linear layer behind it is ``h * gradient``, so the oracle is gradient times input.
"""

import pytest
import torch
from torch import Tensor, nn

from canon_bridge.captum import LRP, presets
from canon_bridge.core.activations import absorb_into_relu
from canon_bridge.core.affine import Affine
from canon_bridge.core.restore import Edits
from tests.core.test_activations_general import (
    ACTIVATION,
    KINDS,
    NORMAL,
    SHIFTS,
    SMALL,
    absorb,
    apply,
    grid,
    inputs,
    make,
)
from tests.core.test_activations_relu_relevance import pass_by_backward_hook, pass_by_function
from tests.support.errors import relative_error
from tests.support.models import TARGET, gradient_times_input
from tests.support.statistics import randomize

LEAKY = (nn.LeakyReLU, nn.PReLU, nn.RReLU)
BY_PIECES = (nn.ReLU, *LEAKY)
SMOOTH = [kind for kind in KINDS if kind not in BY_PIECES]
ATTACH = pytest.mark.parametrize("attach", [pass_by_backward_hook, pass_by_function])


def arrived(module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """Return the relevance at the input of a module that carries a Pass rule."""
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(module(x), x, relevance)[0]


def share(kind: type[nn.Module], affine: Affine, x: Tensor, clip: bool = True) -> Tensor:
    module = make(kind, affine.scale.numel())
    absorb(module, affine, clip)
    pass_by_backward_hook(module)
    return arrived(module, x, torch.ones_like(x))


@ATTACH
@ACTIVATION
def test_with_pass_everything_arrives(kind: type[nn.Module], attach) -> None:
    affine = grid((*NORMAL, *SMALL, 0.0), SHIFTS)
    module, x = make(kind, affine.scale.numel()), inputs(affine)
    absorb(module, affine, clip=False)
    attach(module)
    relevance = torch.randn_like(x)
    assert torch.equal(arrived(module, x, relevance), relevance)


@ATTACH
@pytest.mark.parametrize("kind", BY_PIECES)
def test_lrp_0_through_a_piecewise_linear_one_is_gradient_times_input(kind: type[nn.Module], attach) -> None:
    affine = grid((*NORMAL, *SMALL, 0.0), SHIFTS)
    reference, module = make(kind, affine.scale.numel()), make(kind, affine.scale.numel())
    left = absorb(module, affine, clip=True)
    attach(module)
    x, weight = inputs(affine), torch.randn(affine.scale.numel(), dtype=torch.float64)
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reference(apply(affine, at)), at, weight.expand_as(x))
    expected = gradient * x
    # LRP-0 of a linear layer with weight w e after g gives its input w e g(x); the bias w d takes the rest.
    contribution = weight * left.scale * make_general(kind, affine)(x)
    value = arrived(module, x, contribution)
    before = apply(affine, x)
    # Where z is lost next to b, either side of the kink is right.
    clear = before.abs() > 1e-9 * affine.shift.abs()
    assert float(clear.double().mean()) > 0.8
    scale = weight.abs() * (affine.scale * x).abs() + 1e-300
    # What g loses where s x is small next to b, it loses here.
    rounding = 1e-14 * (1 + affine.shift.abs() / (affine.scale * x).abs().clamp(min=1e-300))
    assert bool((((value - expected).abs() / scale)[clear] <= rounding[clear]).all())
    normal = clear & (affine.scale.abs() > 0.1)
    wrong = {"everything": contribution, "nothing": 0 * contribution, "slope alone": gradient / gradient.abs()}
    if kind is not nn.ReLU:
        wrong["a mask"] = contribution * (before > 0)
    for name, other in wrong.items():
        assert not relative_error(other[normal], expected[normal]) < 1e-3, name


def make_general(kind: type[nn.Module], affine: Affine) -> nn.Module:
    module = make(kind, affine.scale.numel())
    absorb(module, affine, clip=False)
    return module


@pytest.mark.parametrize("kind", SMOOTH)
def test_the_share_of_a_smooth_one_lies_between_none_and_all(kind: type[nn.Module]) -> None:
    affine = grid((*NORMAL, *SMALL, 0.0), SHIFTS)
    x = inputs(affine)
    value, before = share(kind, affine, x), apply(affine, x)
    assert float(value.min()) >= 0
    assert float(value.max()) <= 1
    expected = make(kind)(before) / before
    inside = (expected > 0) & (expected < 1) & (affine.scale != 0)
    assert torch.allclose(value[inside], expected[inside].detach(), rtol=1e-12)
    assert bool((value[(expected <= 0) & (before != 0)] == 0).all())
    assert bool((value[(expected >= 1) & (affine.scale != 0)] == 1).all())
    assert bool((value[:, affine.scale == 0] == 0).all())
    # Not everything, and not the derivative.
    assert float((1 - value).max()) > 0.4


def test_the_share_of_a_silu_is_its_gate() -> None:
    affine = grid(NORMAL, SHIFTS)
    x = inputs(affine)
    value = share(nn.SiLU, affine, x)
    assert torch.allclose(value, torch.sigmoid(apply(affine, x)), rtol=1e-12)


def test_the_general_form_of_a_relu_is_the_thresholded_relu() -> None:
    # Leaky with slope zero, another code path: the same relevance.
    affine = grid(NORMAL, SHIFTS)
    x, leaky, relu = inputs(affine), nn.LeakyReLU(0.0).double(), nn.ReLU()
    absorb(leaky, affine, clip=True)
    absorb_into_relu(Edits(), relu, affine, True)
    relevance = torch.randn_like(x)
    for module in (leaky, relu):
        pass_by_backward_hook(module)
    # a x / g(x) is 1 where the unit is active, because g(x) is x there.
    assert torch.allclose(arrived(leaky, x, relevance), arrived(relu, x, relevance), rtol=1e-9, atol=1e-12)
    assert torch.allclose(leaky(x), relu(x), rtol=1e-9, atol=1e-9)


@ACTIVATION
def test_nan_relevance_stops_where_nothing_passes(kind: type[nn.Module]) -> None:
    affine = Affine(torch.tensor([0.0, 0.0]).double(), torch.tensor([1.0, -1.0]).double())
    module = make(kind, 2)
    absorb(module, affine, clip=True)
    pass_by_backward_hook(module)
    relevance = torch.tensor([[torch.nan, torch.inf]]).double()
    assert arrived(module, torch.ones(1, 2).double(), relevance).tolist() == [[0, 0]]


@ACTIVATION
def test_without_gradients_nothing_is_done(kind: type[nn.Module]) -> None:
    module, seen = make(kind), []
    absorb(module, Affine(torch.ones(1).double(), torch.ones(1).double()), clip=True)
    module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(3, 1).double()
    with torch.no_grad():
        module(x.requires_grad_())
    module(x.detach_())
    assert [value is x for value in seen] == [True, True]


# Torch has no second derivative of the hard sigmoid.
TWICE = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not nn.Hardsigmoid])


@TWICE
def test_second_derivatives(kind: type[nn.Module]) -> None:
    affine = Affine(torch.tensor([0.7, -1.3, 0.0]).double(), torch.tensor([0.33, -0.61, 0.5]).double())
    module, reference = make(kind, 3), make(kind, 3)
    left = absorb(module, affine, clip=False)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def second(function) -> Tensor:
        (first,) = torch.autograd.grad(function(x).pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x)[0]

    expected = second(lambda x: reference(apply(affine, x)))
    assert torch.allclose(second(lambda x: apply(left, module(x))), expected, rtol=1e-10, atol=1e-12)


@TWICE
def test_relevance_can_be_differentiated_by_what_arrives(kind: type[nn.Module]) -> None:
    affine = Affine(torch.tensor([0.7, -1.3, 0.0]).double(), torch.tensor([0.33, -0.61, 0.5]).double())
    module = make(kind, 3)
    absorb(module, affine, clip=True)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    relevance = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(module(x), x, relevance, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), relevance)
    # What passes is linear in what arrives.
    assert torch.allclose(second * relevance, first, rtol=1e-12, atol=1e-15)
    assert bool((second[:, :2] != 0).any())


def network(kind: type[nn.Module]) -> nn.Module:
    return randomize(
        nn.Sequential(
            nn.BatchNorm2d(3),
            make(kind, 3),
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            make(kind, 6),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(6 * 9, 5),
        ).double()
    )


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("kind", LEAKY)
def test_lrp_0_of_a_network_of_leaky_activations_is_gradient_times_input(kind: type[nn.Module], prefer: str) -> None:
    model, x = network(kind), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    expected = gradient_times_input(model, x)
    relevance = LRP(model, presets.epsilon(1e-30), prefer=prefer).attribute(x, target=TARGET)
    assert relative_error(relevance, expected) < 1e-12
    passed = LRP(model, presets.epsilon(1e-30), prefer=prefer, clipped="pass").attribute(x, target=TARGET)
    assert not relative_error(passed, expected) < 1e-3


def test_the_oracle_does_not_hold_for_smooth_ones() -> None:
    model, x = network(nn.SiLU), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    relevance = LRP(model, presets.epsilon(1e-30), prefer="right").attribute(x, target=TARGET)
    assert bool(relevance.isfinite().all())
    assert relative_error(relevance, gradient_times_input(model, x)) > 1e-3


@pytest.mark.parametrize("kind", LEAKY)
def test_where_g_is_zero_a_piecewise_linear_one_lets_pass_what_its_slope_says(kind: type[nn.Module]) -> None:
    affine = Affine(torch.tensor([2.0, -2.0]).double(), torch.ones(2).double())  # phi(b) = b, so that g(0) = 0
    module, x = make(kind, 2), torch.zeros(1, 2, dtype=torch.float64)
    absorb(module, affine)
    assert torch.equal(module(x), x)
    assert torch.equal(share(kind, affine, x), torch.ones_like(x))


@ACTIVATION
def test_after_two_maps_the_share_is_that_of_both_together(kind: type[nn.Module]) -> None:
    first = Affine(torch.rand(6).double() + 0.5, torch.randn(6).double())  # next to the activation
    second = Affine(torch.rand(6).double() + 0.5, torch.randn(6).double())
    module, x = make(kind, 6), inputs(first, (3,))
    absorb(module, first, clip=True)
    absorb(module, second, clip=True)
    pass_by_backward_hook(module)
    assert torch.equal(arrived(module, x, torch.ones_like(x)), share(kind, first.after(second), x))
