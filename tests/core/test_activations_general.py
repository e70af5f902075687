"""Every activation of ``ACTIVATIONS`` behind an affine map: ``phi(s x + b) = e g(x) + d``, value and gradient.

The reference is the activation of torch itself behind the map, differentiated by torch.
"""

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from canon_bridge.core.activations import ACTIVATIONS, find_absorber
from canon_bridge.core.affine import Affine
from canon_bridge.core.registry import TypeKey
from canon_bridge.core.restore import Edits

NORMAL = (1.0, -1.0, 0.7, -2.3, 1e-3, -1e-3)
SMALL = (1e-6, -1e-6, 1.1e-12, 9e-13, 1e-13, -1e-13, 1e-20, -1e-20, 1e-37, 1e-40)
SHIFTS = (0.0, 1.0, -1.0, 0.3, -1e-3, 7.0, -30.0)
HUGE = (1e6, -1e6, 1e30, -1e30)
# Of |b| + |s x| + |phi|, at most: four of the package, two of the reference.
ROUNDINGS = 6

KINDS = [kind for kind in ACTIVATIONS if not isinstance(kind, str)]
ACTIVATION = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
CLIP = pytest.mark.parametrize("clip", [True, False], ids=["absorb", "pass"])
SHAPES = {2: (), 3: (5,), 4: (3, 2), 5: (2, 1, 2)}


