"""Gradients of a relevance map reach the parameters of the original model: against finite differences."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from zennit.attribution import Gradient
from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus
from zennit.core import Composite

from canon_bridge.zennit import ModelCanonizer
from tests.support.snapshot import Snapshot

pytestmark = pytest.mark.zennit


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.act, self.conv = nn.BatchNorm2d(width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv(self.act(self.norm(x)))


def randomized(model):
    """Scales of both signs, away from zero, where a merge turns around and no map has a derivative; a large eps."""
    model.double().eval()
    generator = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 0.1
            values = torch.rand(4, norm.num_features, generator=generator, dtype=torch.float64)
            signs = torch.randint(0, 2, (norm.num_features,), generator=generator) * 2 - 1
            with torch.no_grad():
                norm.running_mean.copy_(values[0] - 0.5)
                norm.running_var.copy_(values[1] + 0.5)
                norm.weight.copy_((values[2] + 0.5) * signs)
                norm.bias.copy_(values[3] - 0.3)
    return model


def build(activation=nn.ReLU, weight_norm=False):
    torch.manual_seed(0)
    second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(parametrizations.weight_norm(second) if weight_norm else second, nn.MaxPool2d(2)),
        *(nn.BatchNorm2d(4), activation(), Residual(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )
    return randomized(model)


COMPOSITES = {
    "no rules": lambda canonizers: Composite(canonizers=canonizers),
    "EpsilonPlus": lambda canonizers: EpsilonPlus(epsilon=0.1, canonizers=canonizers),
    "EpsilonAlpha2Beta1": lambda canonizers: EpsilonAlpha2Beta1(epsilon=0.1, canonizers=canonizers),
    "EpsilonGammaBox": lambda canonizers: EpsilonGammaBox(-3.0, 3.0, epsilon=0.1, canonizers=canonizers),
}


def loss_of(model, composite, x, direction, canonizer, attr_output=None):
    composite = COMPOSITES[composite]([canonizer])
    with Gradient(model, composite=composite, create_graph=True) as attributor:
        _, relevance = attributor(x, attr_output)
        return (relevance * direction).sum()


def finite_difference(model, steps, loss, h):
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, step in zip(moved.parameters(), steps, strict=True):
                parameter += sign * h * step
        values.append(loss(moved).item())
    return (values[0] - values[1]) / (2 * h)


def deviation(model, composite, differentiable=True, **options):
    """Return how far the gradient is from the finite difference, relative, along one direction of the parameters."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64, generator=generator)
    direction = torch.randn(2, 2, 6, 6, dtype=torch.float64, generator=generator)
    steps = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in model.parameters()]

    def loss(some):
        canonizer = ModelCanonizer(differentiable=differentiable, **options)
        return loss_of(some, composite, x.clone().requires_grad_(), direction, canonizer)

    gradients = torch.autograd.grad(loss(model), list(model.parameters()), allow_unused=True)
    along = sum((g * s).sum().item() for g, s in zip(gradients, steps, strict=True) if g is not None)
    expected = finite_difference(model, steps, loss, 1e-6)
    return abs(along - expected) / abs(expected)


@pytest.mark.parametrize("clipped", ["absorb", "pass"])
@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("composite", COMPOSITES)
def test_gradients_of_relevance_are_finite_differences(composite, prefer, clipped):
    assert deviation(build(), composite, prefer=prefer, clipped=clipped) < 1e-6


@pytest.mark.parametrize("activation", [nn.SiLU, nn.LeakyReLU])
@pytest.mark.parametrize("clipped", ["absorb", "pass"])
def test_other_activations_that_absorb(activation, clipped):
    assert deviation(build(activation), "EpsilonPlus", prefer="right", clipped=clipped) < 1e-6


@pytest.mark.parametrize("prefer", ["left", "right"])
def test_computed_weights(prefer):
    assert deviation(build(weight_norm=True), "EpsilonPlus", prefer=prefer) < 1e-6


def test_leftovers():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Softplus(), nn.Flatten(), nn.Softmax(1), nn.Linear(72, 3))
    assert deviation(randomized(model), "EpsilonPlus", leftover="linear") < 1e-6


@pytest.mark.parametrize("composite", COMPOSITES)
def test_the_default_cuts_the_graph(composite):
    with pytest.raises((AssertionError, RuntimeError), match=r"assert|does not require grad"):
        assert deviation(build(), composite, differentiable=False) < 1e-2


def test_a_constant_output_gradient_has_to_require_gradients():
    model = build()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    direction = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    steps = [torch.randn_like(p) for p in model.parameters()]

    def along(requires_grad):
        output = torch.eye(3, dtype=torch.float64)[:2].requires_grad_(requires_grad)

        def loss(some):
            leaf = x.clone().requires_grad_()
            return loss_of(some, "EpsilonPlus", leaf, direction, ModelCanonizer(differentiable=True), output)

        gradients = torch.autograd.grad(loss(model), list(model.parameters()), allow_unused=True)
        total = sum((g * s).sum().item() for g, s in zip(gradients, steps, strict=True) if g is not None)
        return total, finite_difference(model, steps, loss, 1e-6)

    got, expected = along(True)
    assert abs(got - expected) < 1e-6 * abs(expected)
    got, expected = along(False)
    assert abs(got - expected) > 1e-2 * abs(expected)


def test_training_with_explanations_changes_the_model_and_leaves_it_itself():
    model = build()
    before = Snapshot(model)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    direction = torch.randn_like(x)
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(5):
        canonizer = ModelCanonizer(differentiable=True)
        loss = loss_of(model, "EpsilonPlus", x.clone().requires_grad_(), direction, canonizer)
        assert before.differences() == [] or losses
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_the_map_is_that_of_the_default_to_rounding():
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    maps = []
    for differentiable in (False, True):
        composite = EpsilonPlus(canonizers=[ModelCanonizer(differentiable=differentiable)])
        with Gradient(build(), composite=composite) as attributor:
            maps.append(attributor(x.clone().requires_grad_())[1])
    assert torch.equal(*maps)


def test_parameters_that_need_no_gradients_stay_plain():
    model = build().requires_grad_(False)
    canonizer = ModelCanonizer(differentiable=True)
    (handle,) = canonizer.apply(model)
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())
    handle.remove()


def test_an_optimizer_made_inside_is_refused():
    model = build()
    (handle,) = ModelCanonizer(differentiable=True).apply(model)
    with pytest.raises(ValueError, match="non-leaf"):
        torch.optim.SGD(model.parameters(), 0.1)
    handle.remove()


def test_a_stored_state_holds_plain_parameters_and_a_copy_is_refused():
    model = build()
    (handle,) = ModelCanonizer(differentiable=True).apply(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert type(state["0.weight"]) is nn.Parameter
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    handle.remove()
    copy.deepcopy(model)
    handle.remove()
