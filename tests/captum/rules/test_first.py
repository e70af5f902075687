"""The rules for the first layer, against zennit's rule of the same name and a formula, and bounds of every shape."""

import pytest
import torch
from torch import nn

from canon_bridge.captum import rules
from tests.captum.rules.layers import HIGH, LOW, by_ours, cases, check_against_formula, check_against_zennit

pytestmark = pytest.mark.zennit

RULES = {
    "ZBox": ({"low": LOW, "high": HIGH}, {"low": LOW, "high": HIGH, "zero_params": "bias"}),
    "Flat": ({}, {"stabilizer": 1e-2}),
    "WSquare": ({}, {"zero_params": "bias"}),
}


@pytest.mark.parametrize(("name", "keywords", "layer"), cases(RULES))
def test_zennit_agrees(name, keywords, layer):
    check_against_zennit(name, keywords, layer)


def z_box(x, w, z, b):
    box = z - LOW * w.clamp(min=0) - HIGH * w.clamp(max=0)
    return box / (box.sum() + b - b.clamp(min=0) - b.clamp(max=0))


FORMULAS = {
    "ZBox": z_box,
    "Flat": lambda x, w, z, b: torch.full_like(x, 1 / len(x)),
    "WSquare": lambda x, w, z, b: w**2 / ((w**2).sum() + b**2),
}


@pytest.mark.parametrize("name", RULES)
def test_against_the_formula(name):
    check_against_formula(getattr(rules, name)(**RULES[name][0], stabilizer=1e-30), FORMULAS[name])


@pytest.mark.parametrize("shape", [(), (3,), (3, 1, 1), (1, 3, 1, 1), (2, 3, 4, 4), (5, 3, 1, 1)])
def test_bounds_of_every_shape(shape):
    layer, x = nn.Conv2d(3, 2, 3).double(), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    relevance = torch.randn_like(layer(x))
    low, high = -torch.rand(shape), 1 + torch.rand(shape)
    full = [bound.reshape(1, 3, 1, 1) if shape == (3,) else bound for bound in (low, high)]
    full = [torch.broadcast_to(bound if bound.dim() < 4 else bound[:2], x.shape).double() for bound in full]
    expected = by_ours(rules.ZBox(*full), layer, x, relevance)
    assert torch.equal(by_ours(rules.ZBox(low, high), layer, x, relevance), expected)


def test_a_bound_that_does_not_fit_is_refused():
    layer, x = nn.Conv2d(3, 2, 3), torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"low has the shape \(4, 1, 1\).*\(2, 3, 4, 4\)"):
        by_ours(rules.ZBox(torch.rand(4, 1, 1), 1.0), layer, x, layer(x))
