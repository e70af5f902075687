"""The thresholded ReLU: ``relu(s x + b) = s_eff thr(x) + b_eff``, value and gradient, and no NaN or infinity.

The reference is the ReLU itself behind the affine map, computed and differentiated by torch.
"""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge.core.activations import LARGEST_THRESHOLD, SMALLEST_SCALE, absorb_into_relu, find_absorber, is_relu
from canon_bridge.core.affine import Affine
from canon_bridge.core.restore import Edits
from tests.support.errors import relative_error

# Value and gradient are computed without autograd in another way than with it.
MODES = pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])

SCALES = (1.0, -1.0, 0.7, -2.3, 1e-6, -1e-6, 1e-11, 1.1e-12, -1.1e-12, 0.0, -0.0)
TINY = (9e-13, 1e-13, -1e-13, 1e-20, -1e-20, 1e-37, -1e-37, 1e-40)
SHIFTS = (0.0, 1.0, -1.0, 0.3, -1e-3, 1e-9, 1e6, -1e6)
# Of |b| + |s x|, at most: the threshold, the product and the sum of the package, and two of the reference.
ROUNDINGS = 5


def affine_grid(dtype: torch.dtype, scales: tuple[float, ...] = SCALES + TINY) -> Affine:
    """Return every scale with every shift, one channel each."""
    scale, shift = zip(*product(scales, SHIFTS), strict=True)
    return Affine(torch.tensor(scale, dtype=dtype), torch.tensor(shift, dtype=dtype))


def inputs(affine: Affine, grad: bool = False, spatial: tuple[int, ...] = (9,)) -> Tensor:
    """Return input of magnitudes from 1e-3 to 1e3, and around every threshold."""
    x = torch.randn(12, affine.scale.numel(), *spatial, dtype=affine.scale.dtype)
    x = x * torch.logspace(-3, 3, 12, dtype=x.dtype).view(-1, 1, *(1,) * len(spatial))
    threshold = torch.where(affine.scale.abs() > SMALLEST_SCALE, -affine.shift / affine.scale, 0)
    around = torch.tensor([-2, 0.5, 1, 1.5, 3], dtype=x.dtype).view(-1, 1) * threshold
    x[:5] = view(around, x, batched=True)
    return x.requires_grad_(grad)


def view(values: Tensor, x: Tensor, batched: bool = False) -> Tensor:
    """Reshape ``(C,)`` or ``(N, C)`` to broadcast against ``x``."""
    return values.view(*values.shape[: int(batched)], -1, *(1,) * (x.dim() - 2))


def apply(affine: Affine, x: Tensor) -> Tensor:
    return view(affine.scale, x) * x + view(affine.shift, x)


def absorb(affine: Affine, clip_relevance: bool = False) -> tuple[nn.Module, Affine]:
    module = nn.ReLU()
    return module, absorb_into_relu(Edits(), module, affine, clip_relevance)


def deviation(value: Tensor, x: Tensor, affine: Affine) -> float:
    """Return the largest deviation from ``relu(s x + b)`` in units of ``eps (|b| + |s x|)``."""
    reference = F.relu(apply(affine, x))
    size = view(affine.shift.abs(), x) + (view(affine.scale, x) * x).abs()
    error = (value - reference).abs() / (size * torch.finfo(x.dtype).eps).clamp(min=torch.finfo(x.dtype).tiny)
    return float(error.detach().nan_to_num(torch.inf, torch.inf).max())


@MODES
def test_the_thresholded_relu_is_the_relu(grad: bool) -> None:
    affine = Affine(torch.randn(8).double(), torch.randn(8).double())
    affine.scale[:3] = torch.tensor([0.0, 1e-20, -1e-14])
    module, left = absorb(affine)
    for shape in ((6, 8), (6, 8, 5), (2, 8, 3, 4), (2, 8, 2, 3, 2)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=grad)
        reference = F.relu(apply(affine, x))
        assert relative_error(apply(left, module(x)), reference) < 8 * torch.finfo(x.dtype).eps
        forgotten = F.relu(view(affine.scale, x) * x)
        assert relative_error(forgotten, reference) > 1e-3


@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spatial", [(), (9,), (3, 2)])
def test_every_scale_and_shift(dtype: torch.dtype, grad: bool, spatial: tuple[int, ...]) -> None:
    affine = affine_grid(dtype)
    module, left = absorb(affine)
    x = inputs(affine, grad, spatial)
    thr = module(x)
    assert thr.dtype == dtype
    for tensor in (thr, left.scale, left.shift, *module.buffers()):
        assert bool(torch.isfinite(tensor).all())
    assert deviation(apply(left, thr), x, affine) < ROUNDINGS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tolerance_rejects_wrong_thresholds(dtype: torch.dtype) -> None:
    affine = affine_grid(dtype, SCALES[:4])
    x = inputs(affine)
    scale, t = view(affine.scale, x), view(-affine.shift / affine.scale, x)
    right = torch.where(scale > 0, torch.maximum(x, t), torch.minimum(x, t))
    assert deviation(apply(affine, right), x, affine) < ROUNDINGS
    wrong = {
        "max for both signs": torch.maximum(x, t),
        "min for both signs": torch.minimum(x, t),
        "sign of the threshold": torch.where(scale > 0, torch.maximum(x, -t), torch.minimum(x, -t)),
        "threshold b": torch.where(scale > 0, torch.maximum(x, t * scale), torch.minimum(x, t * scale)),
        "plain ReLU": F.relu(x),
        "clipped to zero": torch.where(scale * x > scale * t, x, 0),
    }
    for name, value in wrong.items():
        assert deviation(apply(affine, value), x, affine) > 1e4, name


