"""One attribution on the canonical model: planned as often as it must be, for every kind of argument and target."""

import pytest
import torch
from torch import nn
from zennit.composites import EpsilonPlus

import canon_bridge.captum.canonical
from canon_bridge.captum import LRP, LayerLRP, presets
from canon_bridge.zennit import ModelCanonizer
from tests.captum.test_lrp import TOLERANCE, TwoInputs
from tests.support.errors import relative_error
from tests.support.models import TARGET, images, small_densenet
from tests.support.statistics import randomize


def test_targets_of_a_segmentation_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    randomize(model.double())
    x = images(2, 8).requires_grad_()
    expected = x * torch.autograd.grad(model(x)[:, 1, 2, 3].sum(), x)[0]
    relevance = LRP(model, presets.epsilon(1e-30)).attribute(x, target=(1, 2, 3))
    assert relative_error(relevance, expected) < TOLERANCE
    with pytest.raises(ValueError, match="target None does not select one value for each example"):
        LRP(model).attribute(x)


def test_new_weights_and_new_modules_are_seen():
    two_inputs = randomize(TwoInputs().double())
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


def test_an_attribute_where_captum_keeps_rules_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    model[1].rule = "mean"
    for make in (LRP, lambda m: LayerLRP(m, m[0])):
        with pytest.raises(TypeError, match=r"1 \(Flatten\) has the attribute rule = 'mean'"):
            make(model)


@pytest.mark.zennit
def test_a_model_with_rules_of_zennit_on_it_is_refused():
    model, x = small_densenet(), images()
    with (
        EpsilonPlus(canonizers=[ModelCanonizer()]).context(model),
        pytest.raises(RuntimeError, match="has a rule of zennit on it: both would act on one map"),
    ):
        LRP(model, presets.epsilon_plus()).attribute(x, target=1)
    assert LRP(model, presets.epsilon_plus()).attribute(x, target=1).abs().sum() > 0


class Doubles(nn.Module):
    """Only values tell what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2, bias=False)

    def forward(self, x):
        return self.layer(x) * (2 if x.sum() > 0 else -3)


def test_a_model_of_values_is_traced_anew_for_another_shape_and_not_for_the_same(monkeypatch):
    plans = []

    def counted(*arguments, canonization=canon_bridge.captum.canonical.Canonization, **keywords):
        plans.append(keywords)
        return canonization(*arguments, **keywords)

    monkeypatch.setattr(canon_bridge.captum.canonical, "Canonization", counted)
    model = Doubles().double().eval()
    lrp = LRP(model, presets.epsilon(1e-30))
    x = torch.rand(2, 3, dtype=torch.float64)
    for given, factor, traced in ((x, 2, True), (x + 1, 2, False), (-x[:1], -3, True), (x, 2, True)):
        before = len(plans)
        found = lrp.attribute(given, target=1)
        assert relative_error(found, factor * model.layer.weight[1] * given) < TOLERANCE
        assert bool(plans[before:]) is traced


def test_inputs_of_integers_and_outputs_that_are_no_tensor_are_refused():
    lrp = LRP(nn.Sequential(nn.Linear(2, 2)).eval(), presets.epsilon())
    with pytest.raises(TypeError, match=r"inputs hold integers \(torch\.int64\).*use LayerLRP"):
        lrp.attribute(torch.ones(1, 2, dtype=torch.int64), target=0)

    class Pair(nn.Module):
        def forward(self, x):
            return 2 * x, x

    with pytest.raises(TypeError, match=r"the model returns a tuple; .*return self\.model\(x\)\[0\]"):
        LRP(Pair().eval()).attribute(torch.ones(1, 2), target=0)
    for inputs in (None, [torch.ones(1, 2)], torch.ones(1, 2).numpy(), (torch.ones(1, 2), 3)):
        with pytest.raises(TypeError, match=r"inputs hold a \w+; they must be a tensor"):
            lrp.attribute(inputs, target=0)


@pytest.mark.parametrize(
    "factor",
    [lambda x: 2 if x.sum() > 0 else -3, lambda x: float(x.detach().sum())],
    ids=["a branch", "a number"],
)
def test_inputs_that_take_another_course_are_traced_anew(factor):
    class Course(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x) * factor(x)

    model = Course().double().eval()
    lrp = LRP(model, presets.epsilon(1e-30))
    x = torch.rand(2, 4, dtype=torch.float64)
    for value in (x, -x, x, x + 1):
        found = lrp.attribute(value, target=1)
        leaf = value.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
        torch.testing.assert_close(found, gradient * value)
