"""Max pooling behind an affine map: ``max_k (s x_k + b) = s pool(x) + b``, a maximum or a minimum by the sign of s.

The reference is the pooling of torch behind the map.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize, plan
from canon_bridge.core.activations import MAX_POOLS, absorb_into_max_pool, find_absorber, wanted_rank
from canon_bridge.core.affine import Affine
from canon_bridge.core.restore import Edits
from tests.core.test_activations_general import absorb, apply
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, check
from tests.support.statistics import randomize

SCALES = (1.0, -1.0, 0.7, -2.3, 1e-6, -1e-12, 1e-20, -1e-37, 0.0, -0.0)
CHANNELS = len(SCALES)
SIZES = {1: (11,), 2: (9, 7), 3: (7, 6, 5)}

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 2, "stride": 1, "dilation": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": 3, "stride": 3, "padding": 1, "ceil_mode": True},
]
POOLS: dict[str, tuple[int, nn.Module]] = {}
for _rank in SIZES:
    for _geometry in GEOMETRIES:
        _name = f"MaxPool{_rank}d({', '.join(f'{key}={value}' for key, value in _geometry.items())})"
        POOLS[_name] = (_rank, getattr(nn, f"MaxPool{_rank}d")(**_geometry))
    for _size in (1, 3, (None, 2, 2)[3 - _rank :]):
        POOLS[f"AdaptiveMaxPool{_rank}d({_size})"] = (_rank, getattr(nn, f"AdaptiveMaxPool{_rank}d")(_size))
POOL = pytest.mark.parametrize("name", POOLS)


def make(name: str) -> tuple[nn.Module, Tensor]:
    rank, module = POOLS[name]
    return copy.deepcopy(module), torch.randn(2, CHANNELS, *SIZES[rank], dtype=torch.float64)


def affine(dtype: torch.dtype = torch.float64) -> Affine:
    return Affine(torch.tensor(SCALES, dtype=dtype), torch.randn(CHANNELS, dtype=dtype))


def test_every_type_is_tried() -> None:
    assert {type(module) for _, module in POOLS.values()} == {kind for kind in MAX_POOLS if not isinstance(kind, str)}


@POOL
def test_value_and_gradient_are_those_behind_the_map(name: str) -> None:
    module, x = make(name)
    before, reference = affine(), copy.deepcopy(module)
    left = absorb(module, before)
    assert torch.equal(left.scale, before.scale)
    assert torch.equal(left.shift, before.shift)
    x.requires_grad_()
    expected, pooled = reference(apply(before, x)), module(x)
    assert bool(pooled.isfinite().all())
    assert relative_error(apply(left, pooled), expected) < 1e-15
    relevance = torch.randn_like(expected)
    # Where s x is lost next to b all elements of a window are equal, and any of them may win.
    relevance[:, 4:] = 0
    (value,) = torch.autograd.grad(apply(left, pooled), x, relevance)
    (right,) = torch.autograd.grad(expected, x, relevance)
    assert relative_error(value, right) < 1e-14
    assert torch.equal(value != 0, right != 0)


@POOL
def test_the_tolerance_rejects_what_is_wrong(name: str) -> None:
    module, x = make(name)
    before, reference = affine(), copy.deepcopy(module)
    expected, sign = reference(apply(before, x)), torch.where(before.scale < 0, -1.0, 1.0).double()
    shape = (-1, *(1,) * (x.dim() - 2))
    wrong = {
        "always the maximum": reference(x),
        "always the minimum": -reference(-x),
        "the other sign": reference(x * -sign.view(shape)) * -sign.view(shape),
        "padding with zeros for the minimum": reference(x * sign.view(shape)).abs(),
    }
    for case, value in wrong.items():
        assert relative_error(apply(before, value), expected) > 1e-2, case


@POOL
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    module, x = make(name)
    before, reference = affine(torch.float32), copy.deepcopy(module)
    left = absorb(module.to(dtype), before)
    x = x.to(dtype)
    pooled = module(x)
    assert pooled.dtype == dtype
    # Pooling chooses and does not round.
    assert torch.allclose(apply(left, pooled.double()), reference(apply(before, x.double())), rtol=1e-6, atol=1e-6)


@POOL
def test_absorbing_twice_is_absorbing_the_composed_map(name: str) -> None:
    module, x = make(name)
    reference, fresh = copy.deepcopy(module), copy.deepcopy(module)
    first = Affine(torch.tensor([1.0, -1.0] * 5).double(), torch.randn(CHANNELS).double())
    second = Affine(torch.tensor([-2.0, -0.5, 3.0, 1.0, 0.0] * 2).double(), torch.randn(CHANNELS).double())
    behind = absorb(module, first)
    inner = absorb(module, second)
    absorb(fresh, first.after(second))
    expected = reference(apply(first, apply(second, x)))
    assert relative_error(apply(behind.after(inner), module(x)), expected) < 1e-14
    live = first.after(second).scale != 0  # a channel of scale zero may pool either way
    assert torch.equal(module(x)[:, live], fresh(x)[:, live])


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_a_tie_goes_to_the_winner_of_the_original(scale: float) -> None:
    module, reference = nn.MaxPool1d(3), nn.MaxPool1d(3)
    before = Affine(torch.tensor([scale]), torch.tensor([0.5]))
    left = absorb(module, before)
    x = torch.tensor([[[2.0, 2.0, 2.0, 1.0, -1.0, -1.0, 0.0, 3.0, 3.0]]], requires_grad=True)
    (value,) = torch.autograd.grad(apply(left, module(x)).sum(), x)
    (expected,) = torch.autograd.grad(reference(apply(before, x)).sum(), x)
    assert torch.equal(value, expected)
    assert float(value.abs().sum()) == 3


def test_nan_wins_as_in_the_original() -> None:
    module = nn.MaxPool1d(2)
    absorb(module, Affine(torch.tensor([1.0, -1.0, 0.0]), torch.zeros(3)))
    x = torch.ones(1, 3, 4)
    x[:, :, 1] = torch.nan
    assert module(x).isnan().tolist() == [[[True, False]] * 3]


def test_which_modules_are_max_pools() -> None:
    for rank, module in POOLS.values():
        assert wanted_rank(module) == rank + 2
        assert find_absorber(module) is absorb_into_max_pool
    assert find_absorber(nn.MaxPool2d(2, return_indices=True)) is None
    assert find_absorber(nn.AdaptiveMaxPool2d(2, return_indices=True)) is None
    for other in (nn.AvgPool2d(2), nn.LPPool2d(2, 2), nn.FractionalMaxPool2d(2, output_size=2), nn.MaxUnpool2d(2)):
        assert find_absorber(other) is None


def test_the_buffer_moves_with_the_module_and_stays_out_of_its_state() -> None:
    module, journal = nn.MaxPool2d(2), Edits()
    absorb_into_max_pool(journal, module, affine(torch.float32), True)
    assert module.state_dict() == {}
    assert {buffer.dtype for buffer in module.half().buffers()} == {torch.float16}
    journal.undo()
    assert list(module.buffers()) == []
    assert "forward" not in vars(module)


NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.mark.parametrize("name", [name for name in POOLS if "(3" not in name and "ceil" not in name])
def test_a_norm_is_merged_right_through_the_pool(name: str) -> None:
    rank, pool = POOLS[name]
    layers = [nn.Tanh(), NORMS[rank](4), copy.deepcopy(pool), nn.ReLU(), CONVOLUTIONS[rank](4, 3, 2, padding=1)]
    model = randomize(nn.Sequential(*layers).double())
    (merge,) = plan(model).merges
    assert (merge.chain.direction, merge.chain.absorbers) == ("right", ("2", "3"))
    sizes = (SIZES[rank], tuple(size + 3 for size in SIZES[rank]))
    check(model, *(torch.randn(1, 4, *size, dtype=torch.float64) for size in sizes))


@pytest.mark.parametrize("prefer", BOTH)
def test_relevance_goes_to_the_winner_whatever_the_sign(prefer: str) -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2), nn.MaxPool1d(3), nn.Conv1d(2, 1, 1))
    model = randomize(model.double())
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.5, -1.5]))
    x = torch.randn(1, 1, 9, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    with canonize(model, prefer=prefer):
        assert relative_error(torch.autograd.grad(model(x).sum(), x)[0], expected) < 1e-14