@MODES
def test_a_tiny_scale_must_not_be_divided_by(grad: bool) -> None:
    affine = affine_grid(torch.float32, (1e-37, -1e-37, 1e-40))
    x = inputs(affine, grad)
    t = view(-affine.shift / affine.scale, x)
    divided = torch.where(view(affine.scale, x) > 0, torch.maximum(x, t), torch.minimum(x, t))
    assert deviation(apply(affine, divided), x, affine) == torch.inf
    module, left = absorb(affine)
    assert deviation(apply(left, module(x)), x, affine) < ROUNDINGS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_that_of_the_relu(dtype: torch.dtype) -> None:
    affine = affine_grid(dtype)
    module, left = absorb(affine)
    x = inputs(affine, grad=True)
    before = apply(affine, x)
    (expected,) = torch.autograd.grad(F.relu(before).sum(), x)
    thr = module(x)
    (value,) = torch.autograd.grad(apply(left, thr).sum(), x)
    # Where s x + b is rounding, either gradient is right.
    rounding = before.abs() < ROUNDINGS * torch.finfo(dtype).eps * view(affine.shift.abs(), x)
    clear = ~(rounding & view(affine.scale != 0, x))
    assert float(clear.double().mean()) > 0.8
    assert torch.equal(value[clear], expected[clear])


@pytest.mark.parametrize("scale", [2.0, -2.0, 0.5, -0.25, 1.0])
@pytest.mark.parametrize("shift", [0.0, 1.0, -3.0])
def test_gradient_at_a_tie_is_zero(scale: float, shift: float) -> None:
    affine = Affine(torch.tensor([scale]), torch.tensor([shift]))
    module, left = absorb(affine)
    x = torch.full((1, 1), -shift / scale, requires_grad=True)
    assert torch.equal(apply(affine, x), torch.zeros(1, 1))
    value = apply(left, module(x))
    assert torch.equal(value, torch.zeros(1, 1))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert float(gradient) == 0
    (shared,) = torch.autograd.grad(torch.maximum(x, x.detach()).sum(), x)
    assert float(shared) == 0.5


@MODES
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_are_those_of_the_relu(special: float, grad: bool) -> None:
    affine = affine_grid(torch.float32, (1.0, -1.0, 2e-12, -2e-12, 1e-20, -1e-37))
    module, left = absorb(affine)
    x = torch.full((1, affine.scale.numel()), special, requires_grad=grad)
    reference = F.relu(apply(affine, x))
    assert torch.allclose(apply(left, module(x)), reference, rtol=1e-6, atol=0.5, equal_nan=True)


@MODES
def test_nan_is_not_hidden_by_a_zero_scale(grad: bool) -> None:
    affine = affine_grid(torch.float32, (0.0, -0.0))
    module, _ = absorb(affine)
    assert bool(module(torch.full((1, affine.scale.numel()), torch.nan, requires_grad=grad)).isnan().all())


@pytest.mark.parametrize("special", [1.0, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("scales", [SCALES[:-2], SCALES[-2:], TINY], ids=["normal", "zero", "tiny"])
def test_values_do_not_depend_on_whether_gradients_are_wanted(scales: tuple[float, ...], special: float) -> None:
    affine = affine_grid(torch.float32, scales)
    module, _ = absorb(affine)
    x = inputs(affine) * special
    without, wanted = module(x), module(x.clone().requires_grad_()).detach()
    assert torch.equal(without.isnan(), wanted.isnan())
    assert torch.equal(without[~without.isnan()], wanted[~wanted.isnan()])


@MODES
@pytest.mark.parametrize(("dtype", "scale", "shift"), [(torch.float16, 1e-6, -0.1), (torch.float32, 1e-11, -1e28)])
def test_threshold_beyond_the_range_of_the_dtype(dtype: torch.dtype, scale: float, shift: float, grad: bool) -> None:
    affine = Affine(torch.tensor([scale, -scale]), torch.tensor([shift, shift]))
    module, left = absorb(affine)
    x = torch.randn(4, 2, dtype=dtype, requires_grad=grad)
    value = module(x)
    assert bool(torch.isfinite(value).all())
    # Exactly zero up to the rounding of the shift in the dtype.
    assert float(apply(left, value.float()).detach().abs().max()) <= abs(shift) * torch.finfo(dtype).eps


@pytest.mark.parametrize("special", SCALES + TINY)
def test_zero_and_tiny_scales_are_left_to_the_layers_behind(special: float) -> None:
    _, left = absorb(Affine(torch.tensor([special, special]), torch.tensor([-2.0, 3.0])))
    undivided = abs(special) < SMALLEST_SCALE or 2 / abs(special) > LARGEST_THRESHOLD
    assert left.scale.tolist() == pytest.approx([1 if undivided else special] * 2)
    assert left.shift.tolist() == ([0, 3] if special == 0 else [-2, 3])


@MODES
@pytest.mark.parametrize("times", [1, 4])
def test_behind_a_flatten_each_channel_repeats(times: int, grad: bool) -> None:
    affine = affine_grid(torch.float64)
    module, _ = absorb(affine)
    x = inputs(affine, grad, (times,))
    assert torch.equal(module(x.flatten(1)), module(x).flatten(1))


def test_which_modules_become_a_thresholded_relu() -> None:
    assert is_relu(nn.ReLU())
    assert is_relu(nn.ReLU(inplace=True))
    assert is_relu(type("Named", (nn.ReLU,), {})())
    assert not is_relu(type("Other", (nn.ReLU,), {"forward": lambda self, x: x})())
    assert not is_relu(nn.Tanh())
    assert not is_relu(nn.ReLU6())
    module, _ = absorb(Affine(torch.ones(1), torch.ones(1)))
    assert not is_relu(module)
    assert find_absorber(module, again=True) is absorb_into_relu
