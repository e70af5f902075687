"""The thresholded ReLU: what a ReLU becomes when the BatchNorm before it moves to the layers behind it.

Floor 1: imports ``affine`` and ``edits``. A new activation is one entry of ``ACTIVATIONS``.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from canon_bridge.core.affine import Affine
from canon_bridge.core.edits import Edits

# Below this scale the threshold -b/s is not formed: the quotient loses nothing yet, but grows towards overflow.
SMALLEST_SCALE = 1e-12

Absorb = Callable[[Edits, nn.Module, Affine, bool], Affine]


def absorb_into_relu(edits: Edits, module: nn.Module, affine: Affine, clip_relevance: bool) -> Affine:
    r"""Turn a ReLU into the thresholded ReLU, and return the affine map that is left for the layers behind it.

    .. math:: \mathrm{relu}(s x + b) = s \, \mathrm{thr}(x) + b, \qquad t = -b / s, \qquad
              \mathrm{thr}(x) = \max(x, t) \; (s > 0), \quad \min(x, t) \; (s < 0)

    A channel with ``s == 0`` is the constant ``relu(b)``: there thr is 0 and the returned shift is ``relu(b)``. For
    ``0 < |s| < 1e-12`` nothing is divided: thr is ``max(s x, -b)`` and the returned scale is 1.

    Parameters
    ----------
    edits : Edits
        The journal that records the writes.
    module : nn.Module
        The ReLU; it gets buffers ``thr_sign``, ``thr_value`` (and ``thr_factor`` where a scale is tiny), which
        move with the module and stay out of ``state_dict``.
    affine : Affine
        What came before the ReLU, scale :math:`s` and shift :math:`b` of shape ``(C,)``.
    clip_relevance : bool
        Whether relevance that reaches a clipped unit stops there (it then counts as absorbed by the bias of the
        next layer) instead of travelling on to the input, which the clipped value does not depend on.

    Returns
    -------
    Affine
        The map from thr's output to the ReLU's.

    References
    ----------
    Hui & Binder 2019, "BatchNorm Decomposition for Deep Neural Network Interpretation", IWANN, section 3.
    """
    scale, shift = affine.scale, affine.shift
    zero, tiny = scale == 0, (scale != 0) & (scale.abs() < SMALLEST_SCALE)
    normal = ~(zero | tiny)
    safe = torch.where(normal, scale, torch.ones_like(scale))
    threshold = torch.where(normal, -shift / safe, torch.where(tiny, -shift, torch.zeros_like(shift)))
    # sign * x <= sign * t says "clipped" for both signs; sign 0 makes a channel of scale 0 clipped everywhere.
    sign = torch.where(tiny, torch.ones_like(scale), scale.sign())
    edits.set_buffer(module, "thr_sign", sign)
    edits.set_buffer(module, "thr_value", threshold)
    if bool(tiny.any()):
        edits.set_buffer(module, "thr_factor", torch.where(tiny, scale, torch.ones_like(scale)))
    edits.set(module, "__dict__", "forward", partial(_thresholded_relu, module))
    if clip_relevance:
        edits.add_pre_hook(module, _stop_at_clipped)
    ones = torch.ones_like(scale)
    return Affine(torch.where(normal, scale, ones), torch.where(zero, shift.relu(), shift))


ACTIVATIONS: Mapping[type[nn.Module], Absorb] = {nn.ReLU: absorb_into_relu}


def is_activation(module: nn.Module) -> bool:
    """Return whether the module is of a type in ``ACTIVATIONS`` and computes what that type computes."""
    return type(module) in ACTIVATIONS and "forward" not in vars(module)


def is_elementwise(module: nn.Module) -> bool:
    """Return whether the module is an element-wise activation of torch.nn (it may work in place)."""
    return hasattr(module, "inplace") and type(module).__module__.startswith("torch.nn.modules")


def _thresholded_relu(module: nn.Module, input: Tensor) -> Tensor:
    if torch.is_grad_enabled() and input.requires_grad:
        value, clipped, threshold = _clip(module, input)
        # Not torch.clamp: at a tie the gradient must be that of the ReLU, zero. NaN stays NaN, as in the ReLU.
        return torch.where(clipped, threshold, value)
    value, sign, threshold = _compared(module, input)
    # The same values, several times as fast: bounded on the side of the sign, on both sides where it is 0.
    lower = torch.where(sign >= 0, threshold, -torch.inf)
    upper = torch.where(sign <= 0, threshold, torch.inf)
    return torch.minimum(torch.maximum(value, lower), upper)


def _stop_at_clipped(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Pass the input on, and stop on the way back whatever a rule sends to units that are clipped.

    It has to sit in front of the module: rules replace the gradient between a module's output and its input, so a
    mask inside forward is overwritten by them (zennit 1.0) or not (zennit 0.5).
    """
    (value,) = args
    if not (torch.is_grad_enabled() and value.requires_grad):
        return None
    _, clipped, _ = _clip(module, value.detach())
    return (torch.where(clipped, value.detach(), value),)


def _clip(module: nn.Module, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value that is compared, where it is clipped, and to what."""
    value, sign, threshold = _compared(module, input)
    return value, sign * value <= sign * threshold, threshold


def _compared(module: nn.Module, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value that is compared, the sign of the scale, and the threshold, per channel."""
    buffers = vars(module)["_buffers"]
    sign, threshold = (_per_channel(buffers[name], input) for name in ("thr_sign", "thr_value"))
    factor = buffers.get("thr_factor")
    return (input if factor is None else input * _per_channel(factor, input)), sign, threshold


def _per_channel(values: Tensor, input: Tensor) -> Tensor:
    # (C,) against (N, C, *spatial), or against (N, C * k) behind a flatten.
    if input.shape[1] != values.numel():
        values = values.repeat_interleave(input.shape[1] // values.numel())
    return values.to(input.dtype).view(-1, *(1,) * (input.dim() - 2))
