"""One pattern end to end: what the plan decides, the function in the block, the model after it, and a wrong merge."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from canon_bridge import Leftover, Merge, Plan, canonize, plan
from canon_bridge.core import apply
from canon_bridge.core.affine import Affine
from canon_bridge.core.norms import is_identity, is_norm
from canon_bridge.core.plan import Chain, Obstacle
from canon_bridge.core.rewrite import make_explicit
from canon_bridge.core.search import Network, find_left, find_right
from canon_bridge.core.trace.trace import trace
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, image
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

TOLERANCE = 1e-12
WRONG = 1e-5
LINEAR, STAYS = "linear", "stays"


@dataclass(frozen=True)
class Case:
    """A model, and what becomes of its BatchNorms.

    Attributes
    ----------
    build : callable
        Makes the model.
    decided : dict
        For each BatchNorm ``"left a, b"``, ``"right c"``, ``"linear"`` or ``"stays"``, or two of them: for
        ``prefer="left"`` and ``prefer="right"``.
    shapes : tuple of tuple of int
        Of the inputs; the plan is made without any.
    options : mapping
        Keywords of ``canonize``.
    """

    build: Callable[[], nn.Module]
    decided: dict[str, str | tuple[str, str]]
    shapes: tuple[tuple[int, ...], ...] = ((2, 4, 6, 6),)
    options: Mapping[str, Any] = ()  # type: ignore[assignment]


def decided(made: Plan) -> dict[str, str]:
    """Return in short what a plan does with each BatchNorm."""
    return {
        entry.norm: f"{entry.chain.direction} {', '.join(entry.chain.targets)}"
        if isinstance(entry, Merge)
        else LINEAR
        if isinstance(entry, Leftover)
        else STAYS
        for entry in made.entries
    }


def search(model: nn.Module, path: str, direction: str) -> Chain | Obstacle:
    """Return the chain of one BatchNorm to one side, or what stands in the way, with all others as they are."""
    network = Network(make_explicit(model, trace(model)), model)
    norms = {o.path: o for o in network.in_order() if is_norm(o.module)}
    network.identities |= {name for name, norm in norms.items() if is_identity(norm.module)}
    return {"left": find_left, "right": find_right}[direction](network, norms[path])


def with_both_signs(model: nn.Module) -> nn.Module:
    """Give every BatchNorm random statistics, and of few channels, too, scales zero, tiny, negative and positive."""
    for norm in randomize(model).modules():
        weight = norm.weight if is_norm(norm) and not is_identity(norm) else None
        if isinstance(weight, nn.Parameter) and len(weight) > 3:
            with torch.no_grad():
                weight[1:3] = torch.stack([-weight[1].abs(), weight[2].abs()])
    return model


def is_merged(layer: nn.Module) -> bool:
    """Return whether a BatchNorm holds the values of the identity; it may refuse input of another rank."""
    values = ((layer.running_mean, 0), (layer.running_var, 1), (layer.weight, 1), (layer.bias, 0))
    return layer.eps == 0 and all(tensor is None or bool((tensor == value).all()) for tensor, value in values)


def outputs(model: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [model(x.clone()).clone() for x in inputs]


def check(case: Case) -> None:
    """Check one case with either preference."""
    model = with_both_signs(case.build().double())
    inputs, before = [image(*shape) for shape in case.shapes], Snapshot(model)
    expected = outputs(model, inputs)
    for index, prefer in enumerate(BOTH):
        options = {"prefer": prefer, **dict(case.options)}
        wanted = {k: v if isinstance(v, str) else v[index] for k, v in case.decided.items()}
        made = decided(plan(model, **options))
        assert made == wanted, f"prefer={prefer!r}: {made}"
        before.check()
        with canonize(model, **options):
            merged = {path for path, what in wanted.items() if what not in (LINEAR, STAYS)}
            assert {path for path in merged if not is_merged(model.get_submodule(path))} == set()
            assert {type(model.get_submodule(path)) for path, what in wanted.items() if what == LINEAR} <= {nn.Conv2d}
            for value, right in zip(outputs(model, inputs), expected, strict=True):
                assert value.shape == right.shape
                assert relative_error(value, right) < TOLERANCE
        before.check()
        assert all(map(torch.equal, outputs(model, inputs), expected))
    if merged:
        check_sensitive(model, inputs, expected, **options)
        before.check()


def check_sensitive(model: nn.Module, inputs: list[Tensor], expected: list[Tensor], **options: Any) -> None:
    """Fail if merges of the maps of other channels would not be noticed."""
    take = apply.take

    def rolled(*arguments: Any) -> Affine:
        affine = take(*arguments)
        return Affine(affine.scale.roll(1), affine.shift.roll(1))

    with mock.patch.object(apply, "take", rolled), canonize(model, **options):
        values = outputs(model, inputs)
    assert max(relative_error(value, right) for value, right in zip(values, expected, strict=True)) > WRONG
