"""LRP and LayerLRP for Captum: repeatable, complete, nothing left on the model, clear errors."""

import pytest
import torch
import torchvision
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, IdentityRule
from torch import nn
from zennit.composites import EpsilonPlus

from canon_bridge.captum import LRP, LayerLRP, presets, rules
from canon_bridge.zennit import ModelCanonizer
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


def test_targets_of_a_segmentation_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    randomize(model.double())
    x = images(2, 8).requires_grad_()
    expected = x * torch.autograd.grad(model(x)[:, 1, 2, 3].sum(), x)[0]
    relevance = LRP(model, presets.epsilon(1e-30)).attribute(x, target=(1, 2, 3))
    assert relative_error(relevance, expected) < TOLERANCE
    with pytest.raises(ValueError, match="target is None and leaves an output of shape"):
        LRP(model).attribute(x)


def test_layer_relevance_at_the_ends():
    model, x = small_densenet(), images()
    relevance = LRP(model).attribute(x, target=TARGET)
    at_input = LayerLRP(model, model.features.conv0).attribute(x, target=TARGET, attribute_to_layer_input=True)
    assert at_input.equal(relevance)
    at_output = LayerLRP(model, model.classifier).attribute(x, target=TARGET)
    score = torch.zeros_like(at_output)
    score[:, TARGET] = model(x)[:, TARGET].detach()
    assert relative_error(at_output, score) < TOLERANCE


def test_layer_relevance_of_containers_and_lists_is_continuous():
    model, x = small_densenet(), images()
    layers = [model.features.denseblock2, model.features.transition2, model.features.transition1.conv]
    out = LayerLRP(model, layers).attribute(x, target=TARGET)
    into = LayerLRP(model, layers).attribute(x, target=TARGET, attribute_to_layer_input=True)
    assert isinstance(out, list)
    # What leaves the transition enters the block before it; a pool stands between conv and block.
    assert into[1].equal(out[0])
    assert [tuple(value.shape[:2]) for value in out] == [(2, 32), (2, 16), (2, 16)]
    values, deltas = LayerLRP(model, layers).attribute(x, target=TARGET, return_convergence_delta=True)
    assert relative_error(model(x)[:, TARGET] - values[0].sum((1, 2, 3)), deltas[0]) < TOLERANCE


def test_layer_that_does_not_run_once():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 64, 5)).double()
    unused = nn.Linear(1, 1)
    model[0].unused = None
    with pytest.raises(ValueError, match=r"ran 0 times.*it must run once"):
        LayerLRP(model.eval(), unused).attribute(images(1, 8), target=TARGET)


def test_exception_in_forward_and_in_a_rule(monkeypatch):
    model, x = small_densenet(), images()
    snapshot = Snapshot(model)
    lrp = LRP(model)
    with pytest.raises((AssertionError, IndexError)):
        lrp.attribute(x, target=99)
    snapshot.check()
    monkeypatch.setattr(rules.ZPlus, "propagate", lambda *_: (_ for _ in ()).throw(KeyError("in a rule")))
    with pytest.raises(KeyError, match="in a rule"):
        lrp.attribute(x, target=TARGET)
    snapshot.check()
    assert not x.requires_grad


def test_rule_set_by_hand_counts_and_stays():
    model, x = small_densenet(), images()
    usual = LRP(model).attribute(x, target=TARGET)
    rule = rules.Epsilon(0.5)
    model.features.conv0.rule = rule
    try:
        lrp = LRP(model)
        changed = lrp.attribute(x, target=TARGET)
        assert model.features.conv0.rule is rule
        assert changed.equal(lrp.attribute(x, target=TARGET))
        assert relative_error(changed, usual) > 1e-3
        model.features.conv0.rule = EpsilonRule(0.5)
        assert LRP(model).attribute(x, target=TARGET).equal(changed)
        model.features.norm0.rule = IdentityRule()
        assert LRP(model).attribute(x, target=TARGET).equal(changed)
        model.features.conv0.rule = Alpha1_Beta0_Rule()
        with pytest.raises(TypeError, match=r"features\.conv0 has the rule Alpha1_Beta0_Rule"):
            LRP(model).attribute(x, target=TARGET)
    finally:
        del model.features.conv0.rule, model.features.norm0.rule