def make(kind: TypeKey, width: int = 1, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return an activation whose constants are none of the defaults, which a copy might forget."""
    arguments = {
        nn.Threshold: (0.2, -0.3),
        nn.LeakyReLU: (0.3,),
        nn.ELU: (1.3,),
        nn.CELU: (0.6,),
        nn.Softplus: (2.0, 5.0),
        nn.Hardtanh: (-0.5, 2.0),
        nn.Hardshrink: (0.4,),
        nn.Softshrink: (0.4,),
        nn.GELU: ("tanh",),
        nn.PReLU: (width,),
    }
    module = kind(*arguments.get(kind, ())).to(dtype).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.linspace(-0.5, 1.5, parameter.numel()))
    return module


def grid(scales: tuple[float, ...], shifts: tuple[float, ...], dtype: torch.dtype = torch.float64) -> Affine:
    """Return every scale with every shift, one channel each."""
    scale, shift = zip(*product(scales, shifts), strict=True)
    return Affine(torch.tensor(scale, dtype=dtype), torch.tensor(shift, dtype=dtype))


def view(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (x.dim() - 2)).to(x.dtype)


def apply(affine: Affine, x: Tensor) -> Tensor:
    return view(affine.scale, x) * x + view(affine.shift, x)


def inputs(affine: Affine, spatial: tuple[int, ...] = (), dtype: torch.dtype | None = None) -> Tensor:
    """Return input of magnitudes from 1e-2 to 1e2 of both signs."""
    x = torch.randn(12, affine.scale.numel(), *spatial, dtype=torch.float64)
    x = x * torch.logspace(-2, 2, 12, dtype=x.dtype).view(-1, 1, *(1,) * len(spatial))
    return x.to(dtype or affine.scale.dtype)


def absorb(module: nn.Module, affine: Affine, clip: bool = False) -> Affine:
    absorber = find_absorber(module, again=True)
    assert absorber is not None
    return absorber(Edits(), module, affine, clip)


def error(value: Tensor, reference: Tensor, x: Tensor, affine: Affine) -> float:
    """Return the largest deviation in units of ``eps (|b| + |s x| + |phi|)``; infinite where one is not finite."""
    size = view(affine.shift.abs(), x) + (view(affine.scale, x) * x).abs() + reference.abs()
    unit = (size * torch.finfo(x.dtype).eps).clamp(min=torch.finfo(x.dtype).tiny)
    return float(((value - reference).abs() / unit).detach().nan_to_num(torch.inf, torch.inf).max())


@CLIP
@ACTIVATION
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", SHAPES)
def test_every_scale_and_shift(rank: int, dtype: torch.dtype, kind: type[nn.Module], clip: bool) -> None:
    affine = grid((*NORMAL, *SMALL, 0.0, -0.0), (*SHIFTS, *HUGE), dtype)
    width = affine.scale.numel()
    reference, module = make(kind, width, dtype), make(kind, width, dtype)
    left = absorb(module, affine, clip)
    x = inputs(affine, SHAPES[rank])
    for values in (x, x.clone().requires_grad_()):
        general = module(values)
        assert general.dtype == left.scale.dtype == dtype
        assert all(bool(tensor.isfinite().all()) for tensor in (general, left.scale, left.shift, *module.buffers()))
        assert error(apply(left, general), reference(apply(affine, x)), x, affine) < ROUNDINGS


@ACTIVATION
def test_the_tolerance_rejects_what_is_wrong(kind: type[nn.Module]) -> None:
    affine = grid(NORMAL[1:4], SHIFTS[:4])
    width = affine.scale.numel()
    module, x = make(kind, width), inputs(affine)
    expected = module(apply(affine, x))
    general = (expected - affine.shift) / affine.scale
    assert error(apply(affine, general), expected, x, affine) < ROUNDINGS
    wrong = {
        "the activation itself": module(x),
        "no shift inside": (module(x * affine.scale) - affine.shift) / affine.scale,
        "no scale inside": (module(x + affine.shift) - affine.shift) / affine.scale,
        "sign of the scale": (module(x * affine.scale.abs() + affine.shift) - affine.shift) / affine.scale,
        "sign of the shift": (module(x * affine.scale - affine.shift) - affine.shift) / affine.scale,
        "other channel": (module(apply(Affine(affine.scale, affine.shift.roll(1)), x)) - affine.shift) / affine.scale,
    }
    for name, value in wrong.items():
        assert error(apply(affine, value), expected, x, affine) > 1e9, name


@ACTIVATION
def test_gradient(kind: type[nn.Module]) -> None:
    affine = grid((*NORMAL, *SMALL, 0.0), SHIFTS)
    width = affine.scale.numel()
    reference, module = make(kind, width), make(kind, width)
    left = absorb(module, affine)
    x = inputs(affine, (2,)).requires_grad_()
    before, relevance = apply(affine, x), torch.randn_like(x)
    (expected,) = torch.autograd.grad(reference(before), x, relevance)
    (value,) = torch.autograd.grad(apply(left, module(x)), x, relevance)
    # Exactly at a kink (z = 0, where s x is lost next to b) either side is right.
    at_kink = (before.abs() < 1e-12 * view(affine.shift.abs() + affine.scale.abs(), x)) & (view(affine.scale, x) != 0)
    assert float(at_kink.double().mean()) < 0.2
    tolerance = 64 * torch.finfo(x.dtype).eps  # of torch's own derivatives
    assert torch.allclose(value[~at_kink], expected[~at_kink], rtol=tolerance, atol=1e-60)
    assert float((value - expected.roll(1, 1)).abs().max()) > 0.1


@ACTIVATION
@pytest.mark.parametrize("times", [1, 6])
def test_behind_a_flatten_each_channel_repeats(kind: type[nn.Module], times: int) -> None:
    affine = grid((*NORMAL, *SMALL, 0.0), SHIFTS)
    module = make(kind)  # a parameter for each channel has no meaning there
    absorb(module, affine)
    x = inputs(affine, (times,))
    assert torch.equal(module(x.flatten(1)), module(x).flatten(1))
    if times > 1:
        assert not torch.equal(module(x.transpose(1, 2).flatten(1)), module(x).transpose(1, 2).flatten(1))


@ACTIVATION
def test_a_channel_of_scale_zero_is_constant(kind: type[nn.Module]) -> None:
    affine = grid((0.0, -0.0), SHIFTS)
    width = affine.scale.numel()
    reference, module = make(kind, width), make(kind, width)
    left = absorb(module, affine)
    assert bool((module(inputs(affine)) == 0).all())
    assert bool((left.scale == 1).all())
    assert torch.allclose(left.shift, reference(affine.shift[None])[0], rtol=1e-14, atol=1e-15)


SECOND = ("any", "from zero", "from tiny", "to zero", "no change")


@ACTIVATION
@pytest.mark.parametrize("case", SECOND)
def test_absorbing_twice_is_absorbing_the_composed_map(kind: type[nn.Module], case: str) -> None:
    width = 12
    first = Affine(torch.randn(width).double(), torch.randn(width).double())  # next to the activation
    second = Affine(torch.randn(width).double(), torch.randn(width).double())  # arrives later, from before
    if case == "from zero":
        first.scale[::2] = 0
    elif case == "from tiny":
        first.scale[::2] = 1e-20
    elif case == "to zero":
        second.scale[::2], second.scale[1] = 0, 1e-20
    elif case == "no change":
        second.scale[::2], second.shift[::2] = 1, 0
    reference, module = make(kind, width), make(kind, width)
    behind = absorb(module, first)
    former = module(inputs(first, (3,)))
    inner = absorb(module, second)
    x = inputs(first, (3,))
    fresh = make(kind, width)
    whole = absorb(fresh, first.after(second))
    expected = reference(apply(first, apply(second, x)))
    scale = 1 + expected.abs() + apply(first, apply(second, x)).abs()
    assert float(((apply(behind.after(inner), module(x)) - expected).abs() / scale).detach().max()) < 1e-14
    assert torch.equal(module(x), fresh(x))
    assert not torch.equal(former, module(x))
    assert torch.allclose(behind.after(inner).scale, whole.scale, rtol=1e-14)
    # The other order is something else.
    other = reference(apply(second, apply(first, x)))
    assert float((other - expected).detach().abs().max()) > 1e-3


@ACTIVATION
def test_three_maps_in_turn_are_the_three_of_them(kind: type[nn.Module]) -> None:
    maps = [Affine(torch.rand(6).double() + 0.5, torch.randn(6).double()) for _ in range(3)]
    reference, module = make(kind, 6), make(kind, 6)
    x = inputs(maps[0], (3,))
    before, behind = x, None
    for affine in maps:
        left = absorb(module, affine)
        behind = left if behind is None else behind.after(left)
    for affine in reversed(maps):
        before = apply(affine, before)
    assert behind is not None
    expected = reference(before)
    scale = 1 + expected.abs() + before.abs()
    assert float(((apply(behind, module(x)) - expected).abs() / scale).detach().max()) < 1e-13


# Torch compiles derivatives for it in a way that it advises against.
@pytest.mark.filterwarnings("ignore:.torch.jit.script")
@CLIP
@ACTIVATION
def test_the_derivative_in_forward_mode(kind: type[nn.Module], clip: bool) -> None:
    affine = grid((*NORMAL, 1e-20, 0.0), SHIFTS)
    width = affine.scale.numel()
    reference, module = make(kind, width), make(kind, width)
    left = absorb(module, affine, clip)
    x = inputs(affine)
    direction = torch.randn_like(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, direction)
        expected = forward_ad.unpack_dual(reference(apply(affine, dual))).tangent
        value = forward_ad.unpack_dual(apply(left, module(dual))).tangent
    assert value is not None
    clear = apply(affine, x).abs() > 1e-12
    assert torch.allclose(value[clear], expected[clear], rtol=1e-12, atol=1e-40)
