"""What the values of a BatchNorm are when the block is entered, not when it was planned."""

import torch
from torch import nn

from canon_bridge import canonize
from tests.support.decisions import STAYS, decided
from tests.support.errors import relative_error
from tests.support.pieces import conv, image, norm
from tests.support.statistics import randomize


def test_a_norm_that_was_the_identity_when_the_plan_was_made_is_looked_at_again() -> None:
    # The plan is made once, the values are read at each entry.
    model = randomize(nn.Sequential(norm(), nn.BatchNorm2d(4, affine=False), conv()).double())
    ready, x = model[1], image()
    ready.eps, ready.running_mean, ready.running_var = 0.0, torch.zeros(4).double(), torch.ones(4).double()
    canonization = canonize(model, prefer="right")
    assert decided(canonization.plan) == {"0": "right 2", "1": STAYS}
    ready.running_var.fill_(4)
    expected = model(x)
    try:
        with canonization:
            value = model(x)
    except RuntimeError:
        return
    assert relative_error(value, expected) < 1e-12
