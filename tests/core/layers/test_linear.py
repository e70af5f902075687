"""Every linear layer of ``LINEAR``: both folds, the compact bias, what is inherited and what stays independent.

References are the composition of norm and layer by torch, and the dense matrix of the layer from one-hot inputs. The
geometries of convolutions are in ``test_layers_linear_geometry``.
"""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from canon_bridge.core.affine import Affine
from canon_bridge.core.layers.linear import (
    LINEAR,
    _filters,
    axis_geometries,
    fold_after,
    fold_before,
)
from canon_bridge.core.norms import NORMS
from canon_bridge.core.restore import Edits
from tests.core.test_norms import apply
from tests.support.errors import relative_error
from tests.support.statistics import randomize

IN, OUT, GROUPS = 4, 6, 2
# Sums of at most a few hundred products.
TOLERANCE = 64 * torch.finfo(torch.float64).eps
# A known-wrong variant is at least this far off.
WRONG = 1e-3

KINDS = [kind for kind in LINEAR if isinstance(kind, type)]  # those by name are in test_linear_named
LINEAR_TYPES = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
SPATIAL_TYPES = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if LINEAR[kind].spatial], ids=lambda kind: kind.__name__
)
FOLDS = pytest.mark.parametrize("fold", [fold_before, fold_after])


def make(
    kind: type[nn.Module], bias: bool = True, dtype: torch.dtype = torch.float64, groups: int = GROUPS, padding: int = 1
) -> nn.Module:
    """Build a layer with a border, with groups where it can have them."""
    if LINEAR[kind].spatial == 0:
        return kind(IN, OUT, bias=bias, dtype=dtype)
    return kind(IN, OUT, 3, stride=2, padding=padding, groups=groups, bias=bias, dtype=dtype)


