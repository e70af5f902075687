"""NETWORKS: piecewise-linear networks of one operation each, at three positions, and networks of many containers."""

import copy
import importlib.util
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.operations import containers, linear, movement, questions, rectifiers, reuse
from tests.operations.stages import POSITIONS, Operation, With
from tests.operations.stages import SIZE as SIZE
from tests.support.statistics import randomize

WRITE_POSITIONS = ("norm", "conv")


def _einops() -> dict[str, Operation]:
    if importlib.util.find_spec("einops") is None:
        return {}
    import einops
    from einops.layers.torch import Rearrange, Reduce

    return {
        "einops.rearrange": lambda h: einops.rearrange(h, "n (g c) h w -> n (c g) h w", g=2),
        "einops.reduce": lambda h: einops.reduce(h, "n c h w -> n c", "mean"),
        "einops.repeat": lambda h: einops.repeat(h, "n c h w -> n (r c) h w", r=2),
        "Rearrange": With(lambda self, h: self.layer(h), layer=Rearrange("n c h w -> n (h w) c")),
        "Reduce": With(lambda self, h: self.layer(h), layer=Reduce("n c (h a) (w b) -> n c h w", "max", a=2, b=2)),
        "Reduce, mean": With(lambda self, h: self.layer(h), layer=Reduce("n c h w -> n c", "mean")),
    }


def _staged(position: str, operation: Operation) -> nn.Module:
    operation = copy.deepcopy(operation)
    for module in operation.modules() if isinstance(operation, nn.Module) else ():
        if isinstance(module, nn.Linear):
            module.reset_parameters()  # drawn at import, without a seed
    return POSITIONS[position](operation)


OPERATIONS: dict[str, Operation] = (
    linear.LINEAR | movement.MOVEMENT | rectifiers.RECTIFIERS | questions.QUESTIONS | _einops()
)
WRITES: dict[str, Operation] = rectifiers.WRITES

# Nothing is left of what a ReLU has returned.
ALL_ZERO = {f"{name} behind relu" for name in ("clamp(max=0)", "torch.clamp_max", "relu of negative")}

# With other weights than these all units of the last ReLU are off.
SEEDS = {
    "mean(1) behind conv": 3,
    "F.bilinear with a constant behind relu": 1,
    "slice with a step behind conv": 1,
    "overwrites parts of a list": 1,
}

# What torch does not differentiate, in the original either, and the same network in another spelling.
WITHOUT_GRADIENT: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    f"{name} behind {position}": (partial(_staged, position, operation), partial(_staged, position, twin))
    for name, (operation, twin) in rectifiers.WITHOUT_GRADIENT.items()
    for position in WRITE_POSITIONS
}
_STAGED = {f"{n} behind {p}": partial(_staged, p, op) for n, op in OPERATIONS.items() for p in POSITIONS}

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: make for name, make in _STAGED.items() if name not in ALL_ZERO},
    **{f"{n} behind {p}": partial(_staged, p, op) for n, op in WRITES.items() for p in WRITE_POSITIONS},
    **containers.CONTAINERS,
    **reuse.REUSE,
}
NEEDS_INPUTS = containers.BY_VALUE | {
    f"{name} behind {position}"
    for name in ("torch.unbind(dim=-1)", "reversed list", "crop, rounded down", "is_contiguous")
    for position in POSITIONS
}
CHANGE_THEMSELVES = containers.CHANGE_THEMSELVES


def _usual() -> Iterator[str]:
    """Yield every network, of an operation at several positions one of these, in turn."""
    for number, name in enumerate([*OPERATIONS, *WRITES]):
        there = [f"{name} behind {p}" for p in POSITIONS if f"{name} behind {p}" in NETWORKS]
        yield there[number % len(there)]
    yield from (*containers.CONTAINERS, *reuse.REUSE)


USUAL = frozenset(_usual())


def cases(names: Collection[str], *options: Sequence[Any], each: Sequence[Any] = ()) -> list[Any]:
    """Return a parameter for every name and combination of options; all but one for each name are slow.

    Parameters
    ----------
    names : collection of str
        Networks, or operations; networks that are not ``USUAL`` are slow altogether.
    *options : sequence
        Which combination of these is the usual one changes from name to name.
    each : sequence, optional
        Another option, of which every value is usual once.
    """
    found: list[Any] = []
    combinations = list(product(*options))
    for number, name in enumerate(names):
        for turn, last in enumerate(each or [None]):
            for place, chosen in enumerate(combinations):
                is_usual = place == (number + turn) % len(combinations) and (name in USUAL or name not in NETWORKS)
                marks = () if is_usual else (pytest.mark.slow,)
                found.append(pytest.param(name, *chosen, *((last,) if each else ()), marks=marks))
    return found


def build(name: str) -> nn.Module:
    """Return the network in evaluation mode and float64, with random statistics of both signs."""
    return finish(NETWORKS[name], SEEDS.get(name, 0))


def finish(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return revive(randomize(make().double()))


def revive(model: nn.Module) -> nn.Module:
    """Give narrow BatchNorms other scales than zero and 1e-20: no relevance would pass them."""
    for norm in model.modules():
        if isinstance(norm, _BatchNorm) and norm.num_features < 6:
            with torch.no_grad():
                norm.weight[-1] = -0.6
                if norm.num_features < 4:
                    norm.weight[0] = 0.8
    return model


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def options(name: str, prefer: str) -> dict:
    """Return the keywords for plan, canonize and ModelCanonizer."""
    return {"prefer": prefer, **({"example_inputs": image()} if name in NEEDS_INPUTS else {})}
