"""What biases, stabilisers, clipped constants and gates take, each against a calculation by hand."""

import pytest
import torch
import zennit.rules
from torch import nn
from zennit.composites import EpsilonPlus, LayerMapComposite

from canon_bridge import audit, canonize
from canon_bridge.auditing.causes import (
    BIASES,
    CLIPPED,
    ELSEWHERE,
    GATES,
    STABILISERS,
    Evaluation,
    cause_of,
    owner,
    shares,
)
from canon_bridge.auditing.flows import Visit
from canon_bridge.captum import presets, rules
from canon_bridge.core import Add, Divide, Multiply
from tests.auditing.test_audit import canonical_rules
from tests.support.models import TARGET, images
from tests.support.statistics import randomize

pytestmark = pytest.mark.zennit

RULES = {
    "Epsilon": {"epsilon": 0.5},
    "ZPlus": {"stabilizer": 0.5},
    "AlphaBeta": {"alpha": 3.0, "beta": 2.0, "stabilizer": 0.5},
    "Gamma": {"gamma": 0.7, "stabilizer": 0.5},
    "ZBox": {"low": -2.0, "high": 3.0, "stabilizer": 0.5},
    "WSquare": {"stabilizer": 0.5},
    "Flat": {"stabilizer": 0.5},
}


def by_hand(name, weight, bias, x, score):
    """Return what the bias and the stabilizer take of the relevance ``score`` of one output, from the formulas."""
    w, b = weight[0], bias[0]
    plus, minus = w.clamp(min=0), w.clamp(max=0)
    up = (x.clamp(min=0) * plus + x.clamp(max=0) * minus).sum()  # contributions above zero
    down = (x * w).sum() - up
    b_up, b_down = b.clamp(min=0), b.clamp(max=0)

    def away(z):
        return z + 0.5 * (1 if z >= 0 else -1)

    if name == "AlphaBeta":
        above, below = 3 * score / away(up + b_up), -2 * score / away(down + b_down)
        return above * b_up + below * b_down, score - above * (up + b_up) - below * (down + b_down)
    sums = {
        "Epsilon": (up + down, b),
        "ZPlus": (up, b_up),
        "Gamma": (1.7 * up + down, b + 0.7 * b_up) if up + down + b > 0 else (up + 1.7 * down, b + 0.7 * b_down),
        "ZBox": ((x * w - -2 * plus - 3 * minus).sum(), b - b_up - b_down),
        "WSquare": ((w**2).sum(), b**2),
        "Flat": (torch.tensor(float(len(w))), torch.tensor(0.0)),
    }
    linear, constant = sums[name]
    factor = score / away(linear + constant)
    return factor * constant, score - factor * (linear + constant)


@pytest.mark.parametrize("framework", ["zennit", "captum"])
@pytest.mark.parametrize("name", RULES)
def test_a_dense_layer_by_hand(name, framework):
    model = nn.Sequential(nn.Linear(6, 1)).double()
    with torch.no_grad():
        model[0].bias.fill_(0.8)
    x = torch.randn(1, 6, dtype=torch.float64)
    if framework == "zennit":
        with_rule = LayerMapComposite([(nn.Linear, getattr(zennit.rules, name)(**RULES[name]))])
    else:
        with_rule = presets.Preset([(nn.Linear, getattr(rules, name)(**RULES[name]))])
    report = audit(model, x, 0, with_rule)
    score = model(x)[0, 0].detach()
    biases, stabilisers = by_hand(name, model[0].weight.detach(), model[0].bias.detach(), x[0], score)
    assert report.taken(BIASES) == pytest.approx(float(biases), rel=1e-12)
    assert report.taken(STABILISERS) == pytest.approx(float(stabilisers), rel=1e-12)
    assert abs(float(stabilisers)) > 1e-3
    assert report.defect < 1e-14


@pytest.mark.parametrize("framework", ["zennit", "captum"])
def test_clipped_constants_by_hand(framework):
    model = randomize(nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)).double(), mild=True)
    x = torch.randn(4, 8, dtype=torch.float64)
    report = audit(model, x, None, canonical_rules(framework, "epsilon", model))
    norm, weight = model[0], model[2].weight.detach()
    shift = norm.bias - norm.running_mean * norm.weight * (norm.running_var + norm.eps).rsqrt()
    is_clipped = (norm(x) <= 0).double()
    assert 0 < is_clipped.mean() < 1
    assert report.taken(CLIPPED) == pytest.approx(-float((is_clipped * weight * shift).detach().sum()), rel=1e-6)
    assert report.taken(BIASES) == pytest.approx(4 * float((weight @ shift + model[2].bias).detach()), rel=1e-6)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.gate = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)
        self.register_buffer("offset", torch.rand(4, 1, 1))

    def forward(self, x, scale=1.0):
        x = self.norm(self.conv(x)) + self.offset
        return self.head((x * self.gate(x).sigmoid()).mean((2, 3))) * scale


