"""LRP-0 on the canonical model equals gradient times input of the original one, in both frameworks.

The reference uses neither framework and no line of this package. Measured errors are about 2e-15.
"""

import captum.attr
import pytest
from torch import nn

import canon_bridge.captum
from canon_bridge import canonize
from canon_bridge.captum import LRP, presets
from canon_bridge.zennit import DenseNetSeqThreshCanonizer, DenseNetThreshSeqCanonizer, ModelCanonizer
from tests.support.errors import alive, relative_error
from tests.support.in_zennit import attribute, epsilon_composite
from tests.support.models import NAMES, TARGET, gradient_times_input, images, network, small_densenet
from tests.support.snapshot import Snapshot

TOLERANCE = 1e-12
LRP_0 = 1e-30

pytestmark = [pytest.mark.zennit, pytest.mark.whole]


@pytest.mark.parametrize("prefer", ["left", "right", "untangled"])
@pytest.mark.parametrize("name", NAMES)
def test_both_frameworks_equal_gradient_times_input(name, prefer):
    model, x = network(name), images()
    expected = gradient_times_input(model, x)
    snapshot = Snapshot(model)
    by_zennit = attribute(model, x, epsilon_composite(LRP_0, [ModelCanonizer(prefer=prefer)]))
    by_captum = LRP(model, presets.epsilon(LRP_0), prefer=prefer).attribute(x, target=TARGET)
    assert relative_error(by_zennit, expected) < TOLERANCE
    assert relative_error(by_captum, expected) < TOLERANCE
    snapshot.check()


@pytest.mark.parametrize("canonizer", [DenseNetSeqThreshCanonizer, DenseNetThreshSeqCanonizer])
@pytest.mark.parametrize("size", [32, 45])
def test_densenet_canonizers_on_other_sizes(canonizer, size):
    model, x = small_densenet(), images(3, size)
    relevance = attribute(model, x, epsilon_composite(LRP_0, [canonizer()]))
    assert relative_error(relevance, gradient_times_input(model, x)) < TOLERANCE


def test_relevance_on_clipped_units_that_passes_is_something_else():
    model, x = small_densenet(), images()
    passed = LRP(model, presets.epsilon(LRP_0), clipped="pass").attribute(x, target=TARGET)
    assert not relative_error(passed, gradient_times_input(model, x)) < 1e3 * TOLERANCE


@pytest.mark.parametrize("prefer", ["left", "right", "untangled"])
def test_captums_own_lrp_after_the_pre_processing_step(prefer):
    # Captum's epsilon is 1e-9 and cannot be set from outside, so this holds only where no output is near zero.
    model, x = small_densenet(), images()
    snapshot = Snapshot(model)
    with canon_bridge.captum.canonize(model, prefer=prefer):
        first = captum.attr.LRP(model).attribute(x, target=TARGET)
        second = captum.attr.LRP(model).attribute(x, target=TARGET)
    assert relative_error(first, gradient_times_input(model, x)) < 1e-4
    assert first.equal(second)
    snapshot.check()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prefer", ["left", "right"])
def test_function_and_canonical_form(name, prefer):
    model, x = network(name), images()
    expected = model(x).detach()
    snapshot = Snapshot(model)
    with canonize(model, prefer=prefer) as canonical:
        assert canonical is model
        assert alive(model) == []
        assert relative_error(model(x).detach(), expected) < TOLERANCE
        calls = _count_calls(model, x)
        assert all(count == 1 for module, count in calls.items() if isinstance(module, nn.ReLU))
    assert model(x).equal(expected)
    snapshot.check()


def _count_calls(model, x):
    calls: dict[nn.Module, int] = {}

    def count(module, args):
        calls[module] = calls.get(module, 0) + 1

    handles = [module.register_forward_pre_hook(count) for module in model.modules()]
    model(x)
    for handle in handles:
        handle.remove()
    return calls
