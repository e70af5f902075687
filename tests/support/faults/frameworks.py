"""Failure modes in which zennit or Captum raises in the middle of an attribution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import captum.attr
import torch
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.canonizers import Canonizer
from zennit.composites import EpsilonPlus

import canon_bridge.captum
from canon_bridge.captum import LRP
from canon_bridge.core import plans
from canon_bridge.zennit import ModelCanonizer
from tests.support.faults.inject import INJECTORS, Counter, Fault
from tests.support.faults.modes import Subject


class _Failing(ModelCanonizer):
    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        raise Fault


def zennit_raises(subject: Subject, stride: int) -> Iterator[str]:
    """Yield a case for operations of an attribution with zennit, and for a canonizer beside ours that fails."""

    def attribute() -> None:
        composite = EpsilonPlus(canonizers=[ModelCanonizer(prefer=subject.prefer)])
        try:
            with Gradient(subject.model, composite) as attributor:
                attributor(subject.x.clone().requires_grad_(), torch.ones_like)
        finally:
            composite.remove()  # zennit itself stops at the first handle that raises

    yield from _interrupted(subject, attribute, stride, "zennit")
    composite = EpsilonPlus(canonizers=[ModelCanonizer(prefer=subject.prefer), _Failing()])
    with suppress(Fault):
        composite.register(subject.model)
    composite.remove()  # zennit has no handle of the canonizer that failed, and leaves the others to this
    subject.check("zennit, a canonizer that fails")
    yield "canonizer"


def captum_raises(subject: Subject, stride: int) -> Iterator[str]:
    """Yield a case for operations of an attribution with our LRP, and with Captum's own in the block."""

    def ours() -> None:
        LRP(subject.model, prefer=subject.prefer).attribute(subject.x.clone(), _target(subject.expected))

    def theirs() -> None:
        with canon_bridge.captum.canonize(subject.model, prefer=subject.prefer):
            captum.attr.LRP(subject.model).attribute(subject.x.clone(), _target(subject.expected))

    yield from _interrupted(subject, ours, stride, "Captum, our LRP")
    yield from _interrupted(subject, theirs, stride, "Captum, its own LRP")


def _target(output: Tensor) -> Any:
    return (0,) * (output.dim() - 1) if output.dim() > 2 else 0


def _interrupted(subject: Subject, act: Callable[[], None], stride: int, what: str) -> Iterator[str]:
    counter = Counter()
    with suppress(Exception), INJECTORS["operation"](counter):
        plans._KEPT.clear()
        act()  # Captum's own LRP does not know every module: then it raises by itself
    subject.check(what)
    yield "a whole run"
    for k in range(0, counter.count, stride):
        one = Counter(k)
        with suppress(Fault, Exception), INJECTORS["operation"](one):
            plans._KEPT.clear()
            act()
        subject.check(f"{what}, {one.where}", with_output=False)
        yield one.where
