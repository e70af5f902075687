"""Layers that the table knows by name: "same" padding by the size of the input, weights that a forward standardizes."""

import copy
import random
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge.core.affine import Affine
from canon_bridge.core.layers.border import AxisGeometry, Border, rows_by_position
from canon_bridge.core.layers.linear import (
    LINEAR,
    computes_weight,
    fold_after,
    fold_before,
    is_linear,
    linear_type,
    make_plain,
    why_not_foldable,
)
from canon_bridge.core.restore import Edits
from tests.core.layers.test_linear_geometry import deviation
from tests.support.errors import relative_error
from tests.support.named_layers import CONVOLUTIONS, LOOK_ALIKES, Kinds, entry_name, kinds, make, zeros_at_the_ends

__all__ = ["kinds"]

TOLERANCE, WRONG = 1e-12, 1e-3
NAMES = pytest.mark.parametrize("name", CONVOLUTIONS)
Map = Callable[[Tensor], Tensor]


def affine(width: int, seed: int = 0) -> tuple[Affine, Map]:
    """Return a map with scales of both signs and one zero, and the same map as a function of a tensor."""
    generator = torch.Generator().manual_seed(seed)
    scale, shift = (torch.randn(width, generator=generator, dtype=torch.float64) for _ in range(2))
    scale[0] = 0

    def apply(x: Tensor) -> Tensor:
        spatial = (1,) * (x.dim() - 2)
        return scale.view(-1, *spatial) * x + shift.view(-1, *spatial)

    return Affine(scale, shift), apply


def geometries(number: int, seed: int = 0) -> list[dict[str, Any]]:
    chance = random.Random(seed)

    def pair(*choices: int) -> tuple[int, int]:
        return chance.choice(choices), chance.choice(choices)

    return [
        {
            "kernel_size": pair(1, 2, 3, 4, 5),
            "stride": pair(1, 2, 3, 4),
            "dilation": pair(1, 2, 3),
            "groups": chance.choice((1, 2, 3, 6)),
            "bias": chance.random() < 0.5,
        }
        for _ in range(number)
    ]


@NAMES
@torch.no_grad()
def test_folded_layer_is_the_composition_for_every_size(kinds: Kinds, name: str) -> None:
    chance, checked = random.Random(1), 0
    (before, apply_before), (after, apply_after) = affine(6, 1), affine(12, 2)
    for case in geometries(60):
        if name.startswith(("Std", "Scaled")) and 6 // case["groups"] * case["kernel_size"][0] == 1:
            continue  # one weight for each filter has no variance, and torch refuses
        layer = make(kinds[name], **case)
        twins = [copy.deepcopy(layer) for _ in range(4)]
        orders = [(fold_before,), (fold_after,), (fold_before, fold_after), (fold_after, fold_before)]
        for twin, order in zip(twins, orders, strict=True):
            assert is_linear(twin)
            assert why_not_foldable(twin) is None
            for fold in order:
                fold(Edits(), twin, before if fold is fold_before else after)
            assert is_linear(twin)
        for _ in range(6):
            x = torch.randn(2, 6, *chance.choices((1, 2, 3, 4, 5, 6, 7, 9, 12), k=2), dtype=torch.float64)
            try:
                layer(x)
            except RuntimeError:  # too small for a layer that does not pad
                assert "Same" not in name
                continue
            for twin, order in zip(twins, orders, strict=True):
                reference = layer(apply_before(x) if fold_before in order else x)
                reference = apply_after(reference) if fold_after in order else reference
                assert deviation(twin(x), reference) < TOLERANCE, (case, x.shape, order)
                assert deviation(twin(x[0]), reference[0]) < TOLERANCE, "without a batch dimension"
                assert twin(x[:0]).shape == reference[:0].shape
                checked += 1
    assert checked > 400


def test_linear_of_known_name(kinds: Kinds) -> None:
    layer, x = make(kinds["Linear"]), torch.randn(3, 6, dtype=torch.float64)
    (before, apply_before), (after, apply_after) = affine(6, 1), affine(12, 2)
    reference = apply_after(layer(apply_before(x)))
    assert is_linear(layer)
    assert not computes_weight(layer)
    fold_before(Edits(), layer, before)
    fold_after(Edits(), layer, after)
    assert relative_error(layer(x), reference) < TOLERANCE


