"""Canonization keeps the function of every network, restores it, and loses no BatchNorm in silence."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from canon_bridge import canonize, plan
from tests.operations.networks import (
    CHANGE_THEMSELVES,
    NETWORKS,
    WITHOUT_GRADIENT,
    build,
    cases,
    finish,
    image,
    options,
)
from tests.support.errors import relative_error
from tests.support.snapshot import Snapshot

TOLERANCE = 1e-10


def norms(model: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in model.named_modules() if isinstance(module, _BatchNorm)}


@contextmanager
def norms_that_compute(model: nn.Module) -> Iterator[set[str]]:
    """Give the paths of the BatchNorms that return something else than their input, while the model runs."""
    found: set[str] = set()

    def watch(path):
        return lambda module, args, output: None if output.equal(args[0]) else found.add(path)

    handles = [module.register_forward_hook(watch(path)) for path, module in norms(model).items()]
    yield found
    for handle in handles:
        handle.remove()


def _is_in(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}.")


def check(model: nn.Module, is_restored: bool = True, **keywords) -> None:
    x = image()
    with torch.no_grad():
        expected = model(x)
    paths = sorted(norms(model))
    snapshot = Snapshot(model)
    planned = plan(model, **keywords)
    snapshot.check()
    with canonize(model, **keywords), norms_that_compute(model) as left, torch.no_grad():
        found = model(x)
    if is_restored:
        snapshot.check()
    with torch.no_grad():
        assert model(x).equal(expected)
    assert relative_error(found, expected) < TOLERANCE
    further = {f"{new.path}.{name}".lstrip(".") for new in planned.rewrites for name, _ in new.children}
    own = [entry.norm for entry in planned.entries if not any(_is_in(entry.norm, path) for path in further)]
    assert sorted(own) == paths
    assert left <= {refusal.norm for refusal in planned.refusals}


@pytest.mark.parametrize(("name", "prefer"), cases(NETWORKS, ("left", "right")))
def test_the_function_is_kept_and_the_model_restored(name, prefer):
    check(build(name), name not in CHANGE_THEMSELVES, **options(name, prefer))


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_the_function_is_kept_where_torch_has_no_gradient(name, prefer):
    check(finish(WITHOUT_GRADIENT[name][0]), prefer=prefer)
