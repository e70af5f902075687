"""The ways to make a map: rules, orders of canonization, and baselines that no method should fall behind.

All maps are zennit's: those of ``canon_bridge.captum`` are the same to the bit (``docs/parity.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from zennit.attribution import Gradient

from canon_bridge.frameworks import make_rules, score_of

Explain = Callable[[Tensor, Tensor], Tensor]

UNCANONIZED = "un-canonized"
# Keywords of `canonize`, by the name that the page gives them.
ORDERS: dict[str, Mapping[str, Any] | None] = {
    UNCANONIZED: None,
    "left, pass": {"prefer": "left", "clipped": "pass"},
    "right, pass": {"prefer": "right", "clipped": "pass"},
    "left, absorb": {"prefer": "left", "clipped": "absorb"},
    "right, absorb": {"prefer": "right", "clipped": "absorb"},
    "untangled": {"prefer": "untangled"},
}
# Presets of `make_rules`, by zennit's names.
RULES = {"EpsilonPlus": "epsilon_plus", "EpsilonAlpha2Beta1": "epsilon_alpha2_beta1", "Epsilon": "epsilon"}


def twins() -> dict[str, str]:
    """Return, by each order that passes relevance on at clipped units, the one that absorbs it and is the same else."""
    passing = {name: keywords for name, keywords in ORDERS.items() if keywords and keywords.get("clipped") == "pass"}
    return {
        name: other
        for name, keywords in passing.items()
        for other, others in ORDERS.items()
        if others == {**keywords, "clipped": "absorb"}
    }


@dataclass(frozen=True)
class Way:
    """One way to make a map.

    Parameters
    ----------
    rule : str
        A key of ``RULES``; empty for a baseline.
    order : str
        A key of ``ORDERS``, or of ``BASELINES``.
    """

    rule: str
    order: str

    @contextmanager
    def open(self, model: nn.Module) -> Generator[Explain]:
        """Make the model ready, and yield what explains images ``(N, C, H, W)`` and classes ``(N,)``."""
        if not self.rule:
            yield lambda images, classes: BASELINES[self.order](model, images, classes)
            return
        keywords = ORDERS[self.order]
        composite = make_rules("zennit", model, RULES[self.rule], **(keywords or {}))
        if keywords is None:
            composite.canonizers = []
        with Gradient(model, composite) as attributor:
            yield lambda images, classes: _attribute(attributor, images, classes)


def _attribute(attributor: Any, images: Tensor, classes: Tensor) -> Tensor:
    return attributor(images.detach().requires_grad_(), score_of(classes))[1].detach().sum(1)


def _gradient_times_input(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model(images).gather(1, classes[:, None]).sum(), images)
    return (gradient * images).detach().sum(1)


def _random(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    return torch.rand_like(images[:, 0])


def _image(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    return images.sum(1)


GRADIENT = "gradient times input"
BASELINES: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    GRADIENT: _gradient_times_input,
    "the image itself": _image,
    "random": _random,
}
WAYS = (*(Way("", name) for name in BASELINES), *(Way(rule, order) for rule in RULES for order in ORDERS))
