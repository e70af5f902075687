"""The audit: what became of the relevance, against hand calculation, and with faults that it must find."""

import pytest
import torch
import zennit.composites
import zennit.rules
from torch import nn
from zennit.composites import EpsilonPlus, LayerMapComposite

from canon_bridge import audit, canonize
from canon_bridge.auditing.causes import BIASES, CAUSES, CLIPPED, ELSEWHERE, GATES, STABILISERS
from canon_bridge.captum import LRP, presets, rules
from canon_bridge.zennit import ModelCanonizer
from tests.support.in_zennit import epsilon_composite
from tests.support.models import TARGET, PreActivation, images, network, small_densenet
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

pytestmark = pytest.mark.zennit
KEYWORDS = [(prefer, clipped) for prefer in ("left", "right") for clipped in ("absorb", "pass")]


def entry(report, path):
    return next(entry for entry in report.entries if entry.path == path)


def check_sum(report):
    assert sum(value for _, value in report.totals()) == pytest.approx(report.score, rel=1e-11)


def canonical_rules(framework, preset, model, **keywords):
    """Return epsilon or epsilon plus for the canonical model."""
    if framework == "captum":
        return LRP(model, getattr(presets, preset)(), **keywords)
    canonizers = [ModelCanonizer(**keywords)]
    return EpsilonPlus(canonizers=canonizers) if preset == "epsilon_plus" else epsilon_composite(1e-9, canonizers)


@pytest.mark.parametrize("framework", ["zennit", "captum"])
@pytest.mark.parametrize("preset", ["epsilon_plus", "epsilon"])
@pytest.mark.parametrize("prefer", ["left", "right"])
def test_nothing_is_lost_in_a_canonical_densenet(framework, preset, prefer):
    model, x = network("densenet121"), images()
    before = Snapshot(model)
    report = audit(model, x, TARGET, canonical_rules(framework, preset, model, prefer=prefer))
    before.check()
    assert report.defect < 1e-12
    assert report.defect_of_flow < 1e-14
    assert report.worst() == []
    check_sum(report)
    assert abs(report.taken(CLIPPED)) > 0.01 * report.scale
    assert abs(report.taken(BIASES)) > 0.01 * report.scale
    score = float(model(x)[:, TARGET].detach().sum())
    assert report.score == pytest.approx(score, rel=1e-9)
    relevance = LRP(model, getattr(presets, preset)(), prefer=prefer).attribute(x, target=TARGET)
    assert report.relevance == pytest.approx(float(relevance.sum()), rel=1e-9)


def test_an_uncanonized_densenet_loses_at_its_batch_norms_and_its_functional_relu():
    report = audit(network("densenet121"), images(), TARGET, EpsilonPlus())
    assert report.defect > 0.5
    check_sum(report)
    lost = report.worst(1000)
    assert {entry.kind for entry in lost} == {"BatchNorm2d", "DenseNet"}
    assert len(lost) == 122  # every BatchNorm, and the forward that calls F.relu and a pooling
    assert "features.norm5" in str(report)
    in_captum = audit(network("densenet121"), images(), TARGET, presets.epsilon_plus())
    assert in_captum.relevance == pytest.approx(report.relevance, rel=1e-9)


def test_an_uncanonized_resnet_doubles_relevance_at_its_sums():
    report = audit(network("resnet18"), images(), TARGET, presets.epsilon_plus())
    assert report.defect > 100
    block = entry(report, "layer4.1")
    assert block.kind == "BasicBlock"
    assert block.taken[ELSEWHERE] == pytest.approx(-block.arrived, rel=1e-3)  # the gradient of a sum goes to both


@pytest.mark.parametrize(("prefer", "clipped"), KEYWORDS)
@pytest.mark.parametrize("preset", ["epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box"])
def test_both_frameworks_keep_the_same_books(preset, prefer, clipped):
    model, x = small_densenet(), images()
    name = {
        "epsilon_plus_flat": "EpsilonPlusFlat",
        "epsilon_alpha2_beta1": "EpsilonAlpha2Beta1",
        "epsilon_gamma_box": "EpsilonGammaBox",
    }[preset]
    bounds = {"low": -3.0, "high": 3.0} if "box" in preset else {}
    composite = getattr(zennit.composites, name)(
        canonizers=[ModelCanonizer(prefer=prefer, clipped=clipped)], **bounds, stabilizer=1e-2
    )
    by_zennit = audit(model, x, TARGET, composite)
    lrp = LRP(model, getattr(presets, preset)(**bounds, stabilizer=1e-2), prefer=prefer, clipped=clipped)
    by_captum = audit(model, x, TARGET, lrp)
    for report in (by_zennit, by_captum):
        assert report.defect_of_flow < 1e-14
        check_sum(report)
    for cause in CAUSES:
        assert by_captum.taken(cause) == pytest.approx(by_zennit.taken(cause), rel=1e-9, abs=1e-12 * by_zennit.scale)
    assert abs(by_captum.taken(STABILISERS)) > 1e-6 * by_captum.scale
    assert (abs(by_captum.taken(CLIPPED)) > 0) == (clipped == "absorb")


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


@pytest.mark.parametrize("path", ["conv1", "head", "relu1"])
def test_a_rule_that_hands_down_too_much_is_found_where_it_is(monkeypatch, path):
    model, x = randomize(PreActivation().double(), mild=True), images(size=16)
    module = model.get_submodule(path)
    for rule in (rules.Epsilon, rules.Pass):
        propagate = rule.propagate

        def wrong(self, call, inputs, relevance, propagate=propagate):
            return tuple((1.01 if call.module is module else 1) * r for r in propagate(self, call, inputs, relevance))

        monkeypatch.setattr(rule, "propagate", wrong)
    report = audit(model, x, TARGET, LRP(model, presets.epsilon()))
    (found,) = report.worst()
    assert found.path == path
    assert found.lost == pytest.approx(-found.handed_down * 0.01 / 1.01, rel=1e-9)


def test_a_bias_that_a_rule_forgets_is_found(monkeypatch):
    propagate = rules.Epsilon.propagate

    def forgetful(self, call, inputs, relevance):
        (found,) = propagate(self, call, inputs, relevance)
        return (found * relevance.sum() / found.sum(),)

    monkeypatch.setattr(rules.Epsilon, "propagate", forgetful)
    model, x = small_densenet(), images()
    report = audit(model, x, TARGET, LRP(model, presets.epsilon()))
    assert report.worst()[0].rule == "Epsilon"
    assert report.lost == pytest.approx(sum(abs(entry.taken[BIASES]) for entry in report.entries), rel=1e-3)


def test_pass_on_clipped_units_under_epsilon_shows_in_the_largest_flow():
    model, x = small_densenet(), images()
    absorb = audit(model, x, TARGET, LRP(model, presets.epsilon(), prefer="right"))
    explodes = audit(model, x, TARGET, LRP(model, presets.epsilon(), prefer="right", clipped="pass"))
    assert explodes.widest.flow > 1e3 * absorb.widest.flow
    assert explodes.defect_of_flow < 1e-14  # the sums are right, the map is useless
    assert "largest flow" in str(explodes)