@NAMES
@torch.no_grad()
def test_tolerance_rejects_wrong_borders(kinds: Kinds, name: str) -> None:
    layer, (before, apply_before) = make(kinds[name], kernel_size=4, stride=2, padding=1), affine(6)
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    if "Same" in name:
        layer = make(kinds[name], kernel_size=4, stride=2)
    reference = layer(apply_before(x))
    fold_before(Edits(), layer, before)
    assert relative_error(layer(x), reference) < TOLERANCE
    entries = layer.bias
    layer.bias = nn.Parameter(entries[:, :1, :1])
    assert relative_error(layer(x), reference) > WRONG, "the border is forgotten"
    layer.bias = nn.Parameter(entries.flip(1, 2))
    assert relative_error(layer(x), reference) > WRONG, "the odd zero at the lower end"


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if "Same" in name])
@torch.no_grad()
def test_padding_of_another_size_is_wrong(kinds: Kinds, name: str) -> None:
    layer, (before, apply_before) = make(kinds[name], kernel_size=4, stride=3, bias=False), affine(6)
    x = torch.randn(2, 6, 9, 12, dtype=torch.float64)
    reference, plain = layer(apply_before(x)), copy.deepcopy(layer)
    fold_before(Edits(), layer, before)
    assert relative_error(layer(x), reference) < TOLERANCE
    linear = layer(x) - layer(torch.zeros_like(x))
    make_plain(Edits(), plain)
    shift = before.shift.view(1, -1, 1, 1).expand(1, -1, 9, 12)
    for ends in ((0, 1), (1, 2), (1, 0)):  # the right ones, the most that any size gets, the odd zero in front
        bias = F.conv2d(F.pad(shift, 2 * ends), plain.weight, stride=3)
        assert (relative_error(linear + bias, reference) < TOLERANCE) is (ends == (0, 1)), ends
        assert ends == (0, 1) or relative_error(linear + bias, reference) > WRONG


def test_taps_of_padding_by_size() -> None:
    for kernel, stride, dilation in product((1, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 3)):
        reach = dilation * (kernel - 1)
        axis = AxisGeometry(kernel, stride, dilation, reach // 2, reach - reach // 2, by_size=True)
        assert axis.has_border is (kernel > 1)
        table = torch.tensor(Border.of(axis).sets)
        for size in range(1, 24):
            ends = zeros_at_the_ends(size, kernel, stride, dilation)
            assert axis.padding(size) == ends
            seen = F.pad(torch.ones(size), ends).unfold(0, reach + 1, stride)[:, ::dilation]
            assert seen.shape[0] == -(-size // stride)
            assert torch.equal(table[list(rows_by_position(axis, size, seen.shape[0]))], seen), (axis, size)


@NAMES
def test_number_of_entries_does_not_depend_on_the_size(kinds: Kinds, name: str) -> None:
    for kernel in (1, 2, 3, 5):
        layer = make(kinds[name], kernel_size=kernel, stride=2, padding="same" if "Same" in name else 0)
        fold_before(Edits(), layer, affine(6)[0])
        reach = kernel - 1
        most = (reach // 2 + 1) * (reach - reach // 2 + 1) if "Same" in name else 1
        assert layer.bias.numel() == 12 * most**2


@NAMES
@torch.no_grad()
def test_gradient_is_that_of_the_composition(kinds: Kinds, name: str) -> None:
    layer, (before, apply_before) = make(kinds[name], stride=2), affine(6)
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        reference = layer(apply_before(x))
        seed = torch.randn_like(reference)
        (expected,) = torch.autograd.grad(reference, x, seed)
        fold_before(Edits(), layer, before)
        (gradient,) = torch.autograd.grad(layer(x), x, seed)
    assert relative_error(gradient, expected) < TOLERANCE


@NAMES
def test_a_subclass_that_computes_something_else_is_not_linear(kinds: Kinds, name: str) -> None:
    class Same(kinds[name]):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)

    class Other(kinds[name]):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    assert is_linear(Same(2, 2, 3))
    assert linear_type(Same(2, 2, 3)) is LINEAR[entry_name(name)]
    assert not is_linear(Other(2, 2, 3))


@NAMES
def test_padding_both_ways_is_refused(kinds: Kinds, name: str) -> None:
    layer = make(kinds[name], stride=2)
    layer.padding = (1, 0)
    assert (why_not_foldable(layer) is None) is ("Same" not in name)
    assert "Same" not in name or "pads twice" in str(why_not_foldable(layer))


@NAMES
@torch.no_grad()
def test_a_padding_mode_that_its_forward_does_not_look_at_is_not_looked_at(kinds: Kinds, name: str) -> None:
    layer, (before, apply_before) = make(kinds[name], stride=2), affine(6)
    layer.padding_mode = "reflect"
    if "Same" not in name:
        layer.padding = (1, 1)
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    reference = layer(apply_before(x))
    fold_before(Edits(), layer, before)
    assert relative_error(layer(x), reference) < TOLERANCE


def test_a_look_alike_that_is_not_in_the_table_is_not_linear() -> None:
    assert not any(is_linear(make(kind)) for kind in LOOK_ALIKES.values())


def test_padding_of_the_first_input_for_all_is_not_known() -> None:
    layer = pytest.importorskip("timm.layers.conv2d_same").Conv2dSameExport(1, 1, 3, stride=2, bias=False)
    fresh = copy.deepcopy(layer)
    layer(torch.ones(1, 1, 4, 4))
    assert not torch.equal(layer(torch.ones(1, 1, 5, 5)), fresh(torch.ones(1, 1, 5, 5)))
    assert not is_linear(layer)
