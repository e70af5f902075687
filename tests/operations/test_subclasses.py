"""Subclasses of torch's layers with a forward of their own: they have the rule of their layer, or are named."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zennit.composites import EpsilonPlus

from canon_bridge import UncoveredOperationWarning, plan
from canon_bridge.captum import LRP, presets
from canon_bridge.zennit import ModelCanonizer
from tests.operations.networks import finish, image
from tests.operations.stages import CLASSES
from tests.support.errors import relative_error
from tests.support.in_zennit import TARGET, attribute

pytestmark = pytest.mark.zennit


class Enlarge(nn.Upsample):
    def forward(self, x):
        return super().forward(x)


class Average(nn.AvgPool2d):
    def forward(self, x):
        return super().forward(x)


class Shrink(nn.Hardshrink):
    def forward(self, x):
        return super().forward(x)


class Smooth(nn.SiLU):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Normed(nn.Conv2d):
    """A convolution with a BatchNorm inside."""

    def __init__(self):
        super().__init__(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(super().forward(x))


class Twice(nn.MaxPool2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Gated(nn.GLU):
    def forward(self, x):
        return torch.cat([F.glu(x, 1), F.glu(-x, 1)], 1)


def network(stage):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        stage,
        nn.Conv2d(4, 4, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


def made(stage):
    def make():
        torch.manual_seed(0)
        model = network(stage)
        model(image().float())
        return model

    return finish(make)


def by_zennit(model, x, prefer):
    return attribute(model, x, EpsilonPlus(epsilon=1e-4, canonizers=[ModelCanonizer(prefer=prefer)]))


def by_captum(model, x, prefer):
    return LRP(model, presets.epsilon_plus(epsilon=1e-4), prefer=prefer).attribute(x, target=TARGET)


KNOWN = {
    "upsampling": (lambda: Enlarge(scale_factor=2, mode="bilinear"), lambda: nn.Upsample(None, 2, "bilinear")),
    "average pooling": (lambda: Average(2), lambda: nn.AvgPool2d(2)),
    "an activation that zennit knows not": (lambda: Shrink(0.1), lambda: nn.Hardshrink(0.1)),
    "an activation": (Smooth, nn.SiLU),
}


@pytest.mark.parametrize("by", [by_zennit, by_captum])
@pytest.mark.parametrize("name", KNOWN)
def test_the_rule_is_that_of_the_layer(name, by):
    own, plain = (made(make()) for make in KNOWN[name])
    x = image()
    assert plan(own).uncovered == ()
    expected = by(plain, x, "left")
    assert relative_error(by(own, x, "left"), expected) < 1e-10
    assert expected.abs().max() > 0


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("make", [Normed, lambda: Twice(2), Gated])
def test_what_the_layer_does_not_account_for_is_named(make, prefer):
    model, x = made(make()), image()
    (named,) = plan(model, prefer=prefer).uncovered
    assert named.path == "2"
    for by in (by_zennit, by_captum):
        with pytest.warns(UncoveredOperationWarning, match="in 2"):
            by(model, x, prefer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UncoveredOperationWarning)
            assert by(model, x, prefer).isfinite().all()
