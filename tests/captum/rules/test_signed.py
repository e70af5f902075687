"""z+, alpha-beta and gamma, against zennit's rule of the same name and a formula, for inputs of either sign."""

import pytest
import torch
from torch import nn

from canon_bridge.captum import rules
from tests.captum.rules.layers import cases, check_against_formula, check_against_zennit

pytestmark = pytest.mark.zennit

RULES = {
    "ZPlus": ({}, {"stabilizer": 1e-2}, {"zero_params": ["bias"]}),
    "AlphaBeta": ({}, {"alpha": 1.5, "beta": 0.5}, {"zero_params": "bias"}),
    "Gamma": ({}, {"gamma": 2.0}, {"zero_params": "bias"}, {"stabilizer": lambda z: z + 0.1}),
}


@pytest.mark.parametrize(("name", "keywords", "layer"), cases(RULES))
def test_zennit_agrees(name, keywords, layer):
    check_against_zennit(name, keywords, layer)


def z_plus(x, w, z, b):
    return z.clamp(min=0) / (z.clamp(min=0).sum() + b.clamp(min=0))


def alpha_beta(x, w, z, b):
    below = z.clamp(max=0) / (z.clamp(max=0).sum() + b.clamp(max=0))
    return 2 * z_plus(x, w, z, b).nan_to_num() - below.nan_to_num()


def gamma(x, w, z, b):
    sign = (z.sum() + b).sign()
    favoured, bias = (sign * z).clamp(min=0) * sign, (sign * b).clamp(min=0) * sign
    return (z + 0.25 * favoured) / (z.sum() + b + 0.25 * (favoured.sum() + bias))


@pytest.mark.parametrize(
    ("rule", "share"), [(rules.ZPlus, z_plus), (rules.AlphaBeta, alpha_beta), (rules.Gamma, gamma)]
)
def test_against_the_formula(rule, share):
    check_against_formula(rule(stabilizer=1e-30), share)


@pytest.mark.parametrize(
    "rule", [rules.ZPlus(), rules.AlphaBeta(), rules.Gamma()], ids=lambda rule: type(rule).__name__
)
@pytest.mark.parametrize("values", ["positive", "negative", "zero", "NaN", "none"])
def test_inputs_of_one_sign(rule, values):
    layer = nn.Conv2d(3, 4, 3, padding=1).double()
    x = torch.rand(0 if values == "none" else 2, 3, 5, 5, dtype=torch.float64)
    x = {"positive": x, "negative": -x, "zero": x * 0, "none": x}.get(values, x)
    if values == "NaN":
        x[0, 0, 0, 0] = torch.nan
    call = rules.base.Call(layer, (x,))
    relevance = torch.randn_like(layer(x))
    (found,) = rule.propagate(call, (x,), relevance)
    (both,) = rule.propagate(rules.base.Call(layer, (twice(x),)), (twice(x),), torch.cat([relevance, relevance]))
    assert torch.allclose(found, both[: len(x)], rtol=1e-12, atol=0, equal_nan=True)


def twice(x):
    """Return the examples, and then their negatives, so that both signs occur."""
    return torch.cat([x, -x])


@pytest.mark.parametrize(("alpha", "beta"), [(3, 1), (-1, -2), (0.5, -0.5)])
def test_an_alpha_and_a_beta_that_create_relevance_are_refused(alpha, beta):
    with pytest.raises(ValueError, match=rf"alpha is {alpha} and beta is {beta}; both must be >= 0, .* must be 1"):
        rules.AlphaBeta(alpha, beta)