def norms(kind: type[nn.Module], dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """Return norms that fit before and behind the layer."""
    norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[LINEAR[kind].spatial]
    return randomize(norm(IN, dtype=dtype), seed=1), randomize(norm(OUT, dtype=dtype), seed=2)


def read(norm: nn.Module) -> Affine:
    return NORMS[type(norm)].read(norm)


def sample(kind: type[nn.Module], batch: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, IN, *(5, 4, 3)[: LINEAR[kind].spatial], dtype=dtype)


def matrix(layer: nn.Module, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return ``A`` and ``c`` with ``layer(x).flatten() = A x.flatten() + c``, from one-hot inputs."""
    number = shape.numel()
    constant = layer(torch.zeros(1, *shape, dtype=torch.float64))
    columns = layer(torch.eye(number, dtype=torch.float64).view(number, *shape)) - constant
    return columns.flatten(1).T, constant.flatten()


@LINEAR_TYPES
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_folds_are_the_composition(kind: type[nn.Module], bias: bool) -> None:
    layer, (before, after), x = make(kind, bias), norms(kind), sample(kind)
    for order in ((), (fold_before,), (fold_after,), (fold_before, fold_after), (fold_after, fold_before)):
        twin = copy.deepcopy(layer)
        reference = layer(before(x) if fold_before in order else x)
        reference = after(reference) if fold_after in order else reference
        for fold in order:
            fold(Edits(), twin, read(before if fold is fold_before else after))
        assert relative_error(twin(x), reference) < TOLERANCE, order
    fold_before(Edits(), twin, read(before))
    assert relative_error(twin(x), after(layer(before(before(x))))) < TOLERANCE, "twice on one side"


@LINEAR_TYPES
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_copies_are_the_layer_and_one_map_each_behind_it(kind: type[nn.Module], bias: bool) -> None:
    layer, x = make(kind, bias), sample(kind)
    maps = [Affine(*torch.randn(2, OUT, dtype=torch.float64)) for _ in range(3)]
    expected = [apply(affine, layer(x)) for affine in maps]
    fold_after(Edits(), layer, *maps)
    groups = getattr(layer, "groups", 1)
    copies = layer(x).unflatten(1, (groups, len(maps), OUT // groups))
    for number, reference in enumerate(expected):
        assert relative_error(copies[:, :, number].flatten(1, 2), reference) < TOLERANCE


def test_standardized_filters_are_the_formula() -> None:
    weight, eps = torch.randn(OUT, IN, 3, 2, dtype=torch.float64), 0.1
    found = _filters(SimpleNamespace(weight=weight, eps=eps))
    for one, standardized in zip(weight, found, strict=True):
        deviations = one - one.sum() / one.numel()
        expected = deviations / ((deviations**2).sum() / one.numel() + eps).sqrt()
        assert relative_error(standardized, expected) < TOLERANCE


@LINEAR_TYPES
@FOLDS
@torch.no_grad()
def test_dense_matrix_is_scaled_and_nothing_else(kind: type[nn.Module], fold: Callable[..., None]) -> None:
    layer, shape = make(kind), sample(kind).shape[1:]
    norm = norms(kind)[fold is fold_after]
    matrix_before, constant = matrix(layer, shape)
    side = layer(sample(kind)).shape[1:] if fold is fold_after else shape
    affine = read(norm)
    scale, shift = (v.repeat_interleave(side.numel() // len(v)) for v in (affine.scale, affine.shift))
    fold(Edits(), layer, affine)
    matrix_after, map_after = matrix(layer, shape)
    if fold is fold_before:
        expected = matrix_before * scale, matrix_before @ shift + constant
    else:
        expected = matrix_before * scale[:, None], scale * constant + shift
    assert relative_error(matrix_after, expected[0]) < TOLERANCE
    assert relative_error(map_after, expected[1]) < TOLERANCE


@LINEAR_TYPES
@FOLDS
@torch.no_grad()
def test_tolerance_rejects_forgotten_terms(kind: type[nn.Module], fold: Callable[..., None]) -> None:
    layer, x = make(kind), sample(kind)
    norm = norms(kind)[fold is fold_after]
    reference = layer(norm(x)) if fold is fold_before else norm(layer(x))
    affine, std = read(norm), norm.running_var.sqrt()
    wrong = {
        "no eps": Affine(norm.weight / std, norm.bias - norm.weight / std * norm.running_mean),
        "no mean": Affine(affine.scale, norm.bias),
        "no shift": Affine(affine.scale, torch.zeros_like(affine.shift)),
        "wrong sign": Affine(affine.scale.abs(), affine.shift),
        "channels in reverse": Affine(affine.scale.flip(0), affine.shift.flip(0)),
    }
    for name, variant in wrong.items():
        twin = copy.deepcopy(layer)
        fold(Edits(), twin, variant)
        assert relative_error(twin(x), reference) > WRONG, name
    without = copy.deepcopy(layer)
    without.bias = None
    fold(Edits(), without, affine)
    assert relative_error(without(x), reference) > WRONG, "the layer's own bias forgotten"


@SPATIAL_TYPES
@pytest.mark.parametrize("groups", [1, GROUPS])
@torch.no_grad()
def test_tolerance_rejects_the_wrong_axis(kind: type[nn.Module], groups: int) -> None:
    # As many channels in as out, so that the wrong axis fits.
    layer = kind(OUT, OUT, 3, groups=groups, padding=1, dtype=torch.float64)
    affine = Affine(read(norms(kind)[1]).scale, torch.zeros(OUT, dtype=torch.float64))
    x = torch.randn(2, OUT, *(5, 4, 3)[: LINEAR[kind].spatial], dtype=torch.float64)
    scale = affine.scale.view(-1, *(1,) * LINEAR[kind].spatial)
    for fold in (fold_before, fold_after):
        reference = layer(scale * x) if fold is fold_before else scale * layer(x)
        twin = copy.deepcopy(layer)
        fold(Edits(), twin, affine)
        assert relative_error(twin(x), reference) < TOLERANCE
        # Axis 0 holds all channels of its side, axis 1 those of one group only.
        channels_on_0 = (fold is fold_after) is not LINEAR[kind].transposed
        for axis in (0, 1) if channels_on_0 or groups > 1 else (0,):
            twin = copy.deepcopy(layer)
            twin.weight.mul_(scale[: layer.weight.shape[axis]].unsqueeze(1 - axis))
            if fold is fold_after:
                twin.bias.mul_(affine.scale)
            assert (relative_error(twin(x), reference) < TOLERANCE) is (axis == 0 and channels_on_0), (fold, axis)


@SPATIAL_TYPES
@pytest.mark.parametrize("bias", [True, False])
def test_compact_bias_has_one_entry_for_each_set_of_taps(kind: type[nn.Module], bias: bool) -> None:
    spec = LINEAR[kind]
    layer = kind(IN, OUT, 3, padding=1, bias=bias)
    fold_before(Edits(), layer, read(norms(kind)[0]))
    assert list(dict(layer.named_parameters())) == ["weight", "bias"]
    assert type(layer.bias) is nn.Parameter
    if not spec.transposed:
        assert layer.bias.shape == (OUT, *(4,) * spec.spatial)
    # No two entries on an axis belong to the same taps, and the number does not depend on the input.
    entries = {size: len(torch.unique(layer(torch.zeros(1, IN, *(size,) * spec.spatial))[0, 0])) for size in (3, 9)}
    assert entries[3] == entries[9] == 3**spec.spatial


@SPATIAL_TYPES
def test_bias_is_one_number_per_channel_where_there_is_no_border(kind: type[nn.Module]) -> None:
    layer = kind(IN, OUT, 1 if LINEAR[kind].transposed else 3)
    fold_before(Edits(), layer, read(norms(kind)[0]))
    assert layer.bias.shape == (OUT,)
    assert not any(geometry.has_border for geometry in axis_geometries(layer))
    assert "forward" not in vars(layer)
