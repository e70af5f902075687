"""Linear layers: which axes of a weight are channels, and how an affine map is folded in on either side.

Floor 4: imports ``affine``, ``border``, ``linear_types``, ``parameters``, ``weights`` and ``forwards``.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from canon_bridge.core.modules.affine import Affine, working_dtype
from canon_bridge.core.modules.border import tap_sets
from canon_bridge.core.modules.kinds import find_kind
from canon_bridge.core.modules.linear_types import (
    LINEAR,
    Layer,
    LinearType,
    axis_geometries,
    forward_from_slots,
    linear_type,
)
from canon_bridge.core.modules.parameters import parameter, tracked
from canon_bridge.core.modules.weights import TENSORS, computed_tensors, evaluated, make_tensors_plain
from canon_bridge.core.undo.edits import Edits
from canon_bridge.core.undo.forwards import bind_forward, bound_function
from canon_bridge.core.undo.users import follow_mode

# What the forward of a layer calls, and what a user may have put over it on the instance.
_METHODS = ("forward", "_call_impl", "_conv_forward", "_output_padding")


def is_linear(module: nn.Module) -> bool:
    """Return whether the module is of a type in ``LINEAR`` and computes what that type computes."""
    own = {"forward"} if _has_own_forward(module) else set[str]()
    return find_kind(LINEAR, module) is not None and not any(n in vars(module) for n in _METHODS if n not in own)


def why_not_foldable(module: nn.Module) -> str | None:
    """Return the reason why the parameters of a linear layer cannot be replaced, or None if they can."""
    computed = computed_tensors(module)
    for name in TENSORS:
        hidden = name in vars(module) or hasattr(type_before_parametrizations(module), name)
        if name not in computed and (hidden or name not in vars(module)["_parameters"]):
            return f"its {name} is neither a Parameter nor computed in a way that is known"
    entry = linear_type(module)
    if entry.pads_by_size(module) and module.padding not in (0, (0, 0)):
        return "it pads twice, by the size of its input and by its padding"
    try:
        weight = module.weight if computed.isdisjoint(TENSORS) else evaluated(module).weight
    except Exception as error:  # whatever a parametrization of the user raises
        return f"its weight or bias cannot be computed ({type(error).__name__}: {error})"
    if not isinstance(weight, Tensor) or tuple(weight.shape) != _weight_shape(module):
        return f"its weight has not the shape {_weight_shape(module)} that its attributes tell"
    return None


def computes_weight(module: nn.Module) -> bool:
    """Return whether a linear layer computes its weight or bias for each forward, as :func:`make_plain` can undo it.

    False for a module that is not linear, see :func:`is_linear`.
    """
    if not is_linear(module):
        return False
    by_class = linear_type(module).weight is not None and not _has_own_forward(module)
    return by_class or not computed_tensors(module).isdisjoint(TENSORS)


def make_plain(edits: Edits, module: nn.Module) -> None:
    """Make a linear layer hold its effective weight and bias (of evaluation mode, of this moment) as plain Parameters.

    A layer that computes neither keeps its Parameters; a second call does nothing.

    Parameters
    ----------
    edits : Edits
        The journal; its undo makes the layer compute its weight again.
    module : nn.Module
        A layer for which :func:`is_linear` holds and :func:`why_not_foldable` gives no reason.
    """
    by_class = None if _has_own_forward(module) else linear_type(module).weight
    edits.hold(module)
    if computes_weight(module):
        for child in module.children():  # the parametrizations
            edits.on_undo(partial(follow_mode, child, module, module.training))
        make_tensors_plain(edits, module, by_class)
        if by_class is not None:
            bind_forward(edits, module, forward_from_slots, Layer.of(module))


def in_channels(module: nn.Module) -> int:
    """Return the number of channels (features) that the layer takes in."""
    return int(module.in_channels if linear_type(module).spatial else module.in_features)  # pyright: ignore


def out_channels(module: nn.Module) -> int:
    """Return the number of channels (features) that the layer puts out."""
    return int(module.out_channels if linear_type(module).spatial else module.out_features)  # pyright: ignore


def fold_after(edits: Edits, module: nn.Module, affine: Affine) -> None:
    r"""Fold an affine map that *follows* the layer into it (merge to the left).

    .. math:: W'_{o} = s_o W_o, \qquad b'_o = s_o b_o + t_o

    Parameters
    ----------
    edits : Edits
        The journal that records the writes.
    module : nn.Module
        A layer of a type in ``LINEAR``; its ``weight`` and ``bias`` slots get new Parameters.
    affine : Affine
        Scale :math:`s` and shift :math:`t`, shape ``(C_out,)``.

    References
    ----------
    Guillemot et al. 2020, "Breaking Batch Normalization for better explainability of Deep Neural Networks
    through Layer-wise Relevance Propagation", eq. 6.
    """
    weight, bias = _plain_parameters(edits, module)
    dtype = working_dtype(weight.dtype)
    scale, shift = _to(affine.scale, weight), _to(affine.shift, weight)
    view = _grouped(module, weight.to(dtype))
    grouped_scale = scale.view(view.shape[0], -1)[_OUT_INDEX[linear_type(module).transposed]]
    new_weight = (view * grouped_scale.view(*grouped_scale.shape, *(1,) * (view.dim() - 3))).view_as(weight)
    if bias is None:
        new_bias = shift.clone()  # another layer may take the same map
    else:
        # The bias is (C_out,) or, after a fold_before with zero padding, (C_out, n_1, ..., n_d).
        broadcast = (-1, *(1,) * (bias.dim() - 1))
        new_bias = bias.to(dtype) * scale.view(broadcast) + shift.view(broadcast)
    _write(edits, module, new_weight, new_bias)


def fold_before(edits: Edits, module: nn.Module, affine: Affine) -> None:
    r"""Fold an affine map that *precedes* the layer into it (merge to the right).

    .. math:: W'_{oi} = W_{oi} s_i, \qquad b'_o(p) = b_o + \sum_{i} \sum_{k \in K(p)} W_{oik} t_i

    where :math:`K(p)` are the kernel taps that lie inside the input at position :math:`p`. With zero padding the
    bias depends on the position; it is then kept compact, one entry for each distinct set of taps on each axis,
    ``(C_out, n_1, ..., n_d)``, and gathered to the size of the output in forward.

    Parameters
    ----------
    edits : Edits
        The journal that records the writes.
    module : nn.Module
        A layer of a type in ``LINEAR``.
    affine : Affine
        Scale :math:`s` and shift :math:`t`, shape ``(C,)``; for a Linear layer behind a flatten ``C`` may divide
        ``in_features``, each channel then stands for neighbouring features.

    References
    ----------
    Hui & Binder 2019, "BatchNorm Decomposition for Deep Neural Network Interpretation"; the dependence on the
    border is section 3.2 of the design of this package.
    """
    weight, bias = _plain_parameters(edits, module)
    spec = linear_type(module)
    dtype = working_dtype(weight.dtype)
    affine = affine.repeat(in_channels(module) // affine.scale.numel())
    scale, shift = _to(affine.scale, weight), _to(affine.shift, weight)
    view = _grouped(module, weight.to(dtype))
    index = _IN_INDEX[spec.transposed]
    kernel = (1,) * (view.dim() - 3)
    grouped_scale = scale.view(view.shape[0], -1)[index]
    grouped_shift = shift.view(view.shape[0], -1)[index]
    new_weight = (view * grouped_scale.view(*grouped_scale.shape, *kernel)).view_as(weight)
    # taps[o, k]: what a constant input t puts into output channel o through kernel tap k.
    in_axis = 1 if spec.transposed else 2
    taps = (view * grouped_shift.view(*grouped_shift.shape, *kernel)).sum(in_axis).flatten(0, 1)

    geometries = axis_geometries(module)
    if any(geometry.has_border for geometry in geometries):
        for axis, geometry in enumerate(geometries, start=1):
            inside = torch.tensor(tap_sets(geometry).rows, dtype=dtype, device=taps.device)
            # Not as a product of matrices: autocast would compute that in half precision.
            taps = (taps.movedim(axis, -1).unsqueeze(-2) * inside).sum(-1).movedim(-1, axis)
    else:
        taps = taps.reshape(taps.shape[0], -1).sum(1)
    if bias is not None:
        wide = max(bias.dim(), taps.dim())
        taps = _widen(taps, wide) + _widen(bias.to(dtype), wide)
    _write(edits, module, new_weight, taps)
    if taps.dim() > 1 and "forward" not in vars(module):
        bind_forward(edits, module, forward_from_slots, Layer.of(module))


_OUT_INDEX = {False: (slice(None), slice(None), None), True: (slice(None), None, slice(None))}
_IN_INDEX = {False: (slice(None), None, slice(None)), True: (slice(None), slice(None), None)}


def _grouped(module: nn.Module, weight: Tensor) -> Tensor:
    """View the weight as ``(groups, out, in, *kernel)``, for a transposed layer ``(groups, in, out, *kernel)``."""
    groups = int(getattr(module, "groups", 1))
    return weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])


def _plain_parameters(edits: Edits, module: nn.Module) -> tuple[Tensor, Tensor | None]:
    make_plain(edits, module)
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)  # why_not_foldable has refused all others
    return tracked(weight), tracked(bias) if isinstance(bias, Tensor) else None


def _has_own_forward(module: nn.Module) -> bool:
    bound = bound_function(module)
    return bound is not None and bound[0] is forward_from_slots


def _weight_shape(module: nn.Module) -> tuple[int, ...]:
    groups, entry = int(getattr(module, "groups", 1)), linear_type(module)
    first, second = out_channels(module), in_channels(module)
    if entry.transposed:
        first, second = second, first
    return first, second // groups, *(getattr(module, "kernel_size", ()) if entry.spatial else ())


def _to(values: Tensor, like: Tensor) -> Tensor:
    return tracked(values).to(device=like.device, dtype=working_dtype(like.dtype))


def _widen(bias: Tensor, dims: int) -> Tensor:
    return bias.reshape(*bias.shape, *(1,) * (dims - bias.dim()))


def _write(edits: Edits, module: nn.Module, weight: Tensor, bias: Tensor) -> None:
    old = module.weight
    assert isinstance(old, Tensor)
    for name, value in (("weight", weight), ("bias", bias)):
        former = vars(module)["_parameters"].get(name)
        requires_grad = (old if former is None else former).requires_grad
        edits.set(module, "_parameters", name, parameter(value.to(old.dtype), requires_grad))


__all__ = [
    "LINEAR",
    "LinearType",
    "axis_geometries",
    "computes_weight",
    "fold_after",
    "fold_before",
    "in_channels",
    "is_linear",
    "linear_type",
    "make_plain",
    "out_channels",
    "why_not_foldable",
]
