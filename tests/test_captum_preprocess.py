"""The step before Captum's own LRP: it runs, it is right, and nothing is left on the model."""

import copy

import captum.attr
import pytest
import torch
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule
from torch import nn

import canon_bridge.captum
from canon_bridge.captum import LRP, presets
from tests.conftest import Snapshot, alive, relative_error
from tests.models import NAMES, TARGET, gradient_times_input, images, network, small_densenet


@pytest.mark.parametrize("name", NAMES)
def test_pre_processing_step_for_captums_own_lrp(name):
    model, x = network(name), images(1)
    snapshot = Snapshot.of(model)
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
    snapshot = Snapshot.of(model)
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


def test_our_rules_in_captums_own_lrp():
    model, x = small_densenet(), images()
    expected = LRP(model, presets.epsilon(1e-9)).attribute(x, target=TARGET)
    with canon_bridge.captum.canonize(model):
        for name, rule in presets.epsilon(1e-9).assign(model).items():
            if not isinstance(model.get_submodule(name), nn.ReLU):
                model.get_submodule(name).rule = rule
        relevance = captum.attr.LRP(model).attribute(x, target=TARGET)
    # Max pooling has Captum's epsilon rule there: the same where the maximum is not near zero.
    assert relative_error(relevance, expected) < 1e-6
