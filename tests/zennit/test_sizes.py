"""Transposed convolutions that are told the size of their output, by any spelling, as U-Nets call them."""

import pytest
import torch
from torch import nn
from zennit.composites import EpsilonAlpha2Beta1, EpsilonPlus

from canon_bridge import canonize
from canon_bridge.captum import LRP, presets
from canon_bridge.zennit import ModelCanonizer
from canon_bridge.zennit.sizes import _with_size
from tests.operations.networks import finish
from tests.operations.stages import CLASSES
from tests.support.errors import relative_error
from tests.support.in_zennit import TARGET, attribute, epsilon_composite
from tests.support.models import gradient_times_input
from tests.support.snapshot import Snapshot

LRP_0 = 1e-30

pytestmark = pytest.mark.zennit


class UNet(nn.Module):
    """One step down and one up, to the size that there was before, which is odd or even."""

    def __init__(self, call):
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.up, self.after = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.call, self.head = call, nn.Linear(7, CLASSES)

    def forward(self, x):
        h = self.call(self.up, self.norm(torch.relu(self.down(x))), x)
        return self.head(torch.cat([torch.relu(self.after(h)), x], 1).mean((2, 3)))


CALLS = {
    "by name": lambda up, h, x: up(h, output_size=x.shape),
    "by position": lambda up, h, x: up(h, x.shape[2:]),
    "all by name": lambda up, h, x: up(input=h, output_size=x.size()[2:]),
    "a list": lambda up, h, x: up(h, [x.shape[2], x.shape[3]]),
}


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("name", CALLS)
def test_both_frameworks_equal_gradient_times_input(name, prefer):
    model = finish(lambda: UNet(CALLS[name]))
    before = Snapshot(model)
    composite = epsilon_composite(LRP_0, [ModelCanonizer(prefer=prefer)])
    for size in (8, 7):
        x = torch.randn(2, 3, size, size + 1, dtype=torch.float64)
        expected = gradient_times_input(model, x)
        assert relative_error(attribute(model, x, composite), expected) < 1e-9
        found = LRP(model, presets.epsilon(LRP_0), prefer=prefer).attribute(x, target=TARGET)
        assert relative_error(found, expected) < 1e-9
        output = model(x)
        with composite.context(model):
            assert relative_error(model(x), output) < 1e-12
            with canonize(model):
                assert relative_error(model(x), output) < 1e-12
    before.check()


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("name", CALLS)
def test_signed_rules_and_a_model_that_was_compared_on_example_inputs(name, prefer):
    model, x = finish(lambda: UNet(CALLS[name])), torch.randn(2, 3, 8, 9, dtype=torch.float64)
    before, expected = Snapshot(model), gradient_times_input(model, x)
    composite = epsilon_composite(LRP_0, [ModelCanonizer(prefer=prefer, example_inputs=x)])
    with composite.context(model):
        pass  # a warning is an error here, also where nothing was run
    with composite.context(model), torch.no_grad():
        model(x)
    assert relative_error(attribute(model, x, composite), expected) < 1e-9
    for preset, kind in ((presets.epsilon_plus(), EpsilonPlus), (presets.epsilon_alpha2_beta1(), EpsilonAlpha2Beta1)):
        composite = kind(canonizers=[ModelCanonizer(prefer=prefer, example_inputs=x)])
        found = LRP(model, preset, prefer=prefer).attribute(x, target=TARGET)
        assert relative_error(found, attribute(model, x, composite)) < 1e-9
    before.check()


def test_a_layer_that_is_told_no_size_keeps_its_own_forward():
    model = finish(lambda: UNet(lambda up, h, x: torch.nn.functional.pad(up(h), (0, 1, 0, 1))))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with epsilon_composite(LRP_0, [ModelCanonizer()]).context(model):
        model(x)
        assert getattr(model.up.forward, "func", None) is not _with_size
