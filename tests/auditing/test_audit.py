"""The audit on whole networks: what became of the relevance, in both frameworks, and faults that it must find."""

import pytest
import zennit.composites
import zennit.rules
from zennit.composites import EpsilonPlus

from canon_bridge import audit
from canon_bridge.auditing.causes import BIASES, CAUSES, CLIPPED, ELSEWHERE, STABILISERS
from canon_bridge.captum import LRP, presets, rules
from canon_bridge.zennit import ModelCanonizer
from tests.support.in_zennit import epsilon_composite
from tests.support.models import TARGET, PreActivation, images, network, small_densenet
from tests.support.sampled import every_other
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


@pytest.mark.whole
@pytest.mark.parametrize(
    ("framework", "preset", "prefer"), every_other(["zennit", "captum"], ["epsilon_plus", "epsilon"], ["left", "right"])
)
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
