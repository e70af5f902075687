"""Any element-wise activation behind an affine map: what it becomes when the map moves to the layers behind it.

Floor 3: imports ``absorbed``, ``affine``, ``edits`` and ``forwards``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from canon_bridge.core.affine import Affine, working_dtype
from canon_bridge.core.modules.absorbed import (
    LARGEST_THRESHOLD,
    choose,
    composed,
    has_reference,
    has_rule,
    per_channel,
)
from canon_bridge.core.undo.edits import Edits
from canon_bridge.core.undo.forwards import bind_forward, tensors


def absorb_into_activation(
    edits: Edits, module: nn.Module, affine: Affine, clip_relevance: bool, *, is_linear_by_pieces: bool = False
) -> Affine:
    r"""Turn an activation :math:`\phi` into :math:`\psi`, and return the affine map left for the layers behind it.

    .. math:: \phi(s x + b) = e \, \psi(x) + d, \qquad \psi(x) = (\phi(s x + b) - d) / e

    with :math:`e = s, d = b`. A channel with ``s == 0`` is the constant :math:`\phi(b)`: there :math:`\psi` is 0,
    :math:`e = 1` and :math:`d = \phi(b)`. Where ``|s| < 1e-12``, or ``|b / s|`` or
    ``|phi(b) - b| / |s|`` is beyond 6e4, :math:`e = 1, d = b`.

    Parameters
    ----------
    edits : Edits
        The journal that records the writes.
    module : nn.Module
        The activation, element by element; it gets buffers ``psi_scale``, ``psi_shift``, ``psi_factor``,
        ``psi_offset`` (and ``psi_live`` where a scale is zero), which move with the module and are not in its state.
    affine : Affine
        What came before the activation, scale :math:`s` and shift :math:`b` of shape ``(C,)``.
    clip_relevance : bool
        Whether only the share of the relevance travels on to the input that :math:`\phi` lets pass, with
        :math:`z = s x + b` the share :math:`\phi(z) / z` limited to 0 to 1 (1 or 0 for a ReLU); the rest counts as
        absorbed by the bias of the next layer.
    is_linear_by_pieces : bool, default False
        For :math:`\phi(z) = a z` with different :math:`a` for either sign (leaky ReLUs): the share is then
        :math:`a x / \psi(x)`, for which LRP-0 is gradient times input.

    Returns
    -------
    Affine
        The map :math:`(e, d)` from the output of :math:`\psi` to that of :math:`\phi`.

    References
    ----------
    The general form of Hui & Binder 2019, "BatchNorm Decomposition for Deep Neural Network Interpretation",
    section 3; section 3.3 of the design of this package.
    """

    def write(whole: Affine, is_first: bool) -> Affine:
        zero, normal, _ = choose(whole)
        one = torch.ones_like(whole.scale)
        # As a batch of one, because an activation may have a parameter for each channel; it may work in place.
        constant = _activated(module, whole.shift[None].clone())[0].detach()
        normal &= (constant - whole.shift).abs() <= LARGEST_THRESHOLD * whole.scale.abs()
        behind = Affine(torch.where(normal, whole.scale, one), torch.where(zero, constant, whole.shift))
        values = {"scale": whole.scale, "shift": whole.shift, "factor": behind.scale, "offset": behind.shift}
        if bool(zero.any()):  # zero there, whatever the rounding of phi(b)
            values["live"] = (~zero).to(whole.scale.dtype)
        for name, value in values.items():
            edits.set_buffer(module, f"psi_{name}", value)
        bind_forward(edits, module, _psi)
        if clip_relevance and is_first:
            edits.add_pre_hook(module, pass_share, is_linear_by_pieces)
        return behind

    return composed(edits, module, affine, write)


def _psi(module: nn.Module, input: Tensor) -> Tensor:
    # In no less than float32 where it is divided: a tiny scale may be zero in float16.
    wide = input.to(working_dtype(input.dtype))
    value = _activated(module, _before(module, wide))
    psi = (value - _buffer(module, "offset", wide)) / _buffer(module, "factor", wide)
    return (psi * _buffer(module, "live", wide) if "psi_live" in vars(module)["_buffers"] else psi).to(input.dtype)


def _activated(module: nn.Module, before: Tensor) -> Tensor:
    """Return what the class of the module computes, in the precision of the argument."""
    parameters = tensors(module)
    if any(parameter.dtype != before.dtype for parameter in parameters.values()):
        module = _as_it_is(module)
        cast = {name: parameter.to(before.dtype) for name, parameter in parameters.items()}
        vars(module).update(cast)
    return type(module).forward(module, before)


def _before(module: nn.Module, input: Tensor) -> Tensor:
    return input * _buffer(module, "scale", input) + _buffer(module, "shift", input)


def _buffer(module: nn.Module, name: str, input: Tensor) -> Tensor:
    return per_channel(vars(module)["_buffers"][f"psi_{name}"], input)


def pass_share(is_linear_by_pieces: bool, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Pass the input on, and on the way back only a share of what a rule sends."""
    (value,) = args
    if not (torch.is_grad_enabled() and value.requires_grad) or not has_rule(module) or has_reference(module):
        return None
    return (_Share.apply(value, partial(_share, is_linear_by_pieces, module, _as_it_is(module))),)


def _as_it_is(module: nn.Module) -> nn.Module:
    """Return a stand-in that holds the tensors of this moment."""
    twin: nn.Module = object.__new__(type(module))
    vars(twin).update(vars(module), **{table: dict(vars(module)[table]) for table in ("_parameters", "_buffers")})
    return twin


def _share(is_linear_by_pieces: bool, module: nn.Module, then: nn.Module, value: Tensor) -> Tensor | None:
    """Return the share that passes, from the module as it was then; None where it is itself again by now.

    What comes after the block are gradients of relevance, in which the input of the module counts in full.
    """
    if "psi_scale" not in vars(module)["_buffers"]:
        return None
    wide = value.to(working_dtype(value.dtype))
    before = _before(then, wide)
    activated = _activated(then, before)
    slope = activated / before
    if is_linear_by_pieces:
        linear_part = slope * wide * _buffer(then, "scale", wide)
        share = linear_part / (activated - _buffer(then, "offset", wide))
        share = torch.where(share.isfinite(), share, slope.nan_to_num(0, 0, 0))
    else:
        share = slope.nan_to_num(0, 1, 0).clamp(0, 1)
    return torch.where(_buffer(then, "scale", wide) == 0, 0, share).to(value.dtype)


class _Share(torch.autograd.Function):
    """The identity, with a gradient that is multiplied by a share; nothing passes where the share is zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, share: Callable[[Tensor], Tensor | None]) -> Tensor:
        return input.view_as(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Callable[[Tensor], Tensor | None]], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.share = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # The share is computed here and not before: a gradient of this gradient then sees what it depends on.
        (gradient,), (value,) = gradients, ctx.saved_tensors
        share = ctx.share(value)
        return gradient if share is None else torch.where(share == 0, 0, gradient * share), None
