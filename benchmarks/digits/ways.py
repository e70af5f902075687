"""EpsilonPlus in zennit and in Captum, with and without canonization, and how right each map is.

``WAYS`` is the table of the four ways. This file knows nothing about where models and images come from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import captum.attr
import torch
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

import canon_bridge.captum
from canon_bridge.frameworks import score_of
from canon_bridge.zennit import ModelCanonizer


@dataclass(frozen=True)
class Way:
    """One way to make a map.

    Parameters
    ----------
    framework : str
        ``"zennit"`` or ``"Captum"``.
    is_canonized : bool
        Whether canon_bridge rewrites the model for it.
    attribute : callable
        ``(model, inputs, targets) -> relevance`` of the inputs' shape, in units of the logit.
    enter : callable
        ``(model) -> context manager`` inside which the model is as it is while relevance flows.
    """

    framework: str
    is_canonized: bool
    attribute: Callable[[nn.Module, Tensor, Tensor], Tensor]
    enter: Callable[[nn.Module], AbstractContextManager[object]]


@dataclass(frozen=True)
class Outcome:
    """What a way gave for one model and one batch.

    Parameters
    ----------
    way : Way
        Which.
    batch_norms_left : int
        BatchNorms that compute anything but the exact identity while relevance flows.
    function_error : float
        ``max |f_inside - f| / max |f|`` over the batch.
    relevance : Tensor or None
        Sum over the colour channels, shape ``(N, H, W)``; None where the framework failed.
    failure : str
        The type of the framework's error, or nothing.
    """

    way: Way
    batch_norms_left: int
    function_error: float
    relevance: Tensor | None
    failure: str = ""


def _zennit_composite(is_canonized: bool) -> EpsilonPlus:
    """Return zennit's own EpsilonPlus, with or without a canonizer."""
    return EpsilonPlus(canonizers=[ModelCanonizer()] if is_canonized else None)


def _zennit_way(is_canonized: bool) -> Way:
    """Return the way through zennit."""

    def attribute(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        attributor: Any = Gradient(model, _zennit_composite(is_canonized))
        _, relevance = attributor(inputs, score_of(targets))
        return relevance.detach()

    def enter(model: nn.Module) -> AbstractContextManager[object]:
        return _zennit_composite(is_canonized).context(model)

    return Way("zennit", is_canonized, attribute, enter)


def _captum_canonized(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Attribute by canon_bridge's Captum class under the EpsilonPlus preset."""
    lrp = canon_bridge.captum.LRP(model, preset=canon_bridge.captum.presets.epsilon_plus())
    return lrp.attribute(inputs, target=targets).detach()


def _captum_alone(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Attribute by Captum's own LRP with the nearest that it has to EpsilonPlus.

    Captum's default rule is epsilon everywhere; its z+ rule goes onto the convolutions. It leaves attributes
    behind, so it gets a copy.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            vars(module)["rule"] = Alpha1_Beta0_Rule()
    return captum.attr.LRP(model).attribute(inputs, target=targets).detach()


WAYS: tuple[Way, ...] = (
    _zennit_way(is_canonized=False),
    Way("Captum", False, _captum_alone, lambda model: nullcontext()),
    _zennit_way(is_canonized=True),
    Way("Captum", True, _captum_canonized, lambda model: canon_bridge.captum.canonize(model)),
)


def explain(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Outcome, ...]:
    """Explain a batch in every way.

    Parameters
    ----------
    model : nn.Module
        In eval mode; as it was afterwards.
    inputs : Tensor
        Shape ``(N, C, H, W)``, of the model's dtype.
    targets : Tensor
        The class to explain for each input, shape ``(N,)``, int64.

    Returns
    -------
    tuple of Outcome
        In the order of ``WAYS``.
    """
    with torch.no_grad():
        logits = model(inputs)
    return tuple(_try(way, model, inputs, targets, logits) for way in WAYS)


def _try(way: Way, model: nn.Module, inputs: Tensor, targets: Tensor, logits: Tensor) -> Outcome:
    """Measure one way; where a framework fails on a model as it came, that is a result, not an accident."""
    with way.enter(model), torch.no_grad():
        error = ((model(inputs) - logits).abs().max() / logits.abs().max()).item()
        left = count_batch_norms(model)
    try:
        relevance = way.attribute(model, inputs.clone().requires_grad_(), targets)
    except Exception as failure:
        if way.is_canonized:
            raise
        return Outcome(way, left, error, None, type(failure).__name__)
    return Outcome(way, left, error, relevance.sum(1))


@torch.no_grad()
def count_batch_norms(model: nn.Module) -> int:
    """Count the BatchNorms that do not give back their input to the bit."""
    generator = torch.Generator().manual_seed(0)
    count = 0
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            dtype = next(model.parameters()).dtype
            probe = torch.randn(2, module.num_features, 3, 3, generator=generator, dtype=dtype)
            count += not torch.equal(module(probe.clone()), probe)
    return count


def disagreement(reference: Outcome, other: Outcome) -> float | None:
    """Return ``max |reference - other| / max |reference|`` of the worst map, or None where a way failed."""
    if reference.relevance is None or other.relevance is None:
        return None
    gaps = (reference.relevance - other.relevance).abs().amax((1, 2))
    return (gaps / reference.relevance.abs().amax((1, 2))).max().item()


def share_inside(relevance: Tensor, masks: Tensor) -> Tensor:
    """Return which share of the positive relevance falls where the masks are true.

    Parameters
    ----------
    relevance : Tensor
        Shape ``(N, H, W)``.
    masks : Tensor
        Shape ``(N, H, W)``, bool.

    Returns
    -------
    Tensor
        Shape ``(N,)``, in [0, 1]; NaN where nothing is positive.
    """
    positive = relevance.clamp(min=0)
    return (positive * masks).sum((1, 2)) / positive.sum((1, 2))