def test_a_linear_layer_without_a_rule():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 5)).double().eval()
    snapshot = Snapshot(model)
    preset = presets.Preset([*presets.layer_map_base(), (nn.Linear, rules.Epsilon())])
    with pytest.raises(TypeError, match=r"0 \(Conv2d\) is a linear layer.*no rule.*layer_map=\[\(Conv2d, rules"):
        LRP(model, preset).attribute(images(1, 8), target=TARGET)
    snapshot.check()


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


def test_new_weights_and_new_modules_are_seen(two_inputs):
    a, b = images(2, 8), images(2, 8).flip(0)
    lrp = LRP(two_inputs)
    before = lrp.attribute((a, b), target=TARGET)
    randomize(two_inputs, seed=7)
    after = lrp.attribute((a, b), target=TARGET)
    assert relative_error(after[0], before[0]) > 1e-3
    two_inputs.head = nn.Linear(4 * 64, 5).double()
    assert lrp.attribute((a, b), target=TARGET)[0].equal(LRP(two_inputs).attribute((a, b), target=TARGET)[0])


class Conditioned(nn.Module):
    """A condition that is not always given, and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.embed, self.head = nn.Linear(2, 4), nn.Linear(4, 5)

    def forward(self, x, condition=None, doubled=False):
        features = self.norm(self.conv(x)).relu().mean((2, 3))
        if condition is not None:
            features = features + self.embed(condition)
        return self.head(2 * features if doubled else features)


@pytest.mark.parametrize("prefer", ["left", "right"])
def test_optional_arguments_may_be_given_and_left_out(prefer):
    model, x = randomize(Conditioned().double()), images()
    condition = torch.randn(len(x), 2, dtype=torch.float64)
    lrp = LRP(model, preset=presets.epsilon(1e-30), prefer=prefer)
    for inputs, more in [
        ((x,), None),
        ((x, condition), None),
        ((x,), (None, True)),
        ((x, condition), True),
        ((x,), None),
    ]:
        leaves = [value.clone().requires_grad_() for value in inputs]
        rest = () if more is None else more if isinstance(more, tuple) else (more,)
        gradients = torch.autograd.grad(model(*leaves, *rest)[:, TARGET].sum(), leaves)
        found = lrp.attribute(inputs, target=TARGET, additional_forward_args=more)
        for relevance, gradient, leaf in zip(found, gradients, leaves, strict=True):
            assert relative_error(relevance, (gradient * leaf).detach()) < TOLERANCE


def test_verbose_names_rules_and_modules(capsys):
    model, x = small_densenet(), images()
    LRP(model).attribute(x, target=TARGET, verbose=True)
    printed = capsys.readouterr().out
    assert "ZPlus on features.conv0 (Conv2d)" in printed
    assert "Norm on adaptive_avg_pool2d (AdaptiveAvgPool2d)" in printed


def test_resnet_of_torchvision_with_bottlenecks():
    model = randomize(torchvision.models.resnet50(num_classes=5).double())
    x = images(1, 32).requires_grad_()
    expected = x * torch.autograd.grad(model(x)[:, TARGET].sum(), x)[0]
    assert relative_error(LRP(model, presets.epsilon(1e-30)).attribute(x, target=TARGET), expected) < TOLERANCE


@pytest.mark.zennit
def test_a_model_with_rules_of_zennit_on_it_is_refused():
    model, x = small_densenet(), images()
    with (
        EpsilonPlus(canonizers=[ModelCanonizer()]).context(model),
        pytest.raises(RuntimeError, match="has a rule of zennit on it: both would act on one map"),
    ):
        LRP(model, presets.epsilon_plus()).attribute(x, target=1)
    assert LRP(model, presets.epsilon_plus()).attribute(x, target=1).abs().sum() > 0