@pytest.mark.parametrize("framework", ["zennit", "captum"])
def test_gates_and_constant_operands(framework):
    model, x = randomize(Gated().double()), images(size=8)
    report = audit(model, x, TARGET, canonical_rules(framework, "epsilon", model))
    assert report.defect < 1e-12
    constants = [entry for entry in report.entries if entry.kind in ("StackedSum", "Add") and entry.taken[BIASES]]
    assert len(constants) == 1  # `+ offset`
    raw = audit(model, x, TARGET, EpsilonPlus() if framework == "zennit" else presets.epsilon_plus())
    assert abs(raw.taken(ELSEWHERE)) > 0.01 * raw.scale
    # A product without a rule hands its gradient down, which a gate makes too much or too little.
    with canonize(model):
        kept = [pair for pair in presets.layer_map_base() if not isinstance(pair[1], rules.SignalTakesAll)]
        preset = presets.Preset([*kept, ((nn.Conv2d, nn.Linear), rules.Epsilon())])
        gradient = audit(model, x, TARGET, preset)
    assert abs(gradient.taken(GATES)) > 0.1 * gradient.scale
    assert abs(gradient.taken(ELSEWHERE)) < 1e-12 * gradient.scale
    assert gradient.defect > 0.1


class Stated:
    """Rules that state their evaluations."""

    gates, constants = (nn.Bilinear,), (nn.CosineSimilarity,)

    def __init__(self, evaluations=None):
        self.stated = evaluations

    def evaluations(self, visit, relevance):
        return self.stated


def vector(*values):
    return torch.tensor([values], dtype=torch.float64)


def visit(module, *arguments, carries=(True,)):
    return Visit("", module, arguments, carries)


def test_the_evaluations_of_a_rule_are_added_up():
    first = Evaluation(vector(2.0, 3.0), output=vector(1.0, 4.0), constant=vector(0.5, -1.0))
    second = Evaluation(vector(-1.0, 0.5), output=vector(2.0, 2.0), constant=vector(1.0, 4.0))
    found = shares(Stated([first, second]), visit(nn.Linear(2, 2), vector(1.0, 1.0)), vector(7.0, 20.0))
    assert found == {BIASES: (1 - 3) + (-1 + 2), STABILISERS: 27 - (2 + 12) - (-2 + 1)}


def test_the_shift_of_a_norm_is_a_bias_and_an_output_of_zero_has_none():
    norm = nn.BatchNorm1d(3, eps=0.0).double().eval()
    with torch.no_grad():
        norm.weight.copy_(vector(2.0, 1.0, -3.0)[0])
        norm.bias.copy_(vector(1.0, 4.0, 0.5)[0])
    # The outputs are 7, 0 and -5.5.
    found = shares(Stated(), visit(norm, vector(3.0, -4.0, 2.0)), vector(14.0, 100.0, 11.0))
    assert found == {BIASES: pytest.approx(14 * 1 / 7 + 11 * 0.5 / -5.5, rel=1e-14)}


def test_a_call_of_several_arguments_or_without_data_has_no_share():
    assert shares(Stated(), visit(nn.ReLU(), vector(1.0)), vector(2.0)) == {CLIPPED: 0.0}
    assert shares(Stated(), visit(nn.ReLU(), vector(1.0), carries=(False,)), vector(2.0)) == {}
    assert shares(Stated(), visit(Add(), vector(1.0), vector(1.0), carries=(True, True)), vector(2.0)) == {}


@pytest.mark.parametrize(
    ("module", "carries", "cause"),
    [
        (Multiply(), (True, True), GATES),
        (Divide(), (True, False), GATES),
        (nn.Bilinear(1, 1, 1), (True, True), GATES),
        (nn.CosineSimilarity(), (True, False), BIASES),
        (nn.CosineSimilarity(), (True, True), ELSEWHERE),
        (Add(), (True, False), ELSEWHERE),
    ],
)
def test_what_no_rule_accounts_for_is_named_by_the_module(module, carries, cause):
    assert cause_of(Stated(), visit(module, carries=carries)) == cause


def test_the_rule_on_a_module_is_what_its_hook_is_a_method_of():
    rule = rules.Pass()
    hooks = {0: print, 1: {}.get, 2: rule.stand_in}
    assert owner(hooks, rules.Rule) is rule
    assert owner(hooks, rules.ZPlus) is None
