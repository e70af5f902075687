"""The step before Captum's own LRP: it runs, it is right, and nothing is left on the model."""

import copy

import captum.attr
import pytest
import torch
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule
from torch import nn

import canon_bridge.captum
from canon_bridge.captum import LRP, presets, rules
from tests.support.errors import alive, relative_error
from tests.support.models import NAMES, TARGET, Products, gradient_times_input, images, network, small_densenet
from tests.support.snapshot import Snapshot


@pytest.mark.parametrize("name", NAMES)
def test_pre_processing_step_for_captums_own_lrp(name):
    model, x = network(name), images(1)
    snapshot = Snapshot(model)
    with canon_bridge.captum.canonize(model):
        assert alive(model) == []
        first = captum.attr.LRP(model).attribute(x, target=TARGET)
        second = captum.attr.LRP(model).attribute(x, target=TARGET)
    assert first.equal(second)
    assert bool(torch.isfinite(first).all())
    snapshot.check()


def test_captums_own_rules_by_hand_leave_nothing_in_the_block():
    # Captum's Alpha1_Beta0_Rule moves weights to new storages and deletes the rule that the user has set.
    model, x = network("resnet18"), images(1)
    snapshot = Snapshot(model)
    with canon_bridge.captum.canonize(model):
        model.conv1.rule = Alpha1_Beta0_Rule()
        captum.attr.LRP(model).attribute(x, target=TARGET)
        assert "rule" not in vars(model.conv1)
    snapshot.check()


@pytest.mark.parametrize("build", [small_densenet, lambda: network("resnet18")], ids=["densenet", "resnet"])
def test_without_the_step_captum_is_wrong(build):
    model, x = copy.deepcopy(build()), images(1)
    expected = gradient_times_input(model, x)
    assert relative_error(captum.attr.LRP(model).attribute(x, target=TARGET), expected) > 1
    with canon_bridge.captum.canonize(model):
        assert relative_error(captum.attr.LRP(model).attribute(x, target=TARGET), expected) < 1e-4


PRESETS = [
    presets.epsilon(1e-6),
    presets.epsilon_plus(zero_params="bias"),
    presets.epsilon_plus_flat(stabilizer=1e-3),
    presets.epsilon_alpha2_beta1(),
    presets.epsilon_alpha2_beta1_flat(),
    presets.epsilon_gamma_box(-3.0, 3.0),
    presets.Preset(presets.epsilon_plus().layer_map, [(nn.Conv2d, rules.WSquare())], name="w square first"),
]


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_our_rules_in_captums_own_lrp(preset, prefer):
    model, x = small_densenet(), images()
    snapshot = Snapshot(model)
    expected = LRP(model, preset, prefer=prefer).attribute(x, target=TARGET)
    with canon_bridge.captum.canonize(model, prefer=prefer):
        for name, rule in preset.assign(model).items():
            model.get_submodule(name).rule = rule
        for module in model.modules():
            if isinstance(module, nn.MaxPool2d):  # Captum's own default is epsilon
                module.rule = rules.WinnerTakesAll()
        relevance = captum.attr.LRP(model).attribute(x, target=TARGET)
    assert relative_error(relevance, expected) < 1e-9
    snapshot.check()


def test_products_by_hand_in_captums_own_lrp():
    model, x = Products().double().eval(), images(size=8)
    preset = presets.epsilon_plus()
    expected = LRP(model, preset).attribute(x, target=TARGET)
    with canon_bridge.captum.canonize(model):
        assigned = preset.assign(model)
        assert rules.SignalTakesAll in map(type, assigned.values())
        for name, rule in assigned.items():
            model.get_submodule(name).rule = rule
        assert relative_error(captum.attr.LRP(model).attribute(x, target=TARGET), expected) < 1e-9
