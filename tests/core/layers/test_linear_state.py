"""A folded layer as a module: its Parameters, copies and state, and what a rule may do to its compact bias."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from canon_bridge.core.affine import Affine
from canon_bridge.core.layers.linear import (
    LINEAR,
    fold_before,
)
from canon_bridge.core.restore import Edits
from tests.core.layers.test_linear import (
    FOLDS,
    IN,
    LINEAR_TYPES,
    OUT,
    SPATIAL_TYPES,
    TOLERANCE,
    WRONG,
    make,
    norms,
    read,
    sample,
)
from tests.support.errors import relative_error

CHANGES = pytest.mark.parametrize(
    "change",
    [torch.zeros_like, torch.square, lambda b: b.clamp(min=0), lambda b: b.clamp(max=0), lambda b: 0.25 * b],
    ids=["zero", "square", "positive", "negative", "gamma"],
)


def folded(kind: type[nn.Module], bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a layer that has taken in the norm before it."""
    layer = make(kind, bias, dtype)
    fold_before(Edits(), layer, read(norms(kind)[0]))
    return layer


def affine_for(fold: Callable[..., None]) -> Affine:
    width = IN if fold is fold_before else OUT
    return Affine(torch.randn(width).double(), torch.randn(width).double())


def bias_map(layer: nn.Module, kind: type[nn.Module]) -> Tensor:
    """Return what the layer adds at each position: its value on zero input."""
    return layer(torch.zeros_like(sample(kind)))


@LINEAR_TYPES
@CHANGES
@torch.no_grad()
def test_change_of_the_bias_is_the_change_of_the_map(kind: type[nn.Module], change: Callable[[Tensor], Tensor]) -> None:
    layer, x = folded(kind), sample(kind)
    before, linear = bias_map(layer, kind), layer(x) - bias_map(layer, kind)
    layer.bias = nn.Parameter(change(layer.bias))
    assert torch.equal(bias_map(layer, kind), change(before))
    assert relative_error(layer(x), linear + change(before)) < TOLERANCE
    in_place = folded(kind)
    in_place.bias.copy_(change(in_place.bias))
    assert torch.isfinite(bias_map(in_place, kind)).all()
    assert relative_error(before, bias_map(layer, kind) + 1) > WRONG


@LINEAR_TYPES
@torch.no_grad()
def test_bias_may_be_taken_away_or_replaced_by_a_plain_one(kind: type[nn.Module]) -> None:
    layer, x = folded(kind), sample(kind)
    linear = layer(x) - bias_map(layer, kind)
    layer.bias = None
    assert relative_error(layer(x), linear) < TOLERANCE
    plain = torch.randn(OUT, dtype=torch.float64)
    layer.bias = nn.Parameter(plain)
    assert relative_error(layer(x), linear + plain.view(-1, *(1,) * LINEAR[kind].spatial)) < TOLERANCE


@LINEAR_TYPES
@pytest.mark.parametrize("assign", [False, True])
@torch.no_grad()
def test_state_dict_goes_round(kind: type[nn.Module], assign: bool) -> None:
    layer, x = folded(kind, bias=False), sample(kind)
    before, state = layer(x), copy.deepcopy(layer.state_dict())
    assert list(state) == ["weight", "bias"]
    for parameter in layer.parameters():
        parameter.zero_()
    assert relative_error(layer(x) + 1, before) > WRONG
    layer.load_state_dict(state, strict=True, assign=assign)
    assert torch.equal(layer(x), before)


@LINEAR_TYPES
@torch.no_grad()
def test_deep_copy_is_independent(kind: type[nn.Module]) -> None:
    layer, x = folded(kind), sample(kind)
    before = layer(x)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), before)
    for parameter in twin.parameters():
        parameter.mul_(2)
    assert torch.equal(layer(x), before)
    assert relative_error(twin(x), 2 * before) < TOLERANCE
    for parameter in layer.parameters():
        parameter.zero_()
    assert not layer(x).any()
    assert relative_error(twin(x), 2 * before) < TOLERANCE


@LINEAR_TYPES
@FOLDS
@pytest.mark.parametrize("bias", [True, False])
def test_former_parameters_keep_their_values(kind: type[nn.Module], fold: Callable[..., None], bias: bool) -> None:
    layer = make(kind, bias)
    old = dict(layer.named_parameters())
    values = {name: parameter.detach().clone() for name, parameter in old.items()}
    affine = affine_for(fold)
    fold(Edits(), layer, affine)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    for name, parameter in old.items():
        assert torch.equal(parameter, values[name])
        assert getattr(layer, name) is not parameter


@LINEAR_TYPES
@FOLDS
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_layers_that_take_in_the_same_map_are_independent(
    kind: type[nn.Module], fold: Callable[..., None], bias: bool
) -> None:
    layers, affine, x = (make(kind, bias), make(kind, bias)), affine_for(fold), sample(kind)
    values = affine.scale.clone(), affine.shift.clone()
    for layer in layers:
        fold(Edits(), layer, affine)
    before = layers[1](x)
    for parameter in layers[0].parameters():
        parameter.zero_()
    assert torch.equal(layers[1](x), before)
    assert torch.equal(affine.scale, values[0])
    assert torch.equal(affine.shift, values[1])


