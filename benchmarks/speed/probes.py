"""What is timed on one model: entering, forward passes, attribution in zennit and in Captum."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Sequence

import captum.attr
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from zennit.canonizers import Canonizer
from zennit.composites import EpsilonPlus
from zennit.torchvision import ResNetCanonizer, VGGCanonizer

from benchmarks.speed.timing import Clock, Probe
from canon_bridge import canonize, canonized_copy
from canon_bridge.captum import LRP
from canon_bridge.core import Prefer
from canon_bridge.zennit import ModelCanonizer
from tests.support.in_zennit import TARGET

PREFERS: tuple[Prefer, ...] = ("left", "right")
_OWN: dict[str, Callable[[], Canonizer]] = {"resnet": ResNetCanonizer, "vgg": VGGCanonizer}


def first_entry(model: nn.Module, prefer: Prefer) -> Probe:
    """Time plan, apply and undo on a copy that was never canonized."""

    def run(clock: Clock) -> dict[str, float]:
        fresh = copy.deepcopy(model)
        start = clock.now()
        block = canonize(fresh, prefer=prefer)
        planned = clock.now()
        block.apply()
        applied = clock.now()
        block.undo()
        end = clock.now()
        parts = {"plan": planned - start, "apply": applied - planned, "undo": end - applied}
        return {"first": end - start, **parts}

    return Probe(prefer, ("first", "plan", "apply", "undo"), run)


def next_entry(model: nn.Module, prefer: Prefer) -> Probe:
    """Time entry and exit with a plan that was used before."""
    block = canonize(model, prefer=prefer)
    with block:
        pass

    def run(clock: Clock) -> dict[str, float]:
        start = clock.now()
        with block:
            pass
        return {"again": clock.now() - start}

    return Probe(prefer, ("again",), run)


@torch.no_grad()
def run_forward(model: nn.Module, x: Tensor) -> Tensor:
    """Run the model, as the unit of all times does."""
    return model(x)


def forward_inside(model: nn.Module, x: Tensor, prefer: Prefer) -> Probe:
    """Time the second forward inside a block."""
    block = canonize(model, prefer=prefer)

    def run(clock: Clock) -> dict[str, float]:
        with block:
            run_forward(model, x)
            return {"forward": clock.seconds(lambda: run_forward(model, x))}

    return Probe(prefer, ("forward",), run)


def forward_of_copy(model: nn.Module, x: Tensor, prefer: Prefer) -> Probe:
    """Time the forward of a permanent canonical copy."""
    twin = canonized_copy(model, prefer=prefer)
    return Probe(prefer, ("copy",), lambda clock: {"copy": clock.seconds(lambda: run_forward(twin, x))})


def forward_of_fused(model: nn.Module, x: Tensor) -> Probe:
    """Time the forward of what torch's own fusion makes of the model."""
    made: list[nn.Module] = []

    def run(clock: Clock) -> dict[str, float]:
        if not made:
            made.append(fuse(model))
        return {"fuse": clock.seconds(lambda: run_forward(made[0], x))}

    return Probe("", ("fuse",), run)


def explain(model: nn.Module, x: Tensor) -> Tensor:
    """Return the relevance of one class, in a context that the caller has opened."""
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, TARGET].sum(), x)[0]


def by_zennit(model: nn.Module, x: Tensor, name: str, prefer: str, canonizers: Sequence[Canonizer]) -> Probe:
    """Time EpsilonPlus inside an open context, and what entering the context for each call adds to it.

    A context is entered for two attributions: the first, with entry and exit, is what a user pays who enters it each
    time, the second is what it costs when the context is open already.
    """
    composite = EpsilonPlus(canonizers=list(canonizers))

    def run(clock: Clock) -> dict[str, float]:
        start = clock.now()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with composite.context(model) as modified:
                explain(modified, x)
                first = clock.now() - start
                gc.collect()  # what entering and others have left is not searched for in the second
                second = clock.seconds(lambda: explain(modified, x))
                start = clock.now()
            end = clock.now() - start
        return {f"{name}_open": second, f"{name}_more": first + end - second}

    return Probe(prefer, (f"{name}_open", f"{name}_more"), run)


def by_zennit_alone(model: nn.Module, x: Tensor, name: str) -> list[Probe]:
    """Time un-canonized zennit, and its own canonizer where it has one for the architecture."""
    own = [make() for prefix, make in _OWN.items() if name.startswith(prefix)]
    return [by_zennit(model, x, "plain", "", ()), *(by_zennit(model, x, "own", "", [canonizer]) for canonizer in own)]


def by_model_canonizer(model: nn.Module, x: Tensor, prefer: Prefer) -> Probe:
    """Time zennit with our canonizer."""
    return by_zennit(model, x, "ours", prefer, [ModelCanonizer(prefer)])


def by_captum_alone(model: nn.Module, x: Tensor) -> Probe:
    """Time Captum's own LRP on a copy of the model, for it leaves attributes behind on every module."""
    lrp = captum.attr.LRP(copy.deepcopy(model))

    def run(clock: Clock) -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {"captum_own": clock.seconds(lambda: lrp.attribute(x, target=TARGET))}

    return Probe("", ("captum_own",), run)


def by_captum(model: nn.Module, x: Tensor, prefer: Prefer) -> Probe:
    """Time our LRP, which was called once before, when it also compares the function."""
    lrp = LRP(model, prefer=prefer)
    called: list[Tensor] = []

    def run(clock: Clock) -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not called:
                called.append(lrp.attribute(x, target=TARGET))
            return {"lrp": clock.seconds(lambda: lrp.attribute(x, target=TARGET))}

    return Probe(prefer, ("lrp",), run)
