"""LRP and LayerLRP for Captum: repeatable, complete, nothing left on the model, clear errors."""

import pytest
import torch
import torchvision
from torch import nn

from canon_bridge.captum import LRP, LayerLRP, presets, rules
from tests.support.errors import relative_error
from tests.support.models import TARGET, images, small_densenet
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

TOLERANCE = 1e-12


class TwoInputs(nn.Module):
    """Two images whose features are added by an operator, and an offset that is no input."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4 * 64, 5)

    def forward(self, a, b, offset=0.0):
        features = self.mix(self.norm(self.left(a) + self.right(b)).relu())
        return self.head(features.flatten(1)) + offset


@pytest.fixture
def two_inputs():
    return randomize(TwoInputs().double())


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("preset", [presets.epsilon(), presets.epsilon_plus()], ids=lambda preset: preset.name)
def test_second_call_gives_the_same_bits_and_nothing_is_left(preset, prefer):
    model, x = small_densenet(), images()
    snapshot = Snapshot(model)
    lrp = LRP(model, preset, prefer=prefer)
    first = lrp.attribute(x, target=TARGET)
    snapshot.check()
    assert first.equal(lrp.attribute(x, target=TARGET))
    assert first.shape == x.shape
    assert not first.requires_grad
    assert not x.requires_grad
    snapshot.check()


def test_the_input_keeps_its_flags_and_gradient():
    x = images().requires_grad_()
    x.grad = torch.ones_like(x)
    LRP(small_densenet()).attribute(x, target=TARGET)
    assert x.requires_grad
    assert x.grad.equal(torch.ones_like(x))


def test_under_no_grad_and_inference_mode():
    model, x = small_densenet(), images()
    expected = LRP(model).attribute(x, target=TARGET)
    with torch.no_grad():
        assert LRP(model).attribute(x, target=TARGET).equal(expected)
    with torch.inference_mode():
        assert LRP(model).attribute(x, target=TARGET).equal(expected)


def test_examples_of_a_batch_do_not_mix():
    model, x = small_densenet(), images(3)
    together = LRP(model).attribute(x, target=[0, 1, 2])
    for index in range(3):
        alone = LRP(model).attribute(x[index : index + 1], target=index)
        assert relative_error(together[index : index + 1], alone) < TOLERANCE


def test_convergence_delta_is_score_less_sum():
    model, x = small_densenet(), images()
    relevance, delta = LRP(model).attribute(x, target=TARGET, return_convergence_delta=True)
    score = model(x)[:, TARGET].detach()
    assert delta.shape == (2,)
    assert relative_error(score - relevance.sum((1, 2, 3)), delta) < TOLERANCE


def test_several_inputs_and_additional_arguments(two_inputs):
    a, b = images(2, 8), images(2, 8).flip(0)
    relevance = LRP(two_inputs, presets.epsilon(1e-30)).attribute((a, b), target=TARGET, additional_forward_args=2.0)
    leaves = (a.clone().requires_grad_(), b.clone().requires_grad_())
    gradients = torch.autograd.grad(two_inputs(*leaves, 2.0)[:, TARGET].sum(), leaves)
    assert isinstance(relevance, tuple)
    for value, leaf, gradient in zip(relevance, leaves, gradients, strict=True):
        assert relative_error(value, leaf * gradient) < TOLERANCE


def test_exception_in_forward_and_in_a_rule(monkeypatch):
    model, x = small_densenet(), images()
    snapshot = Snapshot(model)
    lrp = LRP(model)
    with pytest.raises(ValueError, match=r"target 99 does not select one value for each example .*\(2, 5\)"):
        lrp.attribute(x, target=99)
    snapshot.check()
    monkeypatch.setattr(rules.ZPlus, "propagate", lambda *_: (_ for _ in ()).throw(KeyError("in a rule")))
    with pytest.raises(KeyError, match="in a rule"):
        lrp.attribute(x, target=TARGET)
    snapshot.check()
    assert not x.requires_grad


def test_a_parameter_in_a_function_of_one_input():
    class Power(nn.Module):
        def __init__(self):
            super().__init__()
            self.exponent = nn.Parameter(torch.full((1,), 2.0))

        def forward(self, x):
            return x**self.exponent

    class Square(nn.Module):
        def forward(self, x):
            return x.square()

    def model_of(layer):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), layer, nn.Flatten(), nn.Linear(4 * 64, 5)).double().eval()

    x = images(1, 8)
    expected = LRP(model_of(Square())).attribute(x, target=TARGET)
    assert relative_error(LRP(model_of(Power())).attribute(x, target=TARGET), expected) < 1e-12


def test_errors_at_construction():
    with pytest.raises(TypeError, match=r"model is a str; it must be a torch\.nn\.Module"):
        LRP("model")
    with pytest.raises(ValueError, match=r"norm is in training mode.*call model\.eval\(\) first"):
        LRP(TwoInputs())
    with pytest.raises(ValueError, match="clipped is 'both'"):
        LRP(small_densenet(), clipped="both")
    with pytest.raises(TypeError, match=r"preset is epsilon \(function\); it must be .* with parentheses"):
        LRP(small_densenet(), presets.epsilon)
    with pytest.raises(TypeError, match=r"preset is 'epsilon_plus' \(str\); it must be a preset"):
        LayerLRP(small_densenet(), small_densenet(), "epsilon_plus")


def test_resnet_of_torchvision_with_bottlenecks():
    model = randomize(torchvision.models.resnet50(num_classes=5).double())
    x = images(1, 32).requires_grad_()
    expected = x * torch.autograd.grad(model(x)[:, TARGET].sum(), x)[0]
    assert relative_error(LRP(model, presets.epsilon(1e-30)).attribute(x, target=TARGET), expected) < TOLERANCE
