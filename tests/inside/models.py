"""The networks that are used inside the block: together they have every kind of merge, lift and new forward."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zennit.composites import EpsilonPlus

import canon_bridge.captum
from canon_bridge import canonize
from canon_bridge.zennit import ModelCanonizer
from tests.core.test_canonize_restore import everything
from tests.support.pieces import Preactivation, conv, image, norm, tiny_densenet
from tests.support.statistics import randomize


class Branches(nn.Module):
    """Functional operations, a sum, a product with a gate, a concatenation, pools, a flatten, a transposed layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.up = conv(), norm(), nn.ConvTranspose2d(4, 4, 3, 2, 1, 1)
        self.norm2, self.norm3, self.gate, self.join = norm(), norm(8), nn.Linear(4, 4), conv(8, 4, 3, 1)
        self.left_over, self.head = norm(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.stem(x)))
        y = F.relu(self.norm2(self.up(F.max_pool2d(x, 2))))
        gate = torch.sigmoid(self.gate(y.mean((2, 3))))
        y = torch.cat([y * gate[:, :, None, None] + 0.5 * x, x], 1)
        y = self.join(F.silu(self.norm3(y)))
        y = self.left_over(F.softmax(y, 1)) + y
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


def leftover() -> nn.Module:
    """A BatchNorm that nothing can take, before another that goes right."""
    return nn.Sequential(nn.Softmax(1), norm(), nn.Softmax(1), norm(), nn.Tanh(), conv(4, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "everything": (everything, image),
    "pre-activation": (lambda: randomize(Preactivation().double()), image),
    "branches": (lambda: randomize(Branches().double()), image),
    "leftover": (lambda: randomize(leftover().double()), image),
    "densenet": (tiny_densenet, lambda: torch.randn(1, 3, 32, 32, dtype=torch.float64)),
}


def mostly(*names: str) -> list[Any]:
    """Return the names of all models for a parametrized test; those that are not given are slow."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


# Ways to make a model canonical; each gives a context manager.
BLOCKS: dict[str, Callable[[nn.Module], Any]] = {
    "left": lambda model: canonize(model, prefer="left"),
    "right": lambda model: canonize(model, prefer="right"),
    "captum": lambda model: canon_bridge.captum.canonize(model, prefer="right"),
    "zennit": lambda model: EpsilonPlus(canonizers=[ModelCanonizer("left")]).context(model),
}


def made(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a new model, an input and the output without canonization."""
    build, example = MODELS[name]
    model, x = build(), example()
    return model, x, model(x).detach()
