"""Layers of known name that standardize their weight in forward: the weight that they use is merged."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from canon_bridge.core.layers.linear import (
    LINEAR,
    computes_weight,
    fold_after,
    fold_before,
    is_linear,
    linear_type,
    make_plain,
)
from canon_bridge.core.restore import Edits
from tests.core.layers.test_linear_named import TOLERANCE, WRONG, affine
from tests.support.computed_layers import WRAPS, Deep, Gain, Wrap, on, output, wrapped
from tests.support.errors import relative_error
from tests.support.named_layers import CONVOLUTIONS, LOOK_ALIKES, Kinds, entry_name, kinds, make
from tests.support.snapshot import Snapshot

__all__ = ["kinds"]

ALL_NAMES = pytest.mark.parametrize("name", LOOK_ALIKES)
COMPUTED = pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if "Std" in name])


@COMPUTED
@torch.no_grad()
def test_the_weight_that_is_used_is_merged_and_not_the_raw_one(kinds: Kinds, name: str) -> None:
    layer, (after, apply_after) = make(kinds[name]), affine(12)
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    reference, raw = apply_after(layer(x)), copy.deepcopy(layer)
    fold_after(Edits(), layer, after)
    assert relative_error(layer(x), reference) < TOLERANCE
    raw_weight = raw.weight * after.scale.view(-1, 1, 1, 1)
    layer.weight = nn.Parameter(raw_weight)
    assert relative_error(layer(x), reference) > WRONG
    if name.startswith("Scaled"):
        make_plain(Edits(), raw)
        raw.weight /= raw.gain
        fold_after(Edits(), raw, after)
        assert relative_error(raw(x), reference) > WRONG, "the gain forgotten"


@ALL_NAMES
def test_what_computes_no_weight_stays_as_it_is(kinds: Kinds, name: str) -> None:
    layer, edits = make(kinds[name]), Edits()
    assert computes_weight(layer) is ("Std" in name)
    make_plain(edits, layer)
    assert (len(edits) == 0) is ("Std" not in name)


@COMPUTED
@torch.no_grad()
def test_make_plain_computes_the_same_and_is_undone(kinds: Kinds, name: str) -> None:
    layer, x = make(kinds[name]), torch.randn(2, 6, 7, 8, dtype=torch.float64)
    before, expected, edits = Snapshot(layer), layer(x), Edits()
    make_plain(edits, layer)
    writes = len(edits)
    make_plain(edits, layer)
    assert len(edits) == writes
    assert not computes_weight(layer)
    assert type(layer) is kinds[name]
    assert is_linear(layer)
    assert relative_error(layer(x), expected) < TOLERANCE
    assert abs(float(layer.weight.mean())) < TOLERANCE
    twin, state = copy.deepcopy(layer), copy.deepcopy(layer.state_dict())
    layer.weight.fill_(torch.nan)
    assert relative_error(twin(x), expected) < TOLERANCE
    twin.weight.zero_()
    assert relative_error(twin(x) + 1, expected) > WRONG, "the copy reads its own slots"
    for assign in (False, True):
        twin.load_state_dict({key: value.clone() for key, value in state.items()}, strict=True, assign=assign)
        assert relative_error(twin(x), expected) < TOLERANCE
    layer.weight = nn.Parameter(2 * twin.weight)
    bias = twin.bias.view(-1, 1, 1)
    assert relative_error(layer(x) - bias, 2 * (expected - bias)) < TOLERANCE
    edits.undo()
    before.check()
    assert torch.equal(layer(x), expected)


@COMPUTED
@pytest.mark.parametrize("frozen", [(), ("weight",), ("weight", "gain"), ("weight", "gain", "bias")])
def test_requires_grad_is_inherited(kinds: Kinds, name: str, frozen: tuple[str, ...]) -> None:
    layer = make(kinds[name])
    for path, parameter in layer.named_parameters():
        parameter.requires_grad_(path not in frozen)
    expected = any(parameter.requires_grad for path, parameter in layer.named_parameters() if path != "bias")
    make_plain(Edits(), layer)
    assert layer.weight.requires_grad is expected
    assert layer.weight.is_leaf
    assert layer.bias.requires_grad is ("bias" not in frozen)


@COMPUTED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_lower_precision_is_rounded_once(kinds: Kinds, name: str, dtype: torch.dtype) -> None:
    layer = make(kinds[name]).to(dtype)
    exact = copy.deepcopy(layer).double()
    make_plain(Edits(), layer)
    make_plain(Edits(), exact)
    assert layer.weight.dtype == dtype
    assert relative_error(layer.weight.double(), exact.weight) < torch.finfo(dtype).eps


@COMPUTED
@pytest.mark.parametrize("way", [way for way in WRAPS if "weight_norm of" not in way])
def test_standardization_of_a_computed_weight(kinds: Kinds, name: str, way: str) -> None:
    layer = wrapped(make(kinds[name], stride=2), WRAPS[way])
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    (before, apply_before), deep, edits = affine(6), Deep(layer), Edits()
    reference = output(layer, apply_before(x))
    assert linear_type(layer) is LINEAR[entry_name(name)]
    fold_before(edits, layer, before)
    assert type(layer) is kinds[name]
    assert relative_error(layer(x), reference) < TOLERANCE
    assert not computes_weight(layer)
    edits.undo()
    deep.check()


@pytest.mark.parametrize("wrap", [on("gain", Gain), lambda layer: prune.l1_unstructured(layer, "gain", 3)])
def test_standardization_with_a_computed_gain(kinds: Kinds, wrap: Wrap) -> None:
    layer, x = wrapped(make(kinds["ScaledStdConv2d"]), wrap), torch.randn(2, 6, 7, 8, dtype=torch.float64)
    deep, edits, expected = Deep(layer), Edits(), output(layer, x)
    make_plain(edits, layer)
    assert relative_error(layer(x), expected) < TOLERANCE
    assert layer.gain.shape == (12, 1, 1, 1)
    attributes = dict(vars(layer))
    edits.undo()
    if "gain" in attributes:  # the hook for it went on
        vars(layer)["gain"] = next(value for place, value in deep.state if place == ".gain")
    deep.check()
