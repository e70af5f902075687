r"""Activations and pools that absorb the affine map before them, and what is left of it for the layers after them.

.. math:: \phi(s x + b) = e \, g(x) + d

A BatchNorm before the activation :math:`\phi` moves to the linear layers after it: the activation computes :math:`g`
instead, and :math:`(e, d)` is merged downstream. A new activation is one entry of ``ACTIVATIONS``, or one call of
:func:`register_activation`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from canon_bridge.core.affine import Affine, is_eager, is_transformed, working_dtype
from canon_bridge.core.forwards import bind_forward, tensors
from canon_bridge.core.registry import Registry, TypeKey
from canon_bridge.core.restore import Edits

# Below this scale, or beyond this threshold (about the largest float16), the quotient -b/s is not used: it loses
# nothing yet, but grows towards overflow.
SMALLEST_SCALE: Final = 1e-12
LARGEST_THRESHOLD: Final = 6e4
_SLOT: Final = "_absorbed"


# Whether a method that is attached to a module compares with a reference input. For such a method a clipped unit is no
# constant, since it may not be clipped there: all is passed on.
Compares = Callable[[nn.Module], bool]
# What absorbs a map, ``(edits, module, affine, clip_relevance, compares)``: from the journal that records the writes,
# the module, the map before it (scale and shift of shape ``(C,)``), whether relevance that reaches a clipped unit stops
# there, and for which modules it does not, to the map from the new output of the module to that of the former one.
Absorb = Callable[[Edits, nn.Module, Affine, bool, Compares], Affine]


def compares_with_baselines(module: nn.Module) -> bool:
    """Return whether a forward hook on the module is a method of an object whose ``attribute`` takes ``baselines``."""
    return any(_takes_baselines(type(getattr(hook, "__self__", None))) for hook in module._forward_hooks.values())


def _takes_baselines(kind: type) -> bool:
    attribute = getattr(kind, "attribute", None)
    return callable(attribute) and "baselines" in inspect.signature(attribute).parameters


def choose(affine: Affine) -> tuple[Tensor, Tensor, Tensor]:
    """Return which channels have scale zero, which can be divided by it, and which have a tiny one."""
    zero = affine.scale == 0
    quotient = affine.shift / torch.where(zero, torch.ones_like(affine.scale), affine.scale)
    normal = _can_divide(affine.scale, quotient)
    return zero, normal, ~(zero | normal)


def _can_divide(scale: Tensor, quotient: Tensor) -> Tensor:
    """Return where scale and quotient are such that the quotient may be used; not where it is NaN."""
    return (scale.abs() >= SMALLEST_SCALE) & (quotient.abs() <= LARGEST_THRESHOLD)


@dataclass(frozen=True, eq=False)
class _Absorbed:
    """The map that an activation has absorbed, and the one left after it.

    No tuple, which torch.export would rebuild.
    """

    whole: Affine
    left: Affine


def _composed(
    edits: Edits, module: nn.Module, affine: Affine, write: Callable[[Edits, nn.Module, Affine], Affine], *stop: Any
) -> Affine:
    r"""Have an activation absorb a map, together with one that it may have absorbed before; return what is left.

    With :math:`\phi(s x + b) = e \, g(x) + d` for the map absorbed earlier and :math:`e' g'(x) + d'` for both together,
    :math:`g(s_2 x + b_2) = (e' g'(x) + d' - d) / e`. ``write`` changes the module for the whole map and returns
    :math:`(e', d')`; ``stop`` is the pre-hook that stops relevance, and its first arguments, added once.
    """
    earlier: _Absorbed | None = vars(module).get(_SLOT)
    whole = affine if earlier is None else earlier.whole.after(affine)
    left = write(edits, module, whole)
    if stop and earlier is None:
        edits.add_pre_hook(module, *stop)
    edits.set(module, "__dict__", _SLOT, _Absorbed(whole, left))
    if earlier is None:
        return left
    former = earlier.left
    return Affine(left.scale / former.scale, (left.shift - former.shift) / former.scale)


def _per_channel(values: Tensor, input: Tensor) -> Tensor:
    """Return ``(C,)`` in a shape that broadcasts against ``(N, C, *spatial)``, or ``(N, C * k)`` after a flatten."""
    if input.shape[1] != values.numel():
        values = values.repeat_interleave(input.shape[1] // values.numel())
    return values.to(input.dtype).view(-1, *(1,) * (input.dim() - 2))


def _buffer(module: nn.Module, name: str, input: Tensor) -> Any:
    """Return a buffer of the module in a shape that broadcasts against its input, or None where it has none."""
    values = module._buffers.get(name)
    return None if values is None else _per_channel(values, input)


def absorb_into_relu(
    edits: Edits,
    module: nn.Module,
    affine: Affine,
    clip_relevance: bool,
    compares: Compares = compares_with_baselines,
) -> Affine:
    r"""Turn a ReLU into the thresholded ReLU, and return the affine map that is left for the layers after it.

    .. math:: \mathrm{relu}(s x + b) = s \, \mathrm{thr}(x) + b, \qquad t = -b / s, \qquad
              \mathrm{thr}(x) = \max(x, t) \; (s > 0), \quad \min(x, t) \; (s < 0)

    A channel with ``s == 0`` is the constant ``relu(b)``: there thr is 0 and the returned shift is ``relu(b)``. Where
    ``|s| < 1e-12`` or ``|t| > 6e4``, nothing is divided: thr is ``max(s x, -b)`` and the returned scale is 1. A ReLU
    that has absorbed a map already absorbs this one, which comes before it, too.

    The ReLU gets buffers ``thr_value`` (``thr_sign`` where a scale is not above 0, ``thr_factor`` where one is tiny),
    which move with the module and stay out of ``state_dict``. Parameters are those of ``Absorb``; with
    ``clip_relevance`` what stops at a clipped unit counts as absorbed by the bias of the next layer, instead of
    travelling on to the input, which the clipped value does not depend on.

    References
    ----------
    Hui & Binder 2019, "BatchNorm Decomposition for Deep Neural Network Interpretation", IWANN, section 3.
    """
    stop = (stop_at_clipped, compares) if clip_relevance else ()
    return _composed(edits, module, affine, _write_thresholds, *stop)


def _write_thresholds(edits: Edits, module: nn.Module, affine: Affine) -> Affine:
    scale, shift = affine.scale, affine.shift
    threshold, sign, left = -shift / scale, scale.sign(), affine
    factor: Tensor | None = None
    if not bool(_can_divide(scale, threshold).all()):
        zero, normal, tiny = choose(affine)
        ones = torch.ones_like(scale)
        divisor = torch.where(normal, scale, ones)
        # Divided anew: a gradient through what where leaves out would be NaN.
        threshold = torch.where(normal, -shift / divisor, torch.where(tiny, -shift, torch.zeros_like(shift)))
        sign = torch.where(tiny, ones, sign)
        factor = torch.where(tiny, scale, ones) if bool(tiny.any()) else None
        left = Affine(divisor, torch.where(zero, shift.relu(), shift))
    edits.set_buffer(module, "thr_value", threshold)
    for name, values in (("sign", sign if bool((sign <= 0).any()) else None), ("factor", factor)):
        if values is not None:
            edits.set_buffer(module, f"thr_{name}", values)
        elif f"thr_{name}" in vars(module)["_buffers"]:  # of a map absorbed before
            edits.remove(module, "_buffers", f"thr_{name}")
    bind_forward(edits, module, _thresholded_relu)
    return left


def _thresholded_relu(module: nn.Module, input: Tensor) -> Tensor:
    value = _compared(module, input)
    lower, upper = _bounds(module, input)
    if torch.is_grad_enabled() and value.requires_grad:
        # The gradient of min and max at a tie is one half; here it must be that of the ReLU, zero.
        value = torch.where(value <= lower, lower, value)
        return value if upper is None else torch.where(value >= upper, upper, value)
    bounded = value.clamp(min=lower)
    if upper is None:
        return bounded
    # Not both at once: with two tensors for bounds clamp takes seven times as long.
    return bounded.clamp_(max=upper) if is_eager(bounded) else bounded.clamp(max=upper)


def stop_at_clipped(compares: Compares, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Pass the input on, and stop on the way back whatever a rule sends to units that are clipped.

    It has to sit in front of the module: rules replace the gradient between a module's output and its input, so a
    mask inside forward is overwritten by them or not, depending on the rule. The module's own gradient is zero there.
    """
    (value,) = args
    if not (torch.is_grad_enabled() and value.requires_grad) or compares(module):
        return None
    fixed = value.detach()
    clipped = _is_clipped(_compared(module, fixed), *_bounds(module, fixed))
    return (torch.where(clipped, fixed, value),)


