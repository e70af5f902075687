"""The rule on each module for the length of a block: what is said, what is refused, and what the user has set."""

import pytest
import torch
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, IdentityRule
from torch import nn

from canon_bridge.captum import LRP, presets, rules
from canon_bridge.captum.attach import attached
from tests.support.errors import relative_error
from tests.support.models import TARGET, images, small_densenet
from tests.support.snapshot import Snapshot


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


def test_verbose_names_rules_and_modules(capsys):
    model, x = small_densenet(), images()
    LRP(model).attribute(x, target=TARGET, verbose=True)
    printed = capsys.readouterr().out
    assert "ZPlus on features.conv0 (Conv2d)" in printed
    assert "Norm on adaptive_avg_pool2d (AdaptiveAvgPool2d)" in printed


@pytest.mark.parametrize("is_canonical", [False, True])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_rules_are_there_for_the_length_of_the_block_and_what_may_works_out_of_place(error, is_canonical):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(inplace=True)).double()
    nn.init.eye_(model[0].weight)
    x = torch.tensor([[3.0, -5.0]], dtype=torch.float64, requires_grad=True)
    preset = presets.Preset([(nn.Linear, rules.Epsilon(0.5)), (nn.ReLU, rules.Pass())])
    before = Snapshot(model)
    try:
        with attached(model, preset, is_canonical):
            assert model[1].inplace == is_canonical
            (found,) = torch.autograd.grad(model(x), x, torch.tensor([[1.0, 1.0]], dtype=torch.float64))
            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass
    before.check()
    # A gradient stops the second.
    assert found.tolist() == [pytest.approx([3 / 3.5, 0 if is_canonical else 5 / 5.5], rel=1e-14)]
