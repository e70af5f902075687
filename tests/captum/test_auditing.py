"""What the audit learns of a preset: the rule on a module, what it evaluates, and the model as the rules want it."""

import pytest
import torch
from torch import nn

from canon_bridge.auditing.flows import Visit
from canon_bridge.captum import LRP, presets, rules
from canon_bridge.captum.auditing import PresetRules
from canon_bridge.core import Add
from tests.support.errors import alive
from tests.support.models import PreActivation
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


def layer():
    """Return a layer of two outputs, which are 2 and -7 for 3 and -1."""
    module = nn.Linear(2, 2).double()
    module.weight.data.copy_(torch.tensor([[1.0, 2.0], [-2.0, -3.0]]))
    module.bias.data.copy_(torch.tensor([1.0, -4.0]))
    return module


def evaluations(rule, module=None, arguments=None, carries=(True,)):
    """Return factors, outputs and constants of a rule, with 6 and 14 as the relevance of the outputs."""
    module = layer() if module is None else module
    arguments = (torch.tensor([[3.0, -1.0]], dtype=torch.float64),) if arguments is None else arguments
    rule_set = PresetRules(module, presets.Preset([(type(module), rule)]))
    before = Snapshot(module)
    with rule_set.attached(arguments):
        assert rule_set.rule_of(module) == type(rule).__name__
        relevance = torch.tensor([[6.0, 14.0]], dtype=torch.float64)
        found = rule_set.evaluations(Visit("", module, arguments, carries), relevance)
    before.check()
    assert rule_set.rule_of(module) == ""
    return found and [tuple(value[0].tolist() for value in (f.factor, f.output, f.constant)) for f in found]


def test_each_evaluation_is_the_layer_on_what_the_rule_changes():
    assert evaluations(rules.Epsilon(0.5)) == [([6 / 2.5, 14 / -7.5], [2, -7], [1, -4])]
    assert evaluations(rules.Epsilon(0.5, zero_params="bias")) == [([6 / 1.5, 14 / -3.5], [1, -3], [0, 0])]
    # Positive contributions: 3 * 1 and the bias of 1; -1 * -3 alone.
    assert evaluations(rules.ZPlus(0.5)) == [
        ([6 / 4.5, 14 / 3.5], [4, 0], [1, 0]),
        ([6 / 4.5, 14 / 3.5], [0, 3], [0, 0]),
    ]


def test_terms_that_only_decide_have_no_share():
    assert len(rules.Gamma().terms()) == 5
    assert len(evaluations(rules.Gamma())) == 4


def test_an_operand_that_carries_no_data_is_a_constant():
    operands = torch.tensor([[3.0, -1.0]], dtype=torch.float64), torch.tensor([[1.0, 8.0]], dtype=torch.float64)
    both = evaluations(rules.Norm(0.0), Add(), operands, (True, True))
    assert both == [([6 / 4, 14 / 7], [4, 7], [0, 0])]
    assert evaluations(rules.Norm(0.0), Add(), operands, (True, False)) == [([6 / 4, 14 / 7], [4, 7], [1, 8])]


def test_a_rule_of_another_kind_has_no_evaluations():
    assert evaluations(rules.Pass(), nn.ReLU()) is None


def test_an_lrp_canonizes_its_own_model_and_a_preset_takes_it_as_it_stands():
    model = randomize(PreActivation())
    for given, norms in ((presets.epsilon(), 4), (LRP(model, presets.epsilon()), 0)):
        rule_set = PresetRules(model, given)
        assert rule_set.name == "epsilon (Captum)"
        with rule_set.attached((torch.zeros(1, 3, 16, 16),)):
            assert len(alive(model)) == norms
            assert rule_set.rule_of(model.head) == "Epsilon"
    with pytest.raises(ValueError, match="rules is an LRP of another model; audit the model that it was made for"):
        PresetRules(PreActivation(), LRP(model))
