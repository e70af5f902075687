"""Linear layers with a rule on them: ours, zennit's rule of the same name, and a formula for one output at a time."""

import torch
import zennit.rules
from torch import nn

from canon_bridge.captum import rules
from canon_bridge.captum.rules.base import Call
from tests.support.errors import relative_error

LAYERS = {
    "Linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2), (2, 4, 9)),
    "Conv2d": (lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1), (2, 3, 8, 9)),
    "Conv2d without bias": (lambda: nn.Conv2d(3, 5, 3, bias=False), (2, 3, 6, 6)),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2), (2, 3, 5, 5)),
}
LOW, HIGH = -3.0, 2.5


def cases(several):
    """Return each rule with each of its keywords on each layer."""
    return [(rule, keywords, layer) for rule, given in several.items() for keywords in given for layer in LAYERS]


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


def check_against_zennit(name, keywords, layer):
    """Compare a rule with zennit's; the layer stays as it is, and the input matters where the rule looks at it."""
    module, x, relevance = subject(layer)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    found = by_ours(getattr(rules, name)(**keywords), module, x, relevance)
    expected = by_zennit(getattr(zennit.rules, name)(**keywords), module, x, relevance)
    assert relative_error(found, expected) < 1e-12
    assert relative_error(by_ours(getattr(rules, name)(**keywords), module, x + 0.01, relevance), expected) > 1e-6 or (
        name in ("Flat", "WSquare")
    )
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def check_against_formula(rule, share):
    """Compare a rule with the shares of one output: ``share(x, w, z, b)`` with its weights and ``z = x * w``."""
    layer, x, relevance = subject("Linear")
    weight, bias = layer.weight.detach(), layer.bias.detach()
    found = by_ours(rule, layer, x, relevance)
    for wanted, one, handed in zip(found, x, relevance, strict=True):
        shares = [share(one, w, one * w, b).nan_to_num() for w, b in zip(weight, bias, strict=True)]
        assert relative_error(wanted, sum(s * r for s, r in zip(shares, handed, strict=True))) < 1e-10
