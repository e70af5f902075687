"""The audit as its user meets it: inputs, rules, errors, what it returns, and nothing left behind."""

import copy

import pytest
import torch
from torch import nn
from zennit.composites import EpsilonPlus

import canon_bridge.captum
from canon_bridge import Audit, TracingError, audit
from canon_bridge.captum import LRP, LayerLRP, presets
from canon_bridge.zennit import ModelCanonizer
from tests.support.models import TARGET, PreActivation, images, small_densenet
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

pytestmark = pytest.mark.zennit


class Counting(nn.Module):
    """What it returns depends on a value: only values tell its data flow."""

    def __init__(self) -> None:
        super().__init__()
        self.body = PreActivation()

    def forward(self, image):
        return self.body(image) if float(image.detach().sum()) > -1e9 else image


def test_a_model_that_only_values_trace():
    model, x = randomize(Counting().double()), images(2, 16)
    with pytest.raises(TracingError):
        audit(model, x, TARGET, EpsilonPlus(canonizers=[ModelCanonizer()]))
    lrp = LRP(model)
    before = audit(model, x, TARGET, lrp)
    assert before.defect < 1e-9
    assert lrp.attribute(x, target=TARGET).equal(LRP(model).attribute(x, target=TARGET))
    assert str(audit(model, x, TARGET, lrp)) == str(before)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = PreActivation()
        self.side = nn.Linear(7, 5)

    def forward(self, image, row, scale=1.0):
        return (self.body(image) + self.side(row)) * scale


@pytest.mark.parametrize("framework", ["zennit", "captum"])
def test_several_inputs_and_further_arguments(framework):
    model = randomize(TwoInputs().double(), mild=True)
    inputs = (images(size=16), torch.randn(2, 7, dtype=torch.float64))
    with_rules = EpsilonPlus(canonizers=[ModelCanonizer()]) if framework == "zennit" else LRP(model)
    report = audit(model, inputs, TARGET, with_rules, additional_forward_args=3.0)
    assert report.score == pytest.approx(
        3 * float((model.body(inputs[0]) + model.side(inputs[1]))[:, TARGET].detach().sum())
    )
    assert report.defect < 1e-12
    relevance = LRP(model).attribute(inputs, TARGET, additional_forward_args=(3.0,))
    assert report.relevance == pytest.approx(float(sum(r.sum() for r in relevance)), rel=1e-9)


def every_kind(model):
    return (EpsilonPlus(canonizers=[ModelCanonizer()]), LRP(model), LayerLRP(model, model), presets.epsilon_plus())


@pytest.mark.parametrize("index", range(4))
def test_nothing_is_left(index):
    model, x = small_densenet(), images().requires_grad_()
    next(model.parameters()).requires_grad_(False)
    before = Snapshot(model)
    first, second = (audit(model, x, TARGET, every_kind(model)[index]) for _ in range(2))
    assert first == second  # to the bit
    assert x.grad is None
    assert x.requires_grad
    before.check()
    with pytest.raises(ValueError, match="does not select"):
        audit(model, x, 99, every_kind(model)[index])
    before.check()

    def fail(*_):
        raise KeyboardInterrupt

    handle = model.features.denseblock2.register_full_backward_hook(fail)
    before = Snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        audit(model, x, TARGET, every_kind(model)[index])
    before.check()
    handle.remove()


def test_a_preset_audits_the_model_as_it_stands():
    model, x = small_densenet(), images()
    with canon_bridge.captum.canonize(model, prefer="right"):
        inside = audit(model, x, TARGET, presets.epsilon_plus())
    by_lrp = audit(model, x, TARGET, LRP(model, prefer="right"))
    assert inside.relevance == pytest.approx(by_lrp.relevance, rel=1e-12)
    assert audit(model, x, TARGET, presets.epsilon_plus()).defect > 0.1


def test_rules_of_another_kind_are_refused():
    model, x = small_densenet(), images()
    for rules in (None, presets, "epsilon", presets.epsilon):
        with pytest.raises(TypeError, match="must be a zennit composite, a preset"):
            audit(model, x, TARGET, rules)


def test_the_report_is_data():
    model, x = small_densenet(), images()
    report = audit(model, x, TARGET, LRP(model))
    assert isinstance(report, Audit)
    assert [entry.path for entry in report.entries[:3]] == ["(model)", "features", "features.conv0"]
    assert {entry.calls for entry in report.entries} == {1}


@pytest.mark.parametrize("prefer", ["left", "right"])
def test_layer_lrp_finds_at_every_module_what_the_audit_did(prefer):
    model, x = small_densenet(), images()
    before = Snapshot(model)
    entries = {entry.path: entry for entry in audit(model, x, TARGET, LRP(model, prefer=prefer)).entries}
    paths = [path for path, _ in model.named_modules() if path in entries]
    assert len(paths) > 50
    layers = [model.get_submodule(path) for path in paths]
    for at_input in (False, True):
        lrp = LayerLRP(model, layers, prefer=prefer)
        found = lrp.attribute(x, target=TARGET, attribute_to_layer_input=at_input)
        for path, relevance in zip(paths, found, strict=True):
            parts = relevance if isinstance(relevance, tuple) else (relevance,)
            expected = entries[path].handed_down if at_input else entries[path].arrived
            assert float(sum(part.sum() for part in parts)) == pytest.approx(expected, rel=1e-9, abs=1e-12), path
    before.check()


@pytest.mark.parametrize("framework", ["zennit", "captum"])
def test_rounding_in_float32_is_no_loss(framework):
    model, x = copy.deepcopy(small_densenet()).float(), images().float()
    canonical = EpsilonPlus(canonizers=[ModelCanonizer()]) if framework == "zennit" else LRP(model)
    report = audit(model, x, TARGET, canonical)
    assert report.worst() == []
    assert 0 < report.defect < 1e-4
    raw = audit(model, x, TARGET, EpsilonPlus() if framework == "zennit" else presets.epsilon_plus())
    assert len(raw.worst(1000)) > 10
    assert raw.defect > 0.1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_and_inference_mode(mode):
    model, x = small_densenet(), images()
    expected = audit(model, x, TARGET, LRP(model), additional_forward_args=None)
    with mode():
        assert audit(model, x, TARGET, LRP(model)) == expected
