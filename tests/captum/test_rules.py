"""Every rule of Captum's side against zennit's own rule of the same name, and against a dense matrix by hand."""

import pytest
import torch
import zennit.rules
from torch import nn

from canon_bridge.captum import rules
from canon_bridge.captum.rules.base import Call
from tests.support.errors import relative_error

pytestmark = pytest.mark.zennit

LAYERS = {
    "Linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2), (2, 4, 9)),
    "Conv2d": (lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1), (2, 3, 8, 9)),
    "Conv2d without bias": (lambda: nn.Conv2d(3, 5, 3, bias=False), (2, 3, 6, 6)),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2), (2, 3, 5, 5)),
}
LOW, HIGH = -3.0, 2.5
RULES = {
    "Epsilon": ({}, {"epsilon": 1e-2}, {"zero_params": "bias"}),
    "ZPlus": ({}, {"stabilizer": 1e-2}, {"zero_params": ["bias"]}),
    "AlphaBeta": ({}, {"alpha": 1.5, "beta": 0.5}, {"zero_params": "bias"}),
    "Gamma": ({}, {"gamma": 2.0}, {"zero_params": "bias"}, {"stabilizer": lambda z: z + 0.1}),
    "ZBox": ({"low": LOW, "high": HIGH}, {"low": LOW, "high": HIGH, "zero_params": "bias"}),
    "Flat": ({}, {"stabilizer": 1e-2}),
    "WSquare": ({}, {"zero_params": "bias"}),
}
CASES = [(rule, keywords, layer) for rule, several in RULES.items() for keywords in several for layer in LAYERS]


def by_ours(rule, layer, x, relevance):
    return rule.propagate(Call(layer, (x,)), (x,), relevance)[0]


def by_zennit(rule, layer, x, relevance):
    x = x.clone().requires_grad_()
    handles = rule.copy().register(layer)
    try:
        (found,) = torch.autograd.grad(layer(x), x, relevance)
    finally:
        handles.remove()
    return found


def subject(name):
    make, shape = LAYERS[name]
    layer = make().double().eval()
    x = torch.randn(shape, dtype=torch.float64).clamp(LOW, HIGH)
    return layer, x, torch.randn_like(layer(x))


@pytest.mark.parametrize(("name", "keywords", "layer"), CASES)
def test_zennit_agrees(name, keywords, layer):
    module, x, relevance = subject(layer)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    found = by_ours(getattr(rules, name)(**keywords), module, x, relevance)
    expected = by_zennit(getattr(zennit.rules, name)(**keywords), module, x, relevance)
    assert relative_error(found, expected) < 1e-12
    assert relative_error(by_ours(getattr(rules, name)(**keywords), module, x + 0.01, relevance), expected) > 1e-6 or (
        name in ("Flat", "WSquare")
    )
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def _dense(rule, weight, bias, x, relevance):
    """The rules written down for one output after the other."""
    found = torch.zeros_like(x)
    pos, neg = torch.clamp, lambda value: value.clamp(max=0)
    for j in range(len(bias)):
        w, b = weight[j], bias[j]
        z = x * w
        up, down = z.clamp(min=0), z.clamp(max=0)
        out = z.sum() + b
        if rule == "AlphaBeta":
            share = (2 * up / (up.sum() + pos(b, min=0))).nan_to_num() - (down / (down.sum() + neg(b))).nan_to_num()
        elif rule == "ZPlus":
            share = up / (up.sum() + pos(b, min=0))
        elif rule == "Gamma":
            favoured, bias_part = (up, pos(b, min=0)) if out > 0 else (down, neg(b))
            share = (z + 0.25 * favoured) / (out + 0.25 * (favoured.sum() + bias_part))
        elif rule == "ZBox":
            box = z - LOW * w.clamp(min=0) - HIGH * w.clamp(max=0)
            share = box / (box.sum() + b - b.clamp(min=0) - b.clamp(max=0))
        elif rule == "Flat":
            share = torch.full_like(x, 1 / len(x))
        elif rule == "WSquare":
            share = w**2 / ((w**2).sum() + b**2)
        else:
            share = z / out
        found += share.nan_to_num() * relevance[j]  # where nothing contributes
    return found


@pytest.mark.parametrize("name", RULES)
def test_against_the_formula(name):
    layer, x, relevance = subject("Linear")
    stabilizer = {"epsilon": 1e-30} if name == "Epsilon" else {"stabilizer": 1e-30}
    found = by_ours(getattr(rules, name)(**RULES[name][0], **stabilizer), layer, x, relevance)
    with torch.no_grad():
        for one, share, wanted in zip(x, relevance, found, strict=True):
            assert relative_error(wanted, _dense(name, layer.weight, layer.bias, one, share)) < 1e-10


@pytest.mark.parametrize("shape", [(), (3,), (3, 1, 1), (1, 3, 1, 1), (2, 3, 4, 4), (5, 3, 1, 1)])
def test_bounds_of_every_shape(shape):
    layer, x = nn.Conv2d(3, 2, 3).double(), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    relevance = torch.randn_like(layer(x))
    low, high = -torch.rand(shape), 1 + torch.rand(shape)
    full = [bound.reshape(1, 3, 1, 1) if shape == (3,) else bound for bound in (low, high)]
    full = [torch.broadcast_to(bound if bound.dim() < 4 else bound[:2], x.shape).double() for bound in full]
    expected = by_ours(rules.ZBox(*full), layer, x, relevance)
    assert torch.equal(by_ours(rules.ZBox(low, high), layer, x, relevance), expected)


def test_wrong_arguments_are_explained():
    with pytest.raises(ValueError, match="alpha is 3 and beta is 1"):
        rules.AlphaBeta(3, 1)
    with pytest.raises(TypeError, match="the stabilizer is 'small'"):
        rules.ZPlus("small")
    layer, x = nn.Conv2d(3, 2, 3), torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"low has the shape \(4, 1, 1\).*\(2, 3, 4, 4\)"):
        by_ours(rules.ZBox(torch.rand(4, 1, 1), 1.0), layer, x, layer(x))
