"""Products hand all relevance to their signal: LRP-0 is gradient times input of a network whose gates are detached."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from canon_bridge import canonize, plan
from canon_bridge.core.explicit import Multiply
from tests.operations.networks import finish, image
from tests.operations.stages import POSITIONS, With
from tests.operations.test_relevance import FRAMEWORKS, TOLERANCE
from tests.support.errors import relative_error
from tests.support.models import gradient_times_input

pytestmark = pytest.mark.zennit


def _gate(h):
    return torch.sigmoid(h.mean((2, 3), keepdim=True))


def _halves(h):
    return h[:, :2] * torch.sigmoid(h[:, 2:]).detach()


def _attention(h):
    return torch.softmax(h.flatten(2) @ h.flatten(2).transpose(1, 2), dim=-1)


# What makes a gate of one branch of the same size as the signal, so that only what is done to it tells.
GATES = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "nn.Hardsigmoid": nn.Hardsigmoid(),
    "softmax": lambda v: v.flatten(2).softmax(-1).view_as(v),
    "softmin": lambda v: F.softmin(v, 1),
    "tanh": torch.tanh,
    "softsign": F.softsign,
    "atan": torch.atan,
    "erf": torch.erf,
    "sin": torch.sin,
    "ndtr": torch.special.ndtr,
    "clamp": lambda v: v.clamp(-0.3, 0.4),
    "hardtanh": lambda v: F.hardtanh(v, -0.2, 0.3),
    "relu6": lambda v: F.relu6(v + 3) / 6,
    "rounded": lambda v: (torch.sigmoid(v) * 8).round() / 8,
    "clamped": lambda v: torch.sigmoid(v).clamp(0.3, 0.6),
    "clamped from below": lambda v: torch.sigmoid(v).clamp_min(0.45),
    "scaled and shifted": lambda v: 2 * torch.sigmoid(v) - 0.5,
    "one less": lambda v: 1 - torch.sigmoid(v),
    "by a parameter": With(lambda self, v: torch.sigmoid(v) * self.w + self.w, w=nn.Parameter(torch.rand(4, 1, 1))),
    "rectified": lambda v: F.relu(torch.tanh(v) * 3 - 0.1),
    "a root": lambda v: torch.sigmoid(v).sqrt(),
    "a power": lambda v: torch.sigmoid(v) ** 2,
    "the largest": lambda v: torch.sigmoid(v).amax(1, keepdim=True).expand_as(v),
    "pooled": lambda v: F.max_pool2d(torch.sigmoid(v), 3, 1, 1),
    "dropped": lambda v: F.dropout(torch.sigmoid(v), 0.5, training=False),
    "straight through": lambda v: (v.sigmoid() > 0.5).double() + v.sigmoid() - v.sigmoid().detach(),
}
GATES |= {
    "written by hand": lambda v: 1 / (1 + torch.exp(-v)),
    "joined": lambda v: torch.cat([v[:, :2].sigmoid(), v[:, 2:].tanh()], 1),
    "a sum of gates": lambda v: v.sigmoid() + v.flip(1).tanh(),
    "a product of gates": lambda v: v.sigmoid() * v.flip(1).sigmoid(),
}
ORDERS = {"after": lambda a, b: a * b, "before": lambda a, b: b * a}


class Branches(nn.Module):
    """Two layers on one input, with a BatchNorm each, of which the second is made a gate."""

    def __init__(self, gate, product, is_detached=False):
        super().__init__()
        self.conv0, self.norm0 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.norm2, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.gate, self.product, self.is_detached = gate, product, is_detached

    def forward(self, x):
        signal, gate = F.relu(self.norm0(self.conv0(x))), self.gate(self.norm1(self.conv1(x)))
        return self.head(self.norm2(self.product(signal, gate.detach() if self.is_detached else gate)).mean((2, 3)))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_known_by_its_bounds(name, order, framework):
    model, detached = (finish(lambda d=d: Branches(GATES[name], ORDERS[order], d)) for d in (False, True))
    x = image()
    expected = gradient_times_input(detached, x)
    assert expected.abs().max() > 1e-6
    prefer = "left" if order == "after" else "right"
    assert relative_error(FRAMEWORKS[framework]("", model, x, prefer), expected) < TOLERANCE


@pytest.mark.parametrize(
    "function",
    [
        F.silu,
        F.elu,
        torch.asinh,
        torch.exp,
        lambda v: v.log_softmax(1),
        F.gelu,
        lambda v: v.sigmoid() + v.flip(1).relu(),
        lambda v: torch.cat([v[:, :2].sigmoid(), v[:, 2:]], 1),
    ],
)
def test_what_is_not_bounded_is_no_gate(function):
    model = finish(lambda: Branches(function, ORDERS["after"]))
    with canonize(model):
        (product,) = (module for module in model.modules() if isinstance(module, Multiply))
        assert product.signal is None


# The operation, and the same with what is not signal detached.
PRODUCTS = {
    "gate": (lambda h: h * _gate(h), lambda h: h * _gate(h).detach()),
    "gate first": (lambda h: torch.mul(_gate(h), h), lambda h: h * _gate(h).detach()),
    "mul(other=)": (lambda h: h.mul(other=_gate(h)), lambda h: h * _gate(h).detach()),
    "einsum": (
        lambda h: torch.einsum("nchw,nc->nchw", h, _gate(h).flatten(1)),
        lambda h: h * _gate(h).detach(),
    ),
    "quotient": (lambda h: h / (1 + _gate(h)), lambda h: h / (1 + _gate(h)).detach()),
    "nn.GLU": (With(lambda self, h: self.glu(h), glu=nn.GLU(dim=1)), _halves),
    "F.glu": (lambda h: F.glu(h, 1), _halves),
    "glu by chunk": (lambda h: (lambda a, b: a * torch.sigmoid(b))(*h.chunk(2, 1)), _halves),
    "glu by slices": (lambda h: h[:, :2] * torch.sigmoid(h[:, 2:]), _halves),
    "lerp": (
        lambda h: torch.lerp(h, h.flip(3), torch.sigmoid(h.flip(2))),
        lambda h: torch.lerp(h, h.flip(3), torch.sigmoid(h.flip(2)).detach()),
    ),
    "lerp by itself": (
        lambda h: torch.lerp(h, h.flip(3), h),
        lambda h: torch.lerp(h, h.flip(3), h.detach()),
    ),
    "lerp(weight=)": (
        lambda h: h.lerp(h.flip(3), weight=_gate(h)),
        lambda h: h.lerp(h.flip(3), _gate(h).detach()),
    ),
    "trapezoid(x=)": (
        lambda h: torch.trapezoid(h, x=h.cumsum(-1), dim=-1),
        lambda h: torch.trapezoid(h, h.cumsum(-1).detach(), dim=-1),
    ),
    "dynamic F.linear": (
        lambda h: F.linear(h, _attention(h)[0, :, :, None].expand(4, 4, 6).reshape(16, 6), h.flatten()[:16]),
        lambda h: F.linear(h, _attention(h)[0, :, :, None].expand(4, 4, 6).reshape(16, 6).detach(), h.flatten()[:16]),
    ),
    "dynamic F.conv2d": (
        lambda h: F.conv2d(h, _attention(h)[0, :, :, None, None], padding=1),
        lambda h: F.conv2d(h, _attention(h)[0, :, :, None, None].detach(), padding=1),
    ),
    "dynamic grid": (
        lambda h: F.grid_sample(h, torch.tanh(h[:, :2]).movedim(1, -1), align_corners=False),
        lambda h: F.grid_sample(h, torch.tanh(h[:, :2]).movedim(1, -1).detach(), align_corners=False),
    ),
    "F.scaled_dot_product_attention": (
        lambda h: F.scaled_dot_product_attention(h, h.flip(1), h.flip(2)),
        lambda h: F.scaled_dot_product_attention(h.detach(), h.flip(1).detach(), h.flip(2)),
    ),
    "attention": (lambda h: _attention(h) @ h.flatten(2), lambda h: _attention(h).detach() @ h.flatten(2)),
    "attention by bmm": (
        lambda h: torch.bmm(_attention(h), h.flatten(2)),
        lambda h: _attention(h).detach() @ h.flatten(2),
    ),
    "attention by einsum": (
        lambda h: torch.einsum("nij,njl->nil", _attention(h), h.flatten(2)),
        lambda h: _attention(h).detach() @ h.flatten(2),
    ),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_the_signal_takes_all(name, position, prefer, framework):
    model, detached = (finish(lambda o=operation: POSITIONS[position](o)) for operation in PRODUCTS[name])
    x = image()
    expected = gradient_times_input(detached, x)
    assert relative_error(gradient_times_input(model, x), expected) > 1e-6
    assert relative_error(FRAMEWORKS[framework]("", model, x, prefer), expected) < TOLERANCE


@pytest.mark.parametrize("name", PRODUCTS)
def test_it_is_covered(name):
    assert plan(finish(lambda: POSITIONS["relu"](PRODUCTS[name][0]))).uncovered == ()
