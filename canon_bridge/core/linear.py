"""Linear layers: which axes of a weight are channels, and how an affine map is folded in on either side.

Floor 1: imports ``affine`` and ``border``. A new linear layer is one entry of ``LINEAR``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge.core.affine import Affine, working_dtype
from canon_bridge.core.border import AxisGeometry, gather, tap_sets
from canon_bridge.core.edits import Edits


@dataclass(frozen=True)
class LinearType:
    """How one exact type of linear layer lays out its weight.

    Attributes
    ----------
    spatial : int
        Number of spatial dimensions; 0 for a layer that acts on features.
    transposed : bool
        Whether the weight is ``(C_in, C_out / groups, *kernel)`` instead of ``(C_out, C_in / groups, *kernel)``.
    """

    spatial: int
    transposed: bool = False


LINEAR: Mapping[type[nn.Module], LinearType] = {
    nn.Linear: LinearType(0),
    nn.Conv1d: LinearType(1),
    nn.Conv2d: LinearType(2),
    nn.Conv3d: LinearType(3),
    nn.ConvTranspose1d: LinearType(1, transposed=True),
    nn.ConvTranspose2d: LinearType(2, transposed=True),
    nn.ConvTranspose3d: LinearType(3, transposed=True),
}


def is_linear(module: nn.Module) -> bool:
    """Return whether the module is of a type in ``LINEAR`` and computes what that type computes."""
    forward = vars(module).get("forward")
    own = forward is None or (isinstance(forward, partial) and forward.func is _forward_with_map)
    return type(module) in LINEAR and own


def why_not_foldable(module: nn.Module) -> str | None:
    """Return the reason why the parameters of a linear layer cannot be replaced, or None if they can."""
    parameters = vars(module)["_parameters"]
    for name in ("weight", "bias"):
        if name not in parameters or parameters["weight"] is None:
            return f"its {name} is computed in forward (weight_norm, spectral_norm, pruning or a parametrization)"
    return None


def in_channels(module: nn.Module) -> int:
    """Return the number of channels (features) that the layer takes in."""
    return int(module.in_channels if LINEAR[type(module)].spatial else module.in_features)  # pyright: ignore


def out_channels(module: nn.Module) -> int:
    """Return the number of channels (features) that the layer puts out."""
    return int(module.out_channels if LINEAR[type(module)].spatial else module.out_features)  # pyright: ignore


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
    weight, bias = _parameters(module)
    dtype = working_dtype(weight.dtype)
    scale, shift = _to(affine.scale, weight), _to(affine.shift, weight)
    view = _grouped(module, weight.to(dtype))
    grouped_scale = scale.view(view.shape[0], -1)[_OUT_INDEX[LINEAR[type(module)].transposed]]
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
    weight, bias = _parameters(module)
    spec = LINEAR[type(module)]
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
            taps = (taps.movedim(axis, -1) @ inside.T).movedim(-1, axis)
    else:
        taps = taps.reshape(taps.shape[0], -1).sum(1)
    if bias is not None:
        wide = max(bias.dim(), taps.dim())
        taps = _widen(taps, wide) + _widen(bias.to(dtype), wide)
    _write(edits, module, new_weight, taps)
    if taps.dim() > 1 and "forward" not in vars(module):
        edits.set(module, "__dict__", "forward", partial(_forward_with_map, module))


def axis_geometries(module: nn.Module) -> tuple[AxisGeometry, ...]:
    """Return for each spatial axis of the layer how its output positions meet the input."""
    spec = LINEAR[type(module)]
    return tuple(_axis_geometry(module, axis, spec.transposed) for axis in range(spec.spatial))


def _axis_geometry(module: nn.Module, axis: int, transposed: bool) -> AxisGeometry:
    kernel, stride, dilation = (int(getattr(module, n)[axis]) for n in ("kernel_size", "stride", "dilation"))
    reach = dilation * (kernel - 1)
    padding: object = module.padding
    if module.padding_mode != "zeros":
        low = high = 0  # reflect, replicate and circular padding copy values: a constant stays the constant
    elif padding == "same":
        low, high = reach // 2, reach - reach // 2
    elif isinstance(padding, str):
        low = high = 0
    else:
        low = high = int(padding[axis])  # pyright: ignore[reportIndexIssue, reportUnknownArgumentType]
    # Every tap of a transposed convolution may fall outside; output_padding and output_size add positions at the
    # upper end, at most stride - 1 or dilation - 1 of them.
    extra = max(stride, dilation) - 1 if transposed else 0
    return AxisGeometry(kernel, stride, dilation, low, high, transposed, extra)


def _forward_with_map(module: nn.Module, input: Tensor, output_size: list[int] | None = None) -> Tensor:
    """Compute the layer with the compact bias, gathered to the size of the output; read both slots anew."""
    bias = module.bias
    spec = LINEAR[type(module)]
    if not isinstance(bias, Tensor) or bias.dim() == 1:
        return type(module).forward(module, input, *(() if output_size is None else (output_size,)))
    output = _without_bias(module, input, output_size)
    sizes = zip(input.shape[-spec.spatial :], output.shape[-spec.spatial :], strict=True)
    return output + gather(bias, axis_geometries(module), list(sizes))


def _without_bias(module: nn.Module, input: Tensor, output_size: list[int] | None) -> Tensor:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module._conv_forward(input, module.weight, None)  # knows every padding mode
    assert isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    spatial = LINEAR[type(module)].spatial
    geometry: list[list[int]] = [list(getattr(module, n)) for n in ("stride", "padding", "kernel_size", "dilation")]
    stride, padding, kernel_size, dilation = geometry
    output_padding = module._output_padding(input, output_size, stride, padding, kernel_size, spatial, dilation)
    convolve = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[spatial]
    return convolve(input, module.weight, None, stride, padding, output_padding, module.groups, dilation)


_OUT_INDEX = {False: (slice(None), slice(None), None), True: (slice(None), None, slice(None))}
_IN_INDEX = {False: (slice(None), None, slice(None)), True: (slice(None), slice(None), None)}


def _grouped(module: nn.Module, weight: Tensor) -> Tensor:
    """View the weight as ``(groups, out, in, *kernel)``, for a transposed layer ``(groups, in, out, *kernel)``."""
    groups = int(getattr(module, "groups", 1))
    return weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])


def _parameters(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)  # why_not_foldable has refused all others
    return weight.detach(), bias.detach() if isinstance(bias, Tensor) else None


def _to(values: Tensor, like: Tensor) -> Tensor:
    return values.detach().to(device=like.device, dtype=working_dtype(like.dtype))


def _widen(bias: Tensor, dims: int) -> Tensor:
    return bias.reshape(*bias.shape, *(1,) * (dims - bias.dim()))


def _write(edits: Edits, module: nn.Module, weight: Tensor, bias: Tensor) -> None:
    old = module.weight
    assert isinstance(old, Tensor)
    for name, value in (("weight", weight), ("bias", bias)):
        former = vars(module)["_parameters"].get(name)
        requires_grad = (old if former is None else former).requires_grad
        edits.set(module, "_parameters", name, nn.Parameter(value.to(old.dtype), requires_grad))
