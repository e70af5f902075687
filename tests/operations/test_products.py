"""Products hand all relevance to their signal: LRP-0 is gradient times input of a network whose gates are detached."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from canon_bridge import plan
from tests.conftest import relative_error
from tests.models import gradient_times_input
from tests.operations.networks import finish, image
from tests.operations.stages import POSITIONS, With
from tests.operations.test_relevance import FRAMEWORKS, TOLERANCE

pytestmark = pytest.mark.zennit


def _gate(h):
    return torch.sigmoid(h.mean((2, 3), keepdim=True))


def _halves(h):
    return h[:, :2] * torch.sigmoid(h[:, 2:]).detach()


def _attention(h):
    return torch.softmax(h.flatten(2) @ h.flatten(2).transpose(1, 2), dim=-1)


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
