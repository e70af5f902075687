"""Modules that overwrite a tensor which is read by another name: the function and the maps stay right, or are named."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from canon_bridge import canonize, plan
from canon_bridge.captum import LRP, presets
from canon_bridge.zennit import ModelCanonizer
from tests.operations.networks import finish, image
from tests.operations.stages import CLASSES
from tests.support.errors import relative_error
from tests.support.in_zennit import TARGET, attribute, epsilon_composite
from tests.support.models import gradient_times_input
from tests.support.snapshot import Snapshot

LRP_0 = 1e-30

pytestmark = pytest.mark.zennit


class Collecting(nn.Sequential):
    """Keeps what goes into some of its modules, and puts it out: a list of several scales."""

    def forward(self, x):
        kept = []
        for module in self:
            x = module(x)
            if isinstance(module, nn.Conv2d):
                kept.append(x)
        return kept


class Before(nn.Module):
    """An activation before a layer, in a forward of its own: it overwrites what its caller has kept."""

    def __init__(self, activation):
        super().__init__()
        self.activation, self.conv = activation, nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.conv(self.activation(x))


class Scales(nn.Module):
    """Reads all that was kept."""

    def __init__(self, *modules):
        super().__init__()
        self.body, self.norm = Collecting(nn.Conv2d(3, 4, 3), *modules, nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        first, second = self.body(x)
        return self.head(torch.cat([first.mean((2, 3)), self.norm(second).mean((2, 3))], 1))


class Beside(nn.Module):
    """Joins its input with what a block makes of it, as the skip connections of a U-Net do."""

    def __init__(self, *modules):
        super().__init__()
        self.block = nn.Sequential(*modules, nn.Conv2d(4, 4, 1))

    def forward(self, x):
        return torch.cat([x, self.block(x)], 1)


def _u_net(activation):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        Beside(activation),
        nn.Conv2d(8, 4, 4),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )


class Written(nn.Module):
    """``operation(activation, y)`` behind a norm."""

    def __init__(self, operation, activation):
        super().__init__()
        self.conv, self.norm, self.activation = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation
        self.operation, self.head = operation, nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.operation(self.activation, self.norm(self.conv(x))).mean((2, 3)))


def _read_as_a_view(activation, y):
    flat = y.view(-1)
    activation(y)
    return flat.view(y.shape)


def _first(activation, y):
    activation(y)
    return y


def _half(activation, y):
    activation(y[:, :2])
    return y


def _part(activation, y):
    activation(y.tensor_split(2, 1)[0])
    return y


# The network, and whether the result can be handed to all who read it, so that the activation may work out of place.
NETWORKS = {
    "kept by the forward itself": (lambda act: Scales(act), True),
    "kept by the one that calls": (lambda act: Scales(Before(act)), False),
    "joined by the one that calls": (_u_net, False),
    "the same name": (lambda act: Written(_first, act), True),
    "a view": (lambda act: Written(_read_as_a_view, act), False),
    "half": (lambda act: Written(_half, act), False),
    "a part": (lambda act: Written(_part, act), False),
}


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_relu_in_place(name, prefer):
    make, _ = NETWORKS[name]
    model, x = finish(lambda: make(nn.ReLU(inplace=True))), image()
    before, output, expected = Snapshot(model), model(x), gradient_times_input(model, x)
    assert plan(model, prefer=prefer).uncovered == ()
    with canonize(model, prefer=prefer):
        assert relative_error(model(x), output) < 1e-12
    assert (
        relative_error(LRP(model, presets.epsilon(LRP_0), prefer=prefer).attribute(x, target=TARGET), expected) < 1e-9
    )
    composite = epsilon_composite(LRP_0, [ModelCanonizer(prefer=prefer)])
    assert relative_error(attribute(model, x, composite), expected) < 1e-9
    with composite.context(model):
        assert relative_error(model(x), output) < 1e-12
    before.check()


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("activation", [nn.SiLU, nn.LeakyReLU])
@pytest.mark.parametrize("name", NETWORKS)
def test_another_activation_in_place_is_named_where_it_has_to_stay(name, activation, prefer):
    make, may_be_out_of_place = NETWORKS[name]
    model, x = finish(lambda: make(activation(inplace=True))), image()
    output = model(x)
    uncovered = plan(model, prefer=prefer).uncovered
    assert [(entry.what, "has to stay in place" in entry.reason) for entry in uncovered] == (
        [] if may_be_out_of_place else [(activation.__name__, True)]
    )
    with canonize(model, prefer=prefer):
        assert relative_error(model(x), output) < 1e-12
        stays = [module.inplace for module in model.modules() if isinstance(module, activation)]
        assert stays == [not may_be_out_of_place]
    composite = epsilon_composite(LRP_0, [ModelCanonizer(prefer=prefer)])
    is_named = nullcontext() if may_be_out_of_place else pytest.warns(UserWarning, match="has to stay in place")
    with is_named, composite.context(model):
        assert relative_error(model(x), output) < 1e-12
