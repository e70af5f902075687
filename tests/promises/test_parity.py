"""zennit and Captum give the same relevance for the same rules on the same canonical model."""

from dataclasses import replace

import pytest
import torch
from zennit.composites import EpsilonPlus

from benchmarks import parity
from canon_bridge.captum import LRP, presets, rules
from canon_bridge.captum.rules.signed import positive
from canon_bridge.zennit import ModelCanonizer
from tests.support.errors import relative_error
from tests.support.in_zennit import attribute, epsilon_composite
from tests.support.models import NAMES, TARGET, images, network, small_densenet

# The issue asks for 1e-10 and 1e-9; measured: equal to the bit on torch 2.14 and CPU.
TOLERANCE = 1e-12

pytestmark = [pytest.mark.zennit, pytest.mark.whole]


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_epsilon(name, prefer):
    model, x = network(name), images()
    by_zennit = attribute(model, x, epsilon_composite(1e-9, [ModelCanonizer(prefer=prefer)]))
    by_captum = LRP(model, presets.epsilon(1e-9), prefer=prefer).attribute(x, target=TARGET)
    assert relative_error(by_captum, by_zennit) < TOLERANCE


@pytest.mark.parametrize("clipped", ["absorb", "pass"])
@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_epsilon_plus(name, prefer, clipped):
    model, x = network(name), images()
    by_zennit = attribute(model, x, EpsilonPlus(canonizers=[ModelCanonizer(prefer=prefer, clipped=clipped)]))
    by_captum = LRP(model, presets.epsilon_plus(), prefer=prefer, clipped=clipped).attribute(x, target=TARGET)
    assert relative_error(by_captum, by_zennit) < TOLERANCE


PRESETS = {
    **{name: entry for name, entry in parity.PRESETS.items() if name != "epsilon"},
    "epsilon_plus": (EpsilonPlus, {"zero_params": "bias", "stabilizer": 1e-4}),
}


def _compare(model, x, preset, prefer, clipped):
    composite, keywords = PRESETS[preset]
    by_zennit = attribute(model, x, composite(canonizers=[ModelCanonizer(prefer=prefer, clipped=clipped)], **keywords))
    rules_of = getattr(presets, preset)(**keywords)
    by_captum = LRP(model, rules_of, prefer=prefer, clipped=clipped).attribute(x, target=TARGET)
    assert by_captum.isfinite().all()
    assert relative_error(by_captum, by_zennit) < TOLERANCE
    other = LRP(model, presets.epsilon(1e-6), prefer=prefer, clipped=clipped).attribute(x, target=TARGET)
    assert relative_error(other, by_zennit) > 1e-2


@pytest.mark.parametrize("clipped", ["absorb", "pass"])
@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset, prefer, clipped):
    _compare(small_densenet(), images(), preset, prefer, clipped)


@pytest.mark.slow
@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", parity.MODELS)
def test_presets_on_large_networks(name, preset, prefer):
    model, x = parity.build(name)
    for clipped in ("absorb", "pass"):
        _compare(model, x, preset, prefer, clipped)


def _ignore_negative_inputs(monkeypatch):
    terms = rules.ZPlus.terms
    monkeypatch.setattr(rules.ZPlus, "terms", lambda self: tuple(replace(t, inputs=positive) for t in terms(self)))


def _forget_positive_bias(monkeypatch):
    monkeypatch.setattr(rules.ZPlus, "__init__", lambda self, s, z: rules.Rule.__init__(self, s, ("bias",)))


def _other_stabilizer(monkeypatch):
    original = rules.ZPlus.__init__
    monkeypatch.setattr(rules.ZPlus, "__init__", lambda self, s, z: original(self, 1.01 * s, z))


def _copy_relevance_at_pools(monkeypatch):
    monkeypatch.setattr(rules.Norm, "propagate", _gradient)


def _gradient(self, call, inputs, relevance):
    leaves = tuple(tensor.requires_grad_() for tensor in inputs)
    return torch.autograd.grad(call.forward(*leaves), leaves, relevance)


@pytest.mark.parametrize(
    "break_it", [_ignore_negative_inputs, _forget_positive_bias, _other_stabilizer, _copy_relevance_at_pools]
)
def test_a_wrong_rule_is_noticed(break_it, monkeypatch):
    model, x = small_densenet(), images()
    by_zennit = attribute(model, x, EpsilonPlus(canonizers=[ModelCanonizer()]))
    break_it(monkeypatch)
    by_captum = LRP(model, presets.epsilon_plus()).attribute(x, target=TARGET)
    assert relative_error(by_captum, by_zennit) > 100 * TOLERANCE


@pytest.mark.parametrize("prefer", ["left", "right"])
def test_in_float32(prefer):
    model, x = small_densenet(), images().float()
    model.float()
    try:
        by_zennit = attribute(model, x, EpsilonPlus(canonizers=[ModelCanonizer(prefer=prefer)]))
        by_captum = LRP(model, presets.epsilon_plus(), prefer=prefer).attribute(x, target=TARGET)
    finally:
        small_densenet.cache_clear()
    assert relative_error(by_captum, by_zennit) < 1e-4
