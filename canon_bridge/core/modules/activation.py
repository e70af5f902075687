"""The thresholded ReLU: what a ReLU becomes when the BatchNorm before it moves to the layers behind it.

Floor 3: imports ``absorbed``, ``affine``, ``edits`` and ``forwards``.
"""

from functools import partial

import torch
from torch import Tensor, nn

from canon_bridge.core.affine import Affine
from canon_bridge.core.modules.absorbed import choose, composed, has_reference, per_channel
from canon_bridge.core.undo.edits import Edits
from canon_bridge.core.undo.forwards import bind_forward


def absorb_into_relu(edits: Edits, module: nn.Module, affine: Affine, clip_relevance: bool) -> Affine:
    r"""Turn a ReLU into the thresholded ReLU, and return the affine map that is left for the layers behind it.

    .. math:: \mathrm{relu}(s x + b) = s \, \mathrm{thr}(x) + b, \qquad t = -b / s, \qquad
              \mathrm{thr}(x) = \max(x, t) \; (s > 0), \quad \min(x, t) \; (s < 0)

    A channel with ``s == 0`` is the constant ``relu(b)``: there thr is 0 and the returned shift is ``relu(b)``. Where
    ``|s| < 1e-12`` or ``|t| > 6e4``, nothing is divided: thr is ``max(s x, -b)`` and the returned scale is 1. A ReLU
    that has absorbed a map already absorbs this one, which comes before it, too.

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
    return composed(edits, module, affine, partial(_write, edits, module, clip_relevance))


def _write(edits: Edits, module: nn.Module, clip_relevance: bool, affine: Affine, is_first: bool) -> Affine:
    scale, shift = affine.scale, affine.shift
    zero, normal, tiny = choose(affine)
    quotient = -shift / torch.where(normal, scale, torch.ones_like(scale))
    threshold = torch.where(normal, quotient, torch.where(tiny, -shift, torch.zeros_like(shift)))
    sign = torch.where(tiny, torch.ones_like(scale), scale.sign())
    edits.set_buffer(module, "thr_sign", sign)
    edits.set_buffer(module, "thr_value", threshold)
    if bool(tiny.any()):
        edits.set_buffer(module, "thr_factor", torch.where(tiny, scale, torch.ones_like(scale)))
    bind_forward(edits, module, _thresholded_relu)
    if clip_relevance and is_first:
        edits.add_pre_hook(module, stop_at_clipped)
    ones = torch.ones_like(scale)
    return Affine(torch.where(normal, scale, ones), torch.where(zero, shift.relu(), shift))


def _thresholded_relu(module: nn.Module, input: Tensor) -> Tensor:
    value = _compared(module, input)
    lower, upper = _bounds(module, input)
    if not (torch.is_grad_enabled() and value.requires_grad):
        return torch.minimum(torch.maximum(value, lower), upper)
    bounded = torch.minimum(torch.maximum(value.detach(), lower), upper)
    # The gradient of min and max at a tie is one half; here it must be that of the ReLU, zero.
    return torch.where(_is_clipped(value.detach(), lower, upper), bounded, value)


def stop_at_clipped(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Pass the input on, and stop on the way back whatever a rule sends to units that are clipped.

    It has to sit in front of the module: rules replace the gradient between a module's output and its input, so a
    mask inside forward is overwritten by them (zennit 1.0) or not (zennit 0.5).
    """
    (value,) = args
    if not (torch.is_grad_enabled() and value.requires_grad) or has_reference(module):
        return None
    fixed = value.detach()
    clipped = _is_clipped(_compared(module, fixed), *_bounds(module, fixed))
    return (torch.where(clipped, fixed, value),)


def _compared(module: nn.Module, input: Tensor) -> Tensor:
    """Return what is compared with the threshold: the input, times the scale in channels where that is tiny."""
    factor = vars(module)["_buffers"].get("thr_factor")
    return input if factor is None else input * per_channel(factor, input)


def _bounds(module: nn.Module, input: Tensor) -> tuple[Tensor, Tensor]:
    """Return the interval of each channel: open above for scales > 0, below for scales < 0, a point for scale 0."""
    buffers = vars(module)["_buffers"]
    sign, threshold = (per_channel(buffers[name], input) for name in ("thr_sign", "thr_value"))
    return torch.where(sign >= 0, threshold, -torch.inf), torch.where(sign <= 0, threshold, torch.inf)


def _is_clipped(value: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return (value <= lower) | (value >= upper)  # false for NaN, which passes as in the ReLU
