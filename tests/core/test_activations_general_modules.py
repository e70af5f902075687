"""The module that an activation behind an affine map lives in: which ones there are, its buffers, half precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from canon_bridge.core.activations import ACTIVATIONS, find_absorber
from canon_bridge.core.affine import Affine
from tests.core.test_activations_general import (
    ACTIVATION,
    CLIP,
    KINDS,
    NORMAL,
    ROUNDINGS,
    SHIFTS,
    SMALL,
    absorb,
    apply,
    error,
    grid,
    inputs,
    make,
)


@ACTIVATION
def test_half_precision(kind: type[nn.Module]) -> None:
    affine = grid((1.0, -0.7, 0.03, 1e-13, 1e-20, 0.0), (0.0, 1.0, -0.3), torch.float32)
    width = affine.scale.numel()
    exact, module = make(kind, width, torch.float32), make(kind, width, torch.float16)
    left = absorb(module, affine)
    x = inputs(affine, dtype=torch.float16)
    general, before = module(x), apply(affine, x.float())
    assert general.dtype == torch.float16
    expected = exact(before)
    # Not at the steps of the two that are discontinuous, which a rounding may take.
    clear = torch.where((before.abs() - 0.4).abs().minimum((before - 0.2).abs()) < 0.02, 0, 1)
    size = (before.abs() + affine.shift.abs() + expected.abs()) * torch.finfo(torch.float16).eps
    deviation = (apply(left, general.float()) - expected).abs() / (size + torch.finfo(torch.float16).tiny) * clear
    assert float(deviation.detach().max()) < ROUNDINGS


@CLIP
@ACTIVATION
def test_half_precision_is_finite_at_every_scale(kind: type[nn.Module], clip: bool) -> None:
    affine = grid((*NORMAL, *SMALL, 0.0), SHIFTS, torch.float32)
    module = make(kind, affine.scale.numel(), torch.float16)
    absorb(module, affine, clip)
    x = inputs(affine, dtype=torch.float16).requires_grad_()
    general = module(x)
    assert bool(general.isfinite().all())
    (gradient,) = torch.autograd.grad(general.float().sum(), x)
    assert bool(gradient.isfinite().all())


def test_which_modules_absorb() -> None:
    for kind in KINDS:
        assert find_absorber(make(kind)) is ACTIVATIONS[kind]
        assert find_absorber(type("Named", (kind,), {"__init__": kind.__init__})(*_arguments(kind))) is not None
        other = type("Other", (kind,), {"forward": lambda self, x: x})(*_arguments(kind))
        assert find_absorber(other) is None
        module = make(kind)
        absorb(module, Affine(torch.ones(1), torch.ones(1)))
        assert find_absorber(module) is None
        assert find_absorber(module, again=True) is ACTIVATIONS[kind]
    for other in (nn.Softmax(1), nn.GLU(1), nn.Softmax2d(), nn.LayerNorm(3), nn.Identity()):  # not by element
        assert find_absorber(other) is None


def _arguments(kind: type[nn.Module]) -> tuple[float, ...]:
    return (0.1, 0.2) if kind is nn.Threshold else ()


def test_the_buffers_move_with_the_module_and_stay_out_of_its_state() -> None:
    affine = grid(NORMAL, SHIFTS, torch.float32)
    module = make(nn.SiLU, dtype=torch.float32)
    left = absorb(module, affine)
    assert module.state_dict() == {}
    assert sorted(dict(module.named_buffers())) == ["act_factor", "act_offset", "act_scale", "act_shift"]
    x = inputs(affine, dtype=torch.float64)
    assert {buffer.dtype for buffer in module.double().buffers()} == {torch.float64}
    double = Affine(affine.scale.double(), affine.shift.double())
    value = apply(Affine(left.scale.double(), left.shift.double()), module(x))
    assert error(value, F.silu(apply(double, x)), x, double) < ROUNDINGS


@pytest.mark.parametrize("kind", [nn.ELU, nn.Hardtanh, nn.LeakyReLU, nn.SiLU, nn.Mish, nn.RReLU])
def test_an_activation_in_place_no_longer_writes_to_its_input(kind: type[nn.Module]) -> None:
    module = kind(inplace=True).double().eval()
    affine = grid((1.0, 0.0), (0.0, -1.0))
    shift = affine.shift.clone()
    absorb(module, affine, clip=True)
    x = inputs(affine)
    kept = x.clone()
    module(x)
    assert torch.equal(x, kept)
    assert torch.equal(affine.shift, shift)
