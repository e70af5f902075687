"""What the audit learns of a composite: the rule on a module, what it evaluates, and with which weight."""

import pytest
import torch
import zennit.rules
from torch import nn
from zennit.composites import LayerMapComposite

from canon_bridge.auditing.flows import Visit
from canon_bridge.zennit import ModelCanonizer
from canon_bridge.zennit.auditing import CompositeRules
from tests.support.errors import alive
from tests.support.models import PreActivation
from tests.support.statistics import randomize

pytestmark = pytest.mark.zennit


def evaluations(rule, module=None):
    """Return factors, outputs and constants of a rule, with 6 and 14 as the relevance of the outputs."""
    if module is None:  # for 3 and -1 its outputs are 2 and -7
        module = nn.Linear(2, 2).double()
        module.weight.data.copy_(torch.tensor([[1.0, 2.0], [-2.0, -3.0]]))
        module.bias.data.copy_(torch.tensor([1.0, -4.0]))
    arguments = (torch.tensor([[3.0, -1.0]], dtype=torch.float64),)
    rule_set = CompositeRules(module, LayerMapComposite([(type(module), rule)]))
    assert rule_set.name == "LayerMapComposite (zennit)"
    with rule_set.attached(arguments):
        before = [parameter.detach().clone() for parameter in module.parameters()]
        assert rule_set.rule_of(module) == type(rule).__name__
        relevance = torch.tensor([[6.0, 14.0]], dtype=torch.float64)
        found = rule_set.evaluations(Visit("", module, arguments, (True,)), relevance)
        # The values: zennit 1.0 leaves other parameters that have the same memory.
        assert all(map(torch.equal, module.parameters(), before))
    assert rule_set.rule_of(module) == ""
    assert found is None or not any(term.output.requires_grad for term in found)
    return found and [[value[0].tolist() for value in (f.factor, f.output, f.constant)] for f in found]


def near(*values):
    return [pytest.approx(value, rel=1e-14) for value in values]


def test_each_evaluation_is_the_layer_on_what_the_rule_changes():
    assert evaluations(zennit.rules.Epsilon(0.5)) == [near([6 / 2.5, 14 / -7.5], [2, -7], [1, -4])]
    assert evaluations(zennit.rules.Epsilon(0.5, zero_params="bias")) == [near([6 / 1.5, 14 / -3.5], [1, -3], [0, 0])]
    # Positive contributions: 3 * 1 and the bias of 1; -1 * -3 alone.
    plus = [6 / 4.5, 14 / 3.5]
    assert evaluations(zennit.rules.ZPlus(0.5)) == [near(plus, [4, 0], [1, 0]), near(plus, [0, 3], [0, 0])]


def test_factors_have_the_sign_with_which_the_reducer_takes_them():
    (own, low, high) = evaluations(zennit.rules.ZBox(-2.0, 4.0, 0.5))
    # z = 2 and -7; from the lowest -2 * (1 + 2) + 1 and 0; from the highest 0 and 4 * (-2 - 3) - 4.
    factors = [6 / (2 + 5 - 0 + 0.5), 14 / (-7 - 0 + 24 + 0.5)]
    assert own == near(factors, [2, -7], [1, -4])
    assert low == near([-factor for factor in factors], [-5, 0], [1, 0])
    assert high == near([-factor for factor in factors], [0, -24], [0, -4])


def test_a_rule_of_another_kind_has_no_evaluations():
    assert evaluations(zennit.rules.Pass(), nn.ReLU()) is None


def test_canonizers_run_for_the_length_of_the_block():
    model = randomize(PreActivation())
    rules = CompositeRules(model, LayerMapComposite([], canonizers=[ModelCanonizer()]))
    with rules.attached(()):
        assert alive(model) == []
        assert rules.rule_of(model.head) == ""
    assert len(alive(model)) == 4