def _compared(module: nn.Module, input: Tensor) -> Tensor:
    """Return what is compared with the threshold: the input, times the scale in channels where that is tiny."""
    factor = _buffer(module, "thr_factor", input)
    return input if factor is None else input * factor


def _bounds(module: nn.Module, input: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the interval of each channel: open above for scales > 0, below for scales < 0, a point for scale 0.

    None for the upper bounds where all scales are above 0.
    """
    sign, threshold = _buffer(module, "thr_sign", input), _buffer(module, "thr_value", input)
    if sign is None:
        return threshold, None
    return torch.where(sign >= 0, threshold, -torch.inf), torch.where(sign <= 0, threshold, torch.inf)


def _is_clipped(value: Tensor, lower: Tensor, upper: Tensor | None) -> Tensor:
    clipped = value <= lower  # false for NaN, which passes as in the ReLU
    return clipped if upper is None else clipped | (value >= upper)


def absorb_into_activation(
    edits: Edits,
    module: nn.Module,
    affine: Affine,
    clip_relevance: bool,
    compares: Compares = compares_with_baselines,
    *,
    is_linear_by_pieces: bool = False,
) -> Affine:
    r"""Turn an element-wise activation :math:`\phi` into :math:`g`, and return the map left for the layers after it.

    .. math:: \phi(s x + b) = e \, g(x) + d, \qquad g(x) = (\phi(s x + b) - d) / e

    with :math:`e = s, d = b`. A channel with ``s == 0`` is the constant :math:`\phi(b)`: there :math:`g` is 0,
    :math:`e = 1` and :math:`d = \phi(b)`. Where ``|s| < 1e-12``, or ``|b / s|`` or
    ``|phi(b) - b| / |s|`` is beyond 6e4, :math:`e = 1, d = b`.

    The activation gets buffers ``act_scale``, ``act_shift``, ``act_factor``, ``act_offset`` (and ``act_live`` where a
    scale is zero), which move with the module and are not in its state.

    Parameters
    ----------
    edits, module, affine, compares
        See ``Absorb``.
    clip_relevance : bool
        Whether only the share of the relevance travels on to the input that :math:`\phi` lets pass, with
        :math:`z = s x + b` the share :math:`\phi(z) / z` limited to 0 to 1 (1 or 0 for a ReLU); the rest counts as
        absorbed by the bias of the next layer.
    is_linear_by_pieces : bool, default False
        For :math:`\phi(z) = a z` with different :math:`a` for either sign (leaky ReLUs): the share is then
        :math:`a x / g(x)`, for which LRP-0 is gradient times input.

    References
    ----------
    The general form of Hui & Binder 2019, "BatchNorm Decomposition for Deep Neural Network Interpretation",
    section 3; section 3.3 of the design of this package.
    """
    stop = (pass_share, compares, is_linear_by_pieces) if clip_relevance else ()
    return _composed(edits, module, affine, _write_general, *stop)


def _write_general(edits: Edits, module: nn.Module, whole: Affine) -> Affine:
    zero, normal, _ = choose(whole)
    one = torch.ones_like(whole.scale)
    # As a batch of one, because an activation may have a parameter for each channel; it may work in place.
    constant = _activated(module, whole.shift[None].clone())[0].detach()
    normal &= (constant - whole.shift).abs() <= LARGEST_THRESHOLD * whole.scale.abs()
    left = Affine(torch.where(normal, whole.scale, one), torch.where(zero, constant, whole.shift))
    values = {"scale": whole.scale, "shift": whole.shift, "factor": left.scale, "offset": left.shift}
    if bool(zero.any()):  # zero there, whatever the rounding of phi(b)
        values["live"] = (~zero).to(whole.scale.dtype)
    for name, value in values.items():
        edits.set_buffer(module, f"act_{name}", value)
    bind_forward(edits, module, _general_activation)
    return left


def _general_activation(module: nn.Module, input: Tensor) -> Tensor:
    # In no less than float32 where it is divided: a tiny scale may be zero in float16.
    wide = _as_own_gradient(input).to(working_dtype(input.dtype))
    value = _activated(module, _before(module, wide))
    general = (value - _buffer(module, "act_offset", wide)) / _buffer(module, "act_factor", wide)
    live = _buffer(module, "act_live", wide)
    return (general if live is None else general * live).to(input.dtype)


def _activated(module: nn.Module, before: Tensor) -> Tensor:
    """Return what the class of the module computes, in the precision of the argument."""
    parameters = tensors(module)
    if any(parameter.dtype != before.dtype for parameter in parameters.values()):
        module = _as_it_is(module)
        cast = {name: parameter.to(before.dtype) for name, parameter in parameters.items()}
        vars(module).update(cast)
    return type(module).forward(module, before)


def _before(module: nn.Module, input: Tensor) -> Tensor:
    return input * _buffer(module, "act_scale", input) + _buffer(module, "act_shift", input)


# A rule replaces the gradient between a module's output and its input, and the share is for what a rule hands down.
# Without one the module's own gradient arrives, and has to stay what it is, whatever hooks look on. So the function in
# front of the module, `_Share`, stands for one call; the forward, which finds it in the graph of its input, puts a
# function of its own at its input, `_OwnGradient`, which marks the gradient that comes out of the forward with that
# call. A gradient that arrives in front with that mark is the module's own; every rule makes another tensor of it.
_OWN: Final = "_canon_bridge_own"
_WRAPPERS: Final = 8  # how many functions that hooks put between the two are looked through


def pass_share(
    compares: Compares, is_linear_by_pieces: bool, module: nn.Module, args: tuple[Tensor, ...]
) -> tuple[Tensor, ...] | None:
    """Pass the input on, and on the way back only a share of what a rule sends."""
    (value,) = args
    if not _is_recorded(value) or compares(module):
        return None
    return (_Share.apply(value, partial(_share, is_linear_by_pieces, module, _as_it_is(module))),)


def _is_recorded(value: Tensor) -> bool:
    """Return whether gradients of the value are recorded call by call, as they have to be for rules."""
    return torch.is_grad_enabled() and value.requires_grad and not is_transformed()


def _as_own_gradient(input: Tensor) -> Tensor:
    """Return the input of a module's own forward, so that its gradient is known in front of the module as its own."""
    if not _is_recorded(input):
        return input
    node: Any = input.grad_fn
    for _ in range(_WRAPPERS):
        if node is None:
            return input
        if hasattr(node, "call"):
            return _OwnGradient.apply(input, node.call)
        node = node.next_functions[0][0] if node.next_functions else None
    return input


def _as_it_is(module: nn.Module) -> nn.Module:
    """Return a stand-in that holds the tensors of this moment."""
    twin: nn.Module = object.__new__(type(module))
    vars(twin).update(vars(module), **{table: dict(vars(module)[table]) for table in ("_parameters", "_buffers")})
    return twin


def _share(is_linear_by_pieces: bool, module: nn.Module, then: nn.Module, value: Tensor) -> Tensor | None:
    """Return the share that passes, from the module as it was then; None where it is itself again by now.

    What comes after the block are gradients of relevance, in which the input of the module counts in full.
    """
    if "act_scale" not in vars(module)["_buffers"]:
        return None
    wide = value.to(working_dtype(value.dtype))
    before = _before(then, wide)
    activated = _activated(then, before)
    slope = activated / before
    if is_linear_by_pieces:
        linear_part = slope * wide * _buffer(then, "act_scale", wide)
        share = linear_part / (activated - _buffer(then, "act_offset", wide))
        share = torch.where(share.isfinite(), share, slope.nan_to_num(0, 0, 0))
    else:
        share = slope.nan_to_num(0, 1, 0).clamp(0, 1)
    return torch.where(_buffer(then, "act_scale", wide) == 0, 0, share).to(value.dtype)


class _Identity(torch.autograd.Function):
    """The identity; what kind of gradient it has is up to the second argument."""

    @staticmethod
    def forward(input: Tensor, second: object) -> Tensor:
        return input.view_as(input)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Tensor:
        return grad_inputs[0].view_as(grad_inputs[0])


class _Share(_Identity):
    """The identity, with a gradient that is multiplied by a share unless it is the module's own.

    Nothing passes where the share is zero.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Callable[[Tensor], Tensor | None]], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.share, ctx.call = inputs[1], object()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # The share is computed here and not before: a gradient of this gradient then sees what it depends on.
        (gradient,), (value,) = gradients, ctx.saved_tensors
        if getattr(gradient, _OWN, None) is ctx.call:
            return gradient, None
        share = ctx.share(value)
        return gradient if share is None else torch.where(share == 0, 0, gradient * share), None


class _OwnGradient(_Identity):
    """The identity, with a gradient that is marked as that of a call."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, object], output: Tensor) -> None:
        ctx.own = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        marked = gradients[0].view_as(gradients[0])  # a tensor of its own: the gradient may be that of others, too
        setattr(marked, _OWN, ctx.own)
        return marked, None


def absorb_into_max_pool(
    edits: Edits,
    module: nn.Module,
    affine: Affine,
    clip_relevance: bool,
    compares: Compares = compares_with_baselines,
) -> Affine:
    r"""Turn a max pooling into a max or min pooling, channel by channel, and return the map left after it.

    .. math:: \max_k (s x_k + b) = s \, \mathrm{pool}(x) + b, \qquad
              \mathrm{pool}(x) = \max_k x_k \; (s \geq 0), \quad \min_k x_k \; (s < 0)

    The pooling gets a buffer ``pool_sign`` that moves with the module and stays out of ``state_dict``. Parameters are
    those of ``Absorb``, the last two without meaning here: the winner of each window takes all relevance.
    """
    sign = torch.where(affine.scale < 0, -1.0, 1.0).to(affine.scale.dtype)
    former = vars(module)["_buffers"].get("pool_sign")
    edits.set_buffer(module, "pool_sign", sign if former is None else sign * former)
    bind_forward(edits, module, _signed_pool)
    return affine


def _signed_pool(module: nn.Module, input: Tensor, *sizes: Any) -> Tensor:
    sign = _buffer(module, "pool_sign", input)
    if is_eager(input) and bool((sign > 0).all()):
        return type(module).forward(module, input, *sizes)
    return type(module).forward(module, input * sign, *sizes) * sign


def pool_sign(module: nn.Module, value: Tensor) -> Tensor | None:
    """Return the sign of each channel of a max pooling that has absorbed a map, to multiply a value with, else None.

    Parameters
    ----------
    module : nn.Module
        The pooling, which computes ``sign * max_pool(sign * x)``.
    value : Tensor
        Its input or output; the sign broadcasts against it.
    """
    return _buffer(module, "pool_sign", value)


_leaky = partial(absorb_into_activation, is_linear_by_pieces=True)

# fmt: off
ACTIVATIONS: Final = Registry[Absorb](
    {
        nn.ReLU: absorb_into_relu,
        **dict.fromkeys((nn.LeakyReLU, nn.PReLU, nn.RReLU, "timm.layers.activations.PReLU"), _leaky),
        **dict.fromkeys(
            (
                nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LogSigmoid,
                nn.Mish, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh,
                nn.Tanhshrink, nn.Threshold,
                *(
                    f"timm.layers.activations{home}.{name}"
                    for home, names in (
                        ("", "Swish Mish Sigmoid Tanh HardSwish HardSigmoid HardMish GELU GELUTanh QuickGELU"),
                        ("_me", "SwishMe MishMe HardSwishMe HardSigmoidMe HardMishMe"),
                    )
                    for name in names.split()
                ),
            ),
            absorb_into_activation,
        ),
    }
)
# fmt: on

# With the number of dimensions of a batch: with one less the pools take the first one for channels.
MAX_POOLS: Final = Registry[int](
    {
        nn.MaxPool1d: 3,
        nn.MaxPool2d: 4,
        nn.MaxPool3d: 5,
        nn.AdaptiveMaxPool1d: 3,
        nn.AdaptiveMaxPool2d: 4,
        nn.AdaptiveMaxPool3d: 5,
        "timm.layers.pool2d_same.MaxPool2dSame": 4,
        **{f"canon_bridge.core.explicit.MaxPool{spatial}d": spatial + 2 for spatial in (1, 2, 3)},
    }
)

_STOPS: Final = (stop_at_clipped, pass_share)


def register_activation(type_or_name: TypeKey) -> None:
    """Make a type of activation known, so that normalization layers are merged through it to the right.

    Its forward takes one tensor and computes each element of the output from the element of the input at the same
    place, at most by a parameter of its channel besides. In the block it computes the general form,
    ``(phi(s * x + b) - d) / e``, and rules pass relevance through it as through every other activation.

    Parameters
    ----------
    type_or_name : type or str
        The class, or its full name, ``"package.module.Type"``. Subclasses that override nothing count, too.

    Raises
    ------
    TypeError
        If it is neither a type of module nor a full name.

    Examples
    --------
    >>> class Squareplus(nn.Module):
    ...     def forward(self, x):
    ...         return (x + (x * x + 4).sqrt()) / 2
    >>> register_activation(Squareplus)
    """
    ACTIVATIONS[type_or_name] = absorb_into_activation


def find_absorber(module: nn.Module, *, again: bool = False) -> Absorb | None:
    """Return how a module that computes what its type computes absorbs a map, or None if it does not.

    With ``again`` also for a module that may have absorbed a map before.
    """
    if (not again and "forward" in vars(module)) or getattr(module, "return_indices", False):
        return None
    return ACTIVATIONS.find(module) or (None if MAX_POOLS.find(module) is None else absorb_into_max_pool)


def is_relu(module: nn.Module) -> bool:
    """Return whether the module becomes the thresholded ReLU of Hui & Binder."""
    return find_absorber(module) is absorb_into_relu


def wanted_rank(module: nn.Module) -> int | None:
    """Return how many dimensions the input of an absorber must have, or None for an activation, where any will do."""
    return MAX_POOLS.find(module)


def stopped_at(module: nn.Module, input: Tensor, relevance: Tensor) -> Tensor:
    """Return which part of the relevance stops in front of an activation that has absorbed a map.

    Parameters
    ----------
    module : nn.Module
        The activation; where it has absorbed nothing, or passes everything, nothing stops.
    input : Tensor
        Its input.
    relevance : Tensor
        What a rule hands down, in the shape of the input.
    """
    hooks = [h for h in vars(module)["_forward_pre_hooks"].values() if getattr(h, "func", h) in _STOPS]
    if not hooks:
        return torch.zeros_like(relevance)
    with torch.enable_grad():
        leaf = passed = input.detach().requires_grad_()
        for hook in hooks:
            (passed,) = hook(module, (passed,)) or (passed,)
        (handed_down,) = torch.autograd.grad(passed, leaf, relevance)
    return relevance - handed_down
