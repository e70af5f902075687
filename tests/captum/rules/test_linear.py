"""Epsilon and Norm, against zennit's rule of the same name, a formula, and the shares of a sum by hand."""

import pytest
import torch
from torch import nn

from canon_bridge.captum import rules
from canon_bridge.captum.rules.base import Call
from canon_bridge.captum.rules.linear import Term, negative, positive
from canon_bridge.core import Subtract
from tests.captum.rules.layers import cases, check_against_formula, check_against_zennit

pytestmark = pytest.mark.zennit

RULES = {"Epsilon": ({}, {"epsilon": 1e-2}, {"zero_params": "bias"})}


@pytest.mark.parametrize(("name", "keywords", "layer"), cases(RULES))
def test_zennit_agrees(name, keywords, layer):
    check_against_zennit(name, keywords, layer)


def test_epsilon_against_the_formula():
    check_against_formula(rules.Epsilon(1e-30), lambda x, w, z, b: z / (z.sum() + b))


def test_norm_shares_relevance_among_operands_by_what_they_contribute():
    left, right = torch.tensor([[3.0, 1.0]]).double(), torch.tensor([[1.0, -1.0]]).double()
    found = rules.Norm(0.5).propagate(
        Call(Subtract(), (left, right)), (left, right), torch.tensor([[5.0, 10.0]]).double()
    )
    assert found[0].tolist() == [pytest.approx([5 * 3 / 2.5, 10 * 1 / 2.5], rel=1e-14)]
    assert found[1].tolist() == [pytest.approx([5 * -1 / 2.5, 10 * 1 / 2.5], rel=1e-14)]


def test_the_parts_of_a_value_add_up_to_it():
    value = torch.tensor([-2.0, 0.0, 3.0])
    assert [positive(value).tolist(), negative(value).tolist()] == [[0, 0, 3], [-2, 0, 0]]


def test_which_parameters_are_zero_in_a_term():
    assert Term().zeros(("weight",)) == ("weight",)
    assert Term(bias=False).zeros(("weight",)) == ("weight", "bias")
    assert Term(whole=True).zeros(("weight",)) == ()


def test_a_rule_keeps_the_output_of_a_layer_that_it_evaluates_as_it_is():
    with_bias, without = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    assert rules.Epsilon().keeps_output(with_bias)
    assert not rules.Epsilon(zero_params="bias").keeps_output(with_bias)
    assert rules.Epsilon(zero_params="bias").keeps_output(without)
    assert rules.Gamma(zero_params="bias").keeps_output(with_bias)  # the sign of the output is that with the bias
    assert not rules.ZPlus().keeps_output(without)
