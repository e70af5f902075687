"""LRP-0 on the canonical model equals gradient times input of the original one, or the plan names the operation."""

import re

import pytest
import torch

from canon_bridge import plan
from canon_bridge.captum import LRP, presets
from canon_bridge.zennit import ModelCanonizer
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
from tests.support.in_zennit import TARGET, attribute, epsilon_composite
from tests.support.models import gradient_times_input
from tests.support.snapshot import Snapshot

TOLERANCE = 1e-9
LRP_0 = 1e-30
# A mean in the p-th power is neither linear nor element-wise.
MAY_BE_UNCOVERED = {
    f"{pool} behind {position}"
    for pool in ("lp_pool2d(1)", "lp_pool2d(2)", "LPPool2d")
    for position in ("relu", "norm", "conv")
}


def by_captum(name, model, x, prefer):
    # No example_inputs, whatever the network: there is an input at hand.
    return LRP(model, presets.epsilon(LRP_0), prefer=prefer).attribute(x, target=TARGET)


def by_zennit(name, model, x, prefer):
    return attribute(model, x, epsilon_composite(LRP_0, [ModelCanonizer(**options(name, prefer))]))


FRAMEWORKS = {"captum": by_captum, "zennit": by_zennit}

pytestmark = pytest.mark.zennit


@pytest.mark.parametrize("name", cases(NETWORKS))
def test_all_is_covered(name):
    uncovered = plan(build(name), **options(name, "left")).uncovered
    assert not uncovered or name in MAY_BE_UNCOVERED


def skip_without_gradient(model, x):
    """Skip an operation that torch 2.6 has no gradient of, asked of torch itself."""
    try:
        gradient_times_input(model, x)
    except RuntimeError as error:
        pytest.skip(f"this torch has no gradient of it: {error}")


@pytest.mark.parametrize(
    ("name", "prefer", "framework"),
    cases([name for name in NETWORKS if name not in MAY_BE_UNCOVERED], ("left", "right"), each=list(FRAMEWORKS)),
)
def test_relevance_is_gradient_times_input(name, prefer, framework):
    # A warning is an error here: what is covered warns of nothing.
    model, x = build(name), image()
    if name.startswith("aminmax"):
        skip_without_gradient(model, x)
    expected = gradient_times_input(model, x)
    assert expected.abs().max() > 1e-6
    snapshot = Snapshot(model)
    found = FRAMEWORKS[framework](name, model, x, prefer)
    assert relative_error(found, expected) < TOLERANCE
    if name not in CHANGE_THEMSELVES:
        snapshot.check()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_relevance_where_torch_has_no_gradient(name, framework):
    # Either the operation has become one that has a gradient, or torch's own error for it arrives.
    model, twin = map(finish, WITHOUT_GRADIENT[name])
    x = image()
    message, found = "", None
    try:
        found = FRAMEWORKS[framework](name, model, x, "left")
    except RuntimeError as error:
        message = str(error)
    if found is None:
        assert re.search(r"out=\.\.\.|view and is being modified inplace", message)
    else:
        assert relative_error(found, gradient_times_input(twin, x)) < TOLERANCE


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", sorted(MAY_BE_UNCOVERED))
def test_relevance_is_gradient_times_input_or_a_warning(name, framework):
    from canon_bridge import UncoveredOperationWarning

    model, x = build(name), image()
    if plan(model, **options(name, "left")).uncovered:
        with pytest.warns(UncoveredOperationWarning, match="lp_pool|LPPool"):
            FRAMEWORKS[framework](name, model, x, "left")
    else:
        expected = gradient_times_input(model, x)
        assert relative_error(FRAMEWORKS[framework](name, model, x, "left"), expected) < TOLERANCE


def test_the_reference_is_sensitive():
    # A relevance that is wrong at one operation, here by the gradient of a sum, is far off.
    model, x = build("sum((2, 3)) behind relu"), image()
    expected = gradient_times_input(model, x)
    other = gradient_times_input(build("mean((2, 3)) behind relu"), x)
    assert relative_error(other, expected) > 1e-3
    assert torch.isfinite(expected).all()
