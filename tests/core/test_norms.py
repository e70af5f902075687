"""Every norm of ``NORMS``: what is read from it is what it computes, and its identity is exact.

The reference is the layer's own forward; the statistics are random and eps is 0.1, so that no term can be forgotten.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge.core.affine import Affine, working_dtype
from canon_bridge.core.norms import (
    NORMS,
    as_convolution,
    check_norm,
    children_after,
    compose,
    has_statistics,
    is_identity,
    is_norm,
    norm_type,
    normalized,
    slots_for,
    width,
)
from canon_bridge.core.operations import Kind, operation_of_module
from canon_bridge.core.restore import Edits
from tests.support.errors import relative_error
from tests.support.named_norms import randomize_any
from tests.support.statistics import randomize

CHANNELS = 5
# Two roundings of the layer against three of ours.
ROUNDINGS = 8
# A variant that forgets a term is at least this wrong.
WRONG = 1e-3

SHAPES: dict[int, tuple[int, ...]] = {
    2: (7, CHANNELS),
    3: (2, CHANNELS, 4),
    4: (2, CHANNELS, 3, 4),
    5: (2, CHANNELS, 2, 3, 2),
}
INSTANCES = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)  # norms if they keep running statistics
# Those that go by a name are in test_norms_of_packages and test_functional_norms.
NORM_TYPES = pytest.mark.parametrize(
    "kind", [kind for kind in NORMS if not isinstance(kind, str) and kind not in INSTANCES], ids=lambda k: k.__name__
)
TERMS = pytest.mark.parametrize(
    "terms", [(True, True), (True, False), (False, False)], ids=["affine", "scale", "plain"]
)


def make_norm(
    kind: type[nn.Module], terms: tuple[bool, bool] = (True, True), dtype: torch.dtype = torch.float64
) -> nn.Module:
    """Build a norm with random statistics; ``terms`` says whether it has a weight and a bias."""
    has_weight, has_bias = terms
    norm = randomize(kind(CHANNELS, affine=has_weight, dtype=dtype))
    if has_weight:
        with torch.no_grad():
            norm.weight[-1] = -1.5
        norm.weight.requires_grad_(False)
        if not has_bias:
            norm.bias = None
    return norm


def shapes(kind: type[nn.Module]) -> tuple[tuple[int, ...], ...]:
    """Return an input shape for each rank that the norm takes."""
    return tuple(SHAPES[rank] for rank in NORMS[kind].ranks)


def apply(affine: Affine, x: Tensor) -> Tensor:
    """Compute ``scale * x + shift`` along dimension 1."""
    view = (-1, *(1,) * (x.dim() - 2))
    return affine.scale.view(view) * x + affine.shift.view(view)


def identity_slots(norm: nn.Module) -> dict[tuple[str, str], object]:
    entry = NORMS[type(norm)]
    return slots_for(norm, entry.write(norm, Affine.identity(entry.read(norm).scale)))


def make_identity(norm: nn.Module) -> None:
    """Write the slots of the identity into the module."""
    for (table, name), value in identity_slots(norm).items():
        (vars(norm) if table == "__dict__" else vars(norm)[table])[name] = value


@NORM_TYPES
@TERMS
def test_read_is_what_the_norm_computes(kind: type[nn.Module], terms: tuple[bool, bool]) -> None:
    norm = make_norm(kind, terms)
    affine = NORMS[kind].read(norm)
    assert affine.scale.shape == affine.shift.shape == (CHANNELS,)
    for shape in shapes(kind):
        x = torch.randn(shape, dtype=torch.float64)
        assert relative_error(apply(affine, x), norm(x)) < ROUNDINGS * torch.finfo(x.dtype).eps


@NORM_TYPES
@pytest.mark.parametrize("comes_before", [True, False], ids=["before", "after"])
@torch.no_grad()
def test_composed_with_a_map_before_or_after_it(kind: type[nn.Module], comes_before: bool) -> None:
    norm, x = make_norm(kind), torch.randn(shapes(kind)[-1], dtype=torch.float64)
    other = Affine(*torch.randn(2, CHANNELS, dtype=torch.float64))
    expected = norm(apply(other, x)) if comes_before else apply(other, norm(x))
    compose(Edits(), norm, other, comes_before)
    assert relative_error(norm(x), expected) < ROUNDINGS * torch.finfo(x.dtype).eps


@NORM_TYPES
@TERMS
@torch.no_grad()
def test_the_convolution_computes_what_the_norm_computes(kind: type[nn.Module], terms: tuple[bool, bool]) -> None:
    norm, x = make_norm(kind, terms), torch.randn(shapes(kind)[-1], dtype=torch.float64)
    output = F.conv2d(x.flatten(2)[..., None], *as_convolution(norm), groups=CHANNELS)
    assert relative_error(output.view_as(x), norm(x)) < ROUNDINGS * torch.finfo(x.dtype).eps


@NORM_TYPES
def test_tolerance_rejects_every_forgotten_term(kind: type[nn.Module]) -> None:
    norm = make_norm(kind)
    weight, bias, mean, variance = norm.weight, norm.bias, norm.running_mean, norm.running_var
    std = (variance + norm.eps).sqrt()
    scale, shift = weight / std, bias - weight / std * mean
    x = torch.randn(shapes(kind)[-1], dtype=torch.float64)
    assert relative_error(apply(Affine(scale, shift), x), norm(x)) < ROUNDINGS * torch.finfo(x.dtype).eps
    wrong = {
        "no eps": Affine(weight / variance.sqrt(), bias - weight / variance.sqrt() * mean),
        "eps outside the root": Affine(weight / (variance.sqrt() + norm.eps), shift),
        "no mean": Affine(scale, bias),
        "no bias": Affine(scale, -scale * mean),
        "no weight": Affine(1 / std, bias - mean / std),
        "mean not scaled": Affine(scale, bias - mean),
        "wrong sign": Affine(scale.abs(), shift),
        "variance for std": Affine(weight / (variance + norm.eps), shift),
    }
    for name, affine in wrong.items():
        assert relative_error(apply(affine, x), norm(x)) > WRONG, name


@NORM_TYPES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_read_works_in_float32_at_least(kind: type[nn.Module], dtype: torch.dtype) -> None:
    norm = make_norm(kind, dtype=dtype)
    affine = NORMS[kind].read(norm)
    assert affine.scale.dtype == affine.shift.dtype == torch.float32
    exact = NORMS[kind].read(norm.double())
    for value, reference in ((affine.scale, exact.scale), (affine.shift, exact.shift)):
        assert relative_error(value.double(), reference) < ROUNDINGS * torch.finfo(torch.float32).eps
    coarse = exact.scale.to(torch.bfloat16).double()
    assert relative_error(coarse, exact.scale) > WRONG


def test_working_dtype_is_float32_at_least() -> None:
    assert working_dtype(torch.float16) == working_dtype(torch.bfloat16) == torch.float32
    assert working_dtype(torch.float32) == torch.float32
    assert working_dtype(torch.float64) == torch.float64


@NORM_TYPES
@TERMS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_identity_is_exact_to_the_bit(kind: type[nn.Module], terms: tuple[bool, bool], dtype: torch.dtype) -> None:
    norm = make_norm(kind, terms, dtype)
    assert not is_identity(norm)
    make_identity(norm)
    assert is_identity(norm)
    for shape in shapes(kind):
        x = torch.randn(shape).mul(1000).to(dtype)
        x.view(-1)[:3] = torch.tensor([torch.inf, -torch.inf, torch.finfo(dtype).tiny])
        assert torch.equal(norm(x), x)


@NORM_TYPES
def test_identity_that_keeps_eps_is_none(kind: type[nn.Module]) -> None:
    norm = make_norm(kind)
    norm.eps = 1e-5
    make_identity(norm)
    norm.eps = 1e-5
    x = torch.randn(shapes(kind)[0], dtype=torch.float64)
    assert not torch.equal(norm(x), x)
    assert not is_identity(norm)


@NORM_TYPES
@TERMS
def test_identity_replaces_slots_and_leaves_the_tensors_alone(kind: type[nn.Module], terms: tuple[bool, bool]) -> None:
    norm = make_norm(kind, terms, torch.float32)
    before = {name: (tensor, tensor.detach().clone()) for name, tensor in norm.state_dict(keep_vars=True).items()}
    keys = list(norm.state_dict())
    slots = identity_slots(norm)
    assert norm.eps == 0.1
    make_identity(norm)
    assert list(norm.state_dict()) == keys
    for name, (old, value) in before.items():
        assert torch.equal(old, value), f"{name} was written to"
        new = getattr(norm, name)
        if name != "num_batches_tracked":
            assert new is not old
            assert new.untyped_storage().data_ptr() != old.untyped_storage().data_ptr()
        assert (type(new), new.dtype, new.shape, new.requires_grad) == (
            type(old),
            old.dtype,
            old.shape,
            old.requires_grad,
        )
    assert {table for table, _ in slots} <= {"__dict__", "_parameters", "_buffers"}


@NORM_TYPES
def test_is_identity_judges_the_map_and_not_the_values(kind: type[nn.Module]) -> None:
    norm = kind(CHANNELS, eps=0.0).eval()
    assert is_identity(norm)
    norm.running_var.fill_(4.0)
    assert not is_identity(norm)
    with torch.no_grad():
        norm.weight.fill_(2.0)
    assert is_identity(norm)
    norm.running_mean[1] = 1.0
    assert not is_identity(norm)
    with torch.no_grad():
        norm.bias[1] = 1.0
    assert is_identity(norm)


@NORM_TYPES
def test_the_ranks_are_those_that_the_norm_takes(kind: type[nn.Module]) -> None:
    norm = make_norm(kind)
    for rank, shape in SHAPES.items():
        x = torch.randn(shape, dtype=torch.float64)
        if rank in NORMS[kind].ranks:
            norm(x)
        else:
            with pytest.raises(ValueError, match="expected"):
                norm(x)


@NORM_TYPES
def test_only_a_type_with_its_own_forward_is_a_norm(kind: type[nn.Module]) -> None:
    norm = kind(CHANNELS)
    assert is_norm(norm)
    assert is_norm(type("Named", (kind,), {})(CHANNELS))
    assert not is_norm(type("Other", (kind,), {"forward": lambda self, x: x})(CHANNELS))
    norm.forward = lambda x: x
    assert not is_norm(norm)
    assert norm_type(norm) is NORMS[kind]
    assert not is_norm(nn.GroupNorm(1, CHANNELS))
    with pytest.raises(TypeError, match="GroupNorm is no normalization layer with an entry in NORMS"):
        norm_type(nn.GroupNorm(1, CHANNELS))


@NORM_TYPES
@TERMS
def test_width_and_what_it_makes_of_its_input(kind: type[nn.Module], terms: tuple[bool, bool]) -> None:
    norm = make_norm(kind, terms)
    assert width(norm) == width(kind(CHANNELS, track_running_stats=False)) == CHANNELS
    assert children_after(norm) == ()
    for shape in shapes(kind):
        x = torch.randn(shape, dtype=torch.float64)
        assert relative_error(normalized(norm, x), norm(x)) < ROUNDINGS * torch.finfo(x.dtype).eps


@NORM_TYPES
def test_training_mode_is_refused_by_name(kind: type[nn.Module]) -> None:
    norm = kind(CHANNELS)
    with pytest.raises(ValueError, match=r"features\.norm0 is in training mode: .* call model\.eval\(\) first"):
        check_norm(norm, "features.norm0")
    check_norm(norm.eval(), "features.norm0")


@NORM_TYPES
def test_missing_statistics_are_refused_by_name(kind: type[nn.Module]) -> None:
    norm = kind(CHANNELS, track_running_stats=False).eval()
    assert not has_statistics(norm)
    assert not is_identity(norm)
    with pytest.raises(ValueError, match=r"features\.norm0 has no running statistics"):
        check_norm(norm, "features.norm0")
    assert has_statistics(kind(CHANNELS))


@pytest.mark.parametrize("kind", INSTANCES)
def test_a_norm_of_instances_is_one_by_running_statistics_alone(kind: type[nn.Module]) -> None:
    norm = randomize_any(kind(CHANNELS, affine=True, track_running_stats=True).double())
    assert is_norm(norm)
    x = torch.randn(shapes(kind)[0], dtype=torch.float64)
    assert relative_error(apply(norm_type(norm).read(norm), x), norm(x)) < ROUNDINGS * torch.finfo(x.dtype).eps
    make_identity(norm)
    assert is_identity(norm)
    assert torch.equal(norm(x), x)
    without = kind(CHANNELS)
    assert not is_norm(without)
    entry = operation_of_module(without)
    assert entry is not None
    assert entry.kind is Kind.NORMALISER
    with pytest.raises(TypeError, match="no normalization layer with an entry"):
        norm_type(without)