@LINEAR_TYPES
@FOLDS
@pytest.mark.parametrize("requires_grad", [True, False])
def test_requires_grad_is_inherited(kind: type[nn.Module], fold: Callable[..., None], requires_grad: bool) -> None:
    layer = make(kind).requires_grad_(requires_grad)
    fold(Edits(), layer, affine_for(fold))
    assert [p.requires_grad for p in layer.parameters()] == [requires_grad] * 2
    assert all(parameter.is_leaf for parameter in layer.parameters())


@LINEAR_TYPES
@FOLDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_dtype_is_kept_and_sums_are_in_float32(
    kind: type[nn.Module], fold: Callable[..., None], dtype: torch.dtype
) -> None:
    layer = make(kind, dtype=dtype)
    exact = copy.deepcopy(layer).double()
    affine = affine_for(fold)
    fold(Edits(), layer, Affine(affine.scale.float(), affine.shift.float()))
    fold(Edits(), exact, affine)
    for name, parameter in layer.named_parameters():
        assert parameter.dtype == dtype
        # One rounding to the dtype, which is half its eps, and those of float32.
        bound = torch.finfo(dtype).eps / 2 + 64 * torch.finfo(torch.float32).eps
        assert relative_error(parameter.double(), getattr(exact, name)) < bound
    x = sample(kind, dtype=dtype)
    assert layer(x).dtype == dtype
    assert relative_error(layer.double()(x.double()), exact(x.double())) < 64 * torch.finfo(dtype).eps


@SPATIAL_TYPES
@torch.no_grad()
def test_under_autocast_the_output_is_lowered_as_without_the_map(kind: type[nn.Module]) -> None:
    layer, x = folded(kind, dtype=torch.float32), sample(kind, dtype=torch.float32)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        value = layer(x)
    assert value.dtype == torch.bfloat16
    assert relative_error(value.float(), expected) < 8 * torch.finfo(torch.bfloat16).eps


@SPATIAL_TYPES
@torch.no_grad()
def test_size_may_change_from_call_to_call(kind: type[nn.Module]) -> None:
    layer, (before, _) = make(kind), norms(kind)
    twin = copy.deepcopy(layer)
    fold_before(Edits(), twin, read(before))
    for size in (7, 1, 12, 2, 7):
        x = torch.randn(2, IN, *range(size, size + LINEAR[kind].spatial), dtype=torch.float64)
        reference = layer(before(x))
        assert relative_error(twin(x), reference) < TOLERANCE
        assert relative_error(twin(x[0]), reference[0]) < TOLERANCE, "without a batch dimension"
        assert twin(x[:0]).shape == reference[:0].shape


@LINEAR_TYPES
def test_gradient_is_that_of_the_composition(kind: type[nn.Module]) -> None:
    layer, (before, _), x = make(kind), norms(kind), sample(kind).requires_grad_()
    reference = layer(before(x))
    output_gradient = torch.randn_like(reference)
    (expected,) = torch.autograd.grad(reference, x, output_gradient)
    fold_before(Edits(), layer, read(before))
    value = layer(x)
    (gradient, bias) = torch.autograd.grad(value, (x, layer.bias), output_gradient)
    assert relative_error(gradient, expected) < TOLERANCE
    total = output_gradient.sum([0, *range(2, output_gradient.dim())])
    assert relative_error(bias.flatten(1).sum(1) if bias.dim() > 1 else bias, total) < TOLERANCE


@SPATIAL_TYPES
@FOLDS
@pytest.mark.parametrize("groups", [1, 2])
@torch.no_grad()
def test_memory_layout_of_the_weight_does_not_matter(
    kind: type[nn.Module], fold: Callable[..., None], groups: int
) -> None:
    layer, affine, x = make(kind, groups=groups), affine_for(fold), sample(kind)
    twins = [copy.deepcopy(layer) for _ in range(3)]
    for twin, permute in zip(twins, ((0, -1), (1, 0), (1, -1)), strict=True):
        twin.weight = nn.Parameter(layer.weight.transpose(*permute).contiguous().transpose(*permute))
    fold(Edits(), layer, affine)
    for twin in twins:
        fold(Edits(), twin, affine)
        assert relative_error(twin(x), layer(x)) < TOLERANCE


@pytest.mark.parametrize("times", [1, 5])
@torch.no_grad()
def test_linear_layer_behind_a_flatten(times: int) -> None:
    layer, affine = nn.Linear(IN * times, OUT, dtype=torch.float64), affine_for(fold_before)
    x = torch.randn(3, IN, times, dtype=torch.float64)
    reference = layer((affine.scale.view(-1, 1) * x + affine.shift.view(-1, 1)).flatten(1))
    tiled = copy.deepcopy(layer)
    fold_before(Edits(), layer, affine)
    assert relative_error(layer(x.flatten(1)), reference) < TOLERANCE
    if times > 1:
        fold_before(Edits(), tiled, Affine(affine.scale.repeat(times), affine.shift.repeat(times)))
        assert relative_error(tiled(x.flatten(1)), reference) > WRONG
