"""What Captum's own LRP refuses or gets wrong, and what becomes of it here; zennit, or the formula, is the judge."""

import copy

import captum.attr
import pytest
import torch
import torchvision
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule
from torch import nn
from zennit.composites import EpsilonPlus
from zennit.rules import ZPlus

import canon_bridge.captum
from canon_bridge import audit
from canon_bridge.captum import LRP, presets
from canon_bridge.core import Divide, Multiply
from canon_bridge.zennit import ModelCanonizer
from tests.support.errors import relative_error
from tests.support.in_zennit import attribute
from tests.support.models import TARGET, Products, gradient_times_input, images, small_densenet
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

pytestmark = pytest.mark.zennit


class MyConv(nn.Conv2d):
    """A subclass as users write them."""

    def __init__(self) -> None:
        super().__init__(4, 4, 3)


MODULES = {
    "ReLU6": nn.ReLU6(),
    "SiLU": nn.SiLU(),
    "Sigmoid": nn.Sigmoid(),
    "Flatten": nn.Flatten(),
    "Identity": nn.Identity(),
    "StochasticDepth": torchvision.ops.StochasticDepth(0.5, "row"),
    "Conv1d": nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 3)),
    "ConvTranspose2d": nn.ConvTranspose2d(4, 4, 2, stride=2),
    "subclass of Conv2d": MyConv(),
    "Hardswish": nn.Hardswish(),
    "GELU": nn.GELU(),
    "BatchNorm1d": nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(4)),
}


def with_module(name):
    module = MODULES[name]
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), module, nn.Flatten())
    width = body.eval()(torch.zeros(1, 3, 8, 8)).shape[1]
    return randomize(nn.Sequential(*body, nn.Linear(width, 5)).double(), mild=True)


@pytest.mark.parametrize("name", MODULES)
def test_modules_that_captum_refuses(name):
    model, x = with_module(name), images(size=8)
    with pytest.raises(TypeError, match="has no rule defined"):
        captum.attr.LRP(copy.deepcopy(model)).attribute(x, target=TARGET)  # a copy, because it leaves rules on it
    before = Snapshot(model)
    expected = attribute(model, x, EpsilonPlus(canonizers=[ModelCanonizer()]))
    relevance = LRP(model).attribute(x, target=TARGET)
    assert relative_error(relevance, expected) < 1e-12
    assert audit(model, x, TARGET, LRP(model)).defect < 1e-12
    before.check()


def test_layer_norm_passes_here_and_has_its_gradient_in_zennit():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 5)).double().eval()
    x = images(size=8)
    with pytest.raises(TypeError, match="has no rule defined"):
        captum.attr.LRP(copy.deepcopy(model)).attribute(x, target=TARGET)
    relevance = LRP(model).attribute(x, target=TARGET)
    # The relevance at the output of the norm, times what the convolution does with it.
    leaf = model[:3](x).detach().requires_grad_()
    score = model[3](leaf)[:, TARGET]
    (gradient,) = torch.autograd.grad(score.sum(), leaf)
    handed = (gradient * leaf).detach().reshape(2, 4, 6, 6) * (score / (score + 1e-6 * score.sign())).view(2, 1, 1, 1)
    conv = torch.autograd.grad  # z plus by zennit on the convolution alone
    hook = ZPlus()
    handle = hook.register(model[0])
    leaf = x.clone().requires_grad_()
    (expected,) = conv(model[0](leaf), leaf, handed.detach())
    handle.remove()
    assert relative_error(relevance, expected) < 1e-9


def test_alpha1_beta0_is_wrong_for_negative_inputs():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).double().eval(), images(size=8)
    expected = attribute(model, x, EpsilonPlus())
    assert x.min() < -1
    assert relative_error(LRP(model).attribute(x, target=TARGET), expected) < 1e-12
    model[1] = Addition_Module()  # a type that Captum knows
    model[1].forward = lambda value: value.flatten(1)
    model[0].rule = Alpha1_Beta0_Rule()
    assert relative_error(captum.attr.LRP(model).attribute(x, target=TARGET), expected) > 0.5


def test_alpha1_beta0_explodes_on_a_canonical_densenet():
    model, x = small_densenet(), images()
    expected = attribute(model, x, EpsilonPlus(canonizers=[ModelCanonizer(prefer="right")]))
    assert relative_error(LRP(model, prefer="right").attribute(x, target=TARGET), expected) < 1e-12
    with canon_bridge.captum.canonize(model, prefer="right"):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.rule = Alpha1_Beta0_Rule()
        theirs = captum.attr.LRP(model).attribute(x, target=TARGET)
    assert relative_error(theirs, expected) > 1e3


class TwoConsumers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU()
        self.add, self.head = Addition_Module(), nn.Linear(144, 5)

    def forward(self, x):
        x = self.conv(x)
        return self.head(self.add(self.left(x), self.right(self.relu(x))).flatten(1))


def test_a_tensor_that_feeds_two_modules():
    model, x = TwoConsumers().double().eval(), images(size=8)
    expected = gradient_times_input(model, x)
    assert relative_error(captum.attr.LRP(model).attribute(x, target=TARGET), expected) > 0.1
    with canon_bridge.captum.canonize(model):
        assert relative_error(captum.attr.LRP(model).attribute(x, target=TARGET), expected) < 1e-6
    assert relative_error(LRP(model, presets.epsilon(1e-12)).attribute(x, target=TARGET), expected) < 1e-9


def test_captums_lrp_knows_every_module_that_canonization_puts_in():
    model, x = Products().double().eval(), images(size=8)
    expected = LRP(model, presets.epsilon(1e-9)).attribute(x, target=TARGET)
    with canon_bridge.captum.canonize(model):
        assert all(any(isinstance(module, kind) for module in model.modules()) for kind in (Multiply, Divide))
        relevance = captum.attr.LRP(model).attribute(x, target=TARGET)
    assert relative_error(relevance, expected) < 1e-3  # other stabilisers


class Doubled(nn.Conv2d):
    """A layer of a user, with an operation in its forward that becomes a module with a rule of its own."""

    def forward(self, x):
        return super().forward(x) * 2 + 1


def test_a_rule_on_a_module_that_has_others_inside():
    model, x = nn.Sequential(Doubled(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).double().eval(), images(size=8)
    lrp = LRP(model, presets.epsilon(1e-12))
    assert relative_error(lrp.attribute(x, target=TARGET), gradient_times_input(model, x)) < 1e-9
    report = audit(model, x, TARGET, lrp)
    assert report.defect < 1e-9
    assert {entry.calls for entry in report.entries} == {1}


def test_values_and_hooks_that_captum_leaves_when_it_is_interrupted_are_taken_back(monkeypatch):
    model = randomize(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Softmax(1), nn.Flatten(), nn.Linear(16, 5))
    )
    before = Snapshot(model)

    def interrupted(self):
        raise KeyboardInterrupt

    with canon_bridge.captum.canonize(model):
        model[4].rule = Alpha1_Beta0_Rule()
        model[2].rule, model[3].rule = EpsilonRule(), EpsilonRule()
        monkeypatch.setattr(captum.attr.LRP, "_restore_state", interrupted)
        with pytest.raises(KeyboardInterrupt):
            captum.attr.LRP(model).attribute(torch.randn(1, 3, 4, 4), target=TARGET)
        assert bool((model[4].weight >= 0).all())  # what the rule has left
        assert model[4]._forward_hooks or model[4]._forward_pre_hooks
    before.check()
