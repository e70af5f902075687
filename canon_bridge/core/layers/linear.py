"""Linear layers: the types, what each computes, and how an affine map is folded into one on either side.

A new linear layer is one entry of ``LINEAR``, or one call of :func:`register_layer`.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.parametrize import type_before_parametrizations

from canon_bridge.core.affine import Affine, is_eager, working_dtype
from canon_bridge.core.forwards import bind_forward, bound_function
from canon_bridge.core.layers.border import (
    AxisGeometry,
    Border,
    add_at_border,
    gather,
    inner_values,
    number_of_tap_sets,
)
from canon_bridge.core.layers.parameters import parameter, tracked, trial_input
from canon_bridge.core.layers.weights import TENSORS, computed_tensors, evaluated, make_tensors_plain
from canon_bridge.core.registry import Registry, TypeKey
from canon_bridge.core.restore import Edits, follow_mode


@dataclass(frozen=True)
class LinearType:
    """How one type of linear layer lays out its weight and what it computes with it.

    Attributes
    ----------
    spatial : int
        Number of spatial dimensions; 0 for a layer that acts on features.
    transposed : bool
        Whether the weight is ``(C_in, C_out / groups, *kernel)`` instead of ``(C_out, C_in / groups, *kernel)``.
    weight : callable or None
        For a layer whose forward computes the weight that it uses: module to that weight.
    same : callable or None
        For a layer that can pad as TensorFlow does, by an amount that depends on the size of the input: module to
        whether it does. Such a layer and one with ``weight`` must not look at ``padding_mode``.
    ends : callable or None
        For a layer that pads with zeros of its own before it convolves with ``padding``: module to the amounts at both
        ends of each spatial axis, the first axis first. It must not look at ``padding_mode``.
    is_taught : bool
        Whether it is what :func:`register_layer` was told.
    """

    spatial: int
    transposed: bool = False
    weight: Callable[[nn.Module], Tensor] | None = None
    same: Callable[[nn.Module], bool] | None = None
    ends: Callable[[nn.Module], Sequence[tuple[int, int]]] | None = None
    is_taught: bool = False

    def pads_by_size(self, module: nn.Module) -> bool:
        """Return whether the module pads by the size of its input."""
        return self.same is not None and self.same(module)

    def looks_at_padding_mode(self) -> bool:
        """Return whether a layer of this type can pad with anything but zeros."""
        return self.weight is None and self.same is None and self.ends is None


# What layers of packages that need not be installed hold is known by name alone: Any.
def _filters(module: Any) -> Tensor:
    # Each filter with mean 0 and variance 1 (Qiao et al. 2019, "Micro-Batch Training with Batch-Channel Normalization
    # and Weight Standardization", eq. 11), summed up in no less than float32.
    weight, eps = module.weight, module.eps
    filters = weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(1)
    variance, mean = torch.var_mean(filters, dim=1, correction=0, keepdim=True)
    return ((filters - mean) * (variance + float(eps)).rsqrt()).view_as(weight)


def _standardized(module: Any) -> Tensor:
    return _filters(module).to(module.weight.dtype)


def _scaled_standardized(module: Any) -> Tensor:
    # Times a learned gain and 1 / sqrt(fan-in) (Brock et al. 2021, arXiv:2101.08692, eq. 4).
    gain, scale = module.gain, module.scale
    factors = gain.view(-1, 1, 1, 1) * float(scale)
    return (_filters(module) * factors).to(gain.dtype)


def _pads_by_size(module: nn.Module) -> bool:
    return bool(module.same_pad)


def _always(module: nn.Module) -> bool:
    return True


def _of_child(module: nn.Module) -> Sequence[tuple[int, int]]:
    """Return what the child ``static_padding`` pads: an nn.ZeroPad2d, or an nn.Identity."""
    left, right, top, bottom = getattr(module.static_padding, "padding", (0, 0, 0, 0))
    return (top, bottom), (left, right)


# Conv2dSameExport of timm is missing on purpose: it pads every input as the first one that it saw.
LINEAR: Final = Registry[LinearType](
    {
        nn.Linear: LinearType(0),
        nn.Conv1d: LinearType(1),
        nn.Conv2d: LinearType(2),
        nn.Conv3d: LinearType(3),
        nn.ConvTranspose1d: LinearType(1, transposed=True),
        nn.ConvTranspose2d: LinearType(2, transposed=True),
        nn.ConvTranspose3d: LinearType(3, transposed=True),
        "timm.layers.linear.Linear": LinearType(0),
        "timm.layers.conv2d_same.Conv2dSame": LinearType(2, same=_always),
        "timm.layers.std_conv.StdConv2d": LinearType(2, weight=_standardized),
        "timm.layers.std_conv.StdConv2dSame": LinearType(2, weight=_standardized, same=_pads_by_size),
        "timm.layers.std_conv.ScaledStdConv2d": LinearType(2, weight=_scaled_standardized),
        "timm.layers.std_conv.ScaledStdConv2dSame": LinearType(2, weight=_scaled_standardized, same=_pads_by_size),
    }
)
for _home in ("efficientnet_pytorch.utils", "segmentation_models_pytorch.encoders._efficientnet"):
    LINEAR[f"{_home}.Conv2dDynamicSamePadding"] = LinearType(2, same=_always)
    LINEAR[f"{_home}.Conv2dStaticSamePadding"] = LinearType(2, ends=_of_child)


def register_layer(
    type_or_name: TypeKey,
    *,
    spatial: int,
    transposed: bool = False,
    weight: Callable[[nn.Module], Tensor] | None = None,
) -> None:
    """Make a type of linear layer known, so that normalization layers are merged into layers of it.

    Such a layer computes what the torch layer of as many spatial dimensions computes with the attributes of the same
    names: ``weight`` and ``bias`` (a Parameter or None), ``in_features`` and ``out_features`` for a layer on features,
    else ``in_channels``, ``out_channels``, ``kernel_size``, ``stride``, ``padding``, ``dilation`` (tuples, one number
    for each dimension) and ``groups``; for a transposed convolution ``output_padding``, too.

    Parameters
    ----------
    type_or_name : type or str
        The class, or its full name, ``"package.module.Type"``. Subclasses that override nothing count, too.
    spatial : {0, 1, 2, 3}
        Number of spatial dimensions; 0 for a layer that acts on the features of the last dimension.
    transposed : bool, default False
        Whether it is a transposed convolution, with the weight ``(C_in, C_out / groups, *kernel)``.
    weight : callable, optional
        For a layer whose forward computes the weight that it uses: ``weight(module)`` returns that, in the shape of the
        attribute ``weight``. Such a layer pads with zeros.

    Raises
    ------
    TypeError
        If ``type_or_name`` is neither a type of module nor a full name, or ``weight`` is no function.
    ValueError
        If ``spatial`` is another number, or 0 for a transposed layer.

    Each layer of the type is tried when a model is planned: a plan raises ``ValueError`` where it lacks an attribute or
    computes something else.

    Examples
    --------
    >>> class Squared(nn.Conv2d):
    ...     def forward(self, x):
    ...         return self._conv_forward(x, self.weight**2, self.bias)
    >>> register_layer(Squared, spatial=2, weight=lambda module: module.weight**2)
    """
    if type(spatial) is not int or not 0 <= spatial <= 3 or (transposed and not spatial):
        raise ValueError(f"spatial is {spatial!r}; it must be 0, 1, 2 or 3, and not 0 for a transposed convolution.")
    if weight is not None and not callable(weight):
        raise TypeError(f"weight is {weight!r}; it must be a function from the module to the weight that it uses.")
    LINEAR[type_or_name] = LinearType(spatial, transposed, weight, is_taught=True)


_OF_FEATURES: Final = ("in_features", "out_features")


@torch.no_grad()
def check_linear(module: nn.Module, path: str) -> None:
    """Raise ``ValueError`` where a layer is not what :func:`register_layer` was told of its type, by trying it.

    Parameters
    ----------
    module : nn.Module
        A layer for which :func:`is_linear` holds.
    path : str
        Its name in the model, for the message.
    """
    entry = linear_type(module)
    if not entry.is_taught or _has_own_forward(module):
        return
    geometry = ("stride", "padding", "dilation", "groups", *("output_padding",) * entry.transposed)
    needed = ("in_channels", "out_channels", "kernel_size", *geometry) if entry.spatial else _OF_FEATURES
    missing = [name for name in (*TENSORS, *needed) if not hasattr(module, name)]
    what = f"{path}: register_layer was told of {type(module).__name__} that"
    if missing:
        raise ValueError(f"{what} it has the attributes of a layer of torch, and it has no {', no '.join(missing)}.")
    layer: Any = evaluated(module)
    weight, bias = layer.weight if entry.weight is None else entry.weight(module), layer.bias
    if getattr(module, "padding_mode", "zeros") != "zeros" or not isinstance(weight, Tensor):
        return
    sizes = [2 + layer.dilation[axis] * (layer.kernel_size[axis] - 1) for axis in range(entry.spatial)]
    x = trial_input(weight, 2, in_channels(module), *sizes)
    try:
        found = layer.forward(x)
    except Exception:  # an input that it does not take
        return
    if entry.spatial:
        convolve = getattr(F, f"conv{'_transpose' * entry.transposed}{entry.spatial}d")
        expected = convolve(x, weight, bias, **{name: getattr(layer, name) for name in geometry})
    else:
        expected = F.linear(x, weight, bias)
    if found.shape != expected.shape or not bool((found - expected).abs().max() <= 1e-2 * expected.abs().max()):
        raise ValueError(
            f"{what} it computes what the layer of torch does with the attributes of the same names"
            f"{'' if entry.weight is None else ', and the weight that `weight` returns'}, and it does not; see "
            "canon_bridge.register_layer."
        )


def linear_type(module: nn.Module) -> LinearType:
    """Return the entry of ``LINEAR`` for a module; raise ``KeyError`` if there is none."""
    entry = LINEAR.find(module)
    if entry is None:
        raise KeyError(f"{type(module).__name__} is no linear layer of known meaning: LINEAR has no entry for it.")
    return entry


def axis_geometries(module: nn.Module) -> tuple[AxisGeometry, ...]:
    """Return for each spatial axis of the layer how its output positions meet the input."""
    entry = linear_type(module)
    return tuple(_axis_geometry(module, axis, entry) for axis in range(entry.spatial))


def _axis_geometry(module: Any, axis: int, entry: LinearType) -> AxisGeometry:
    kernel, stride, dilation = (int(getattr(module, n)[axis]) for n in ("kernel_size", "stride", "dilation"))
    reach = dilation * (kernel - 1)
    padding = module.padding
    by_size = entry.pads_by_size(module)
    if by_size or (padding == "same" and _pads_with_zeros(module, entry)):
        low, high = reach // 2, reach - reach // 2
    elif isinstance(padding, str) or not _pads_with_zeros(module, entry):
        low = high = 0  # reflect, replicate and circular padding copy values: a constant stays the constant
    else:
        low = high = int(padding[axis])
    if entry.ends is not None:
        first, last = entry.ends(module)[axis]
        low, high = low + first, high + last
    # Every tap of a transposed convolution may fall outside; output_padding and output_size add positions at the
    # upper end, at most stride - 1 or dilation - 1 of them.
    extra = max(stride, dilation) - 1 if entry.transposed else 0
    return AxisGeometry(kernel, stride, dilation, low, high, entry.transposed, extra, by_size)


def _pads_with_zeros(module: nn.Module, entry: LinearType) -> bool:
    return getattr(module, "padding_mode", "zeros") == "zeros" or not entry.looks_at_padding_mode()


@dataclass(frozen=True)
class Layer:
    """What the forward of one layer must know about it, looked up once."""

    entry: LinearType
    borders: tuple[Border, ...]

    @classmethod
    def of(cls, module: nn.Module) -> "Layer":
        """Look it up for a module with an entry in ``LINEAR``."""
        return cls(linear_type(module), tuple(map(Border.of, axis_geometries(module))))


def forward_from_slots(module: nn.Module, layer: Layer, input: Tensor, output_size: list[int] | None = None) -> Tensor:
    """Compute a layer with what its ``weight`` and ``bias`` slots hold now, whatever its class does with them.

    Its bias is ``(C_out,)``, or compact, with one entry for each distinct set of taps on each axis, ``(C_out, n_1, ...,
    n_d)``, and is then gathered to the size of the output. Inputs are as the class takes them, ``output_size`` is for
    transposed convolutions.
    """
    bias = module.bias
    if not isinstance(bias, Tensor) or bias.dim() == 1:
        return _apply(module, layer, input, bias if isinstance(bias, Tensor) else None, output_size)
    spatial = bias.dim() - 1
    # The same sums with and without gradients: a rule of one framework evaluates with them, of another without.
    is_at_border = is_eager(input) and _is_large(module, input, spatial)
    inner = inner_values(bias, layer.borders) if is_at_border else None
    output = _apply(module, layer, input, inner, output_size)  # which nobody else has seen: it may be written in place
    sizes = list(zip(input.shape[-spatial:], output.shape[-spatial:], strict=True))
    if inner is not None:
        add_at_border(output, bias - inner.view(-1, *(1,) * spatial), layer.borders, sizes)
        return output
    gathered = gather(bias, layer.borders, sizes).to(output.dtype)  # autocast lowers the output's
    return output.add_(gathered) if is_eager(input) and not torch.is_grad_enabled() else output + gathered


# From here on it is cheaper, as measured, to add a map to the border alone, in four steps, than to all in one.
SMALLEST_MAP: Final = 2**16


def _is_large(module: Any, input: Tensor, spatial: int) -> bool:
    # An estimate: the output is not there yet.
    return module.out_channels * math.prod(input.shape[-spatial:]) >= SMALLEST_MAP * math.prod(module.stride)


_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # a union of them is not for every dynamo


def _apply(
    module: nn.Module, layer: Layer, input: Tensor, bias: Tensor | None, output_size: list[int] | None
) -> Tensor:
    entry, weight = layer.entry, module.weight
    assert isinstance(weight, Tensor)
    if entry.spatial == 0:
        return F.linear(input, weight, bias)
    if entry.transposed:
        return _apply_transposed(module, entry.spatial, input, bias, output_size)
    if entry.looks_at_padding_mode() and isinstance(module, _CONVOLUTIONS):
        return module._conv_forward(input, weight, bias)  # knows every padding mode
    padding, padded = module.padding, input
    if entry.pads_by_size(module) or entry.ends is not None:
        padding = 0
        sizes = input.shape[-entry.spatial :]
        ends = [border.geometry.padding(size) for border, size in zip(layer.borders, sizes, strict=True)]
        padded = F.pad(input, [amount for pair in reversed(ends) for amount in pair])
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[entry.spatial]
    return convolve(padded, weight, bias, module.stride, padding, module.dilation, module.groups)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _apply_transposed(
    module: nn.Module, spatial: int, input: Tensor, bias: Tensor | None, output_size: list[int] | None
) -> Tensor:
    geometry: list[list[int]] = [list(getattr(module, n)) for n in ("stride", "padding", "kernel_size", "dilation")]
    stride, padding, kernel_size, dilation = geometry
    if isinstance(module, _ConvTransposeNd):
        added: Any = module._output_padding(input, output_size, stride, padding, kernel_size, spatial, dilation)
    else:
        added = module.output_padding
    weight: Any = module.weight
    convolve = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[spatial]
    return convolve(input, weight, bias, stride, padding, added, module.groups, dilation)  # pyright: ignore[reportArgumentType]


# What the forward of a layer calls, and what a user may have put over it on the instance.
_METHODS = ("forward", "_call_impl", "_conv_forward", "_output_padding")


def is_linear(module: nn.Module) -> bool:
    """Return whether the module is of a type in ``LINEAR`` and computes what that type computes."""
    own = {"forward"} if _has_own_forward(module) else set[str]()
    return LINEAR.find(module) is not None and not any(n in vars(module) for n in _METHODS if n not in own)


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
    return None if weight.numel() else "its weight has no elements"


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

    A layer that computes neither keeps its Parameters; a second call does nothing. :func:`why_not_foldable` must have
    given no reason. Undone, the layer computes its weight again.
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


def fold_after(edits: Edits, module: nn.Module, *affines: Affine) -> None:
    r"""Fold the affine map that *follows* the layer into it (merge to the left); of several maps, one copy for each.

    .. math:: W'_{o} = s_o W_o, \qquad b'_o = s_o b_o + t_o

    The copies lie side by side in the output channels, those of one group together: copy :math:`k` of channel
    :math:`c` of group :math:`g` is channel :math:`(g K + k) C / G + c` of :math:`K C` for :math:`G` groups.

    Parameters
    ----------
    edits : Edits
        The journal that records the writes.
    module : nn.Module
        A layer of a type in ``LINEAR``; its ``weight`` and ``bias`` slots get new Parameters, and for several maps its
        number of output channels grows.
    affines : Affine
        Scale :math:`s` and shift :math:`t` of each map, shape ``(C_out,)``.

    References
    ----------
    Guillemot et al. 2020, "Breaking Batch Normalization for better explainability of Deep Neural Networks
    through Layer-wise Relevance Propagation", eq. 6.
    """
    weight, bias = _plain_parameters(edits, module)
    dtype, entry = working_dtype(weight.dtype), linear_type(module)
    scales, shifts = ([_to(getattr(affine, name), weight) for affine in affines] for name in ("scale", "shift"))
    flat = _grouped(module, weight.to(dtype))
    place = 2 if entry.transposed else 1  # of the copies, before the outputs of each group
    factors = torch.stack([_spread(scale, flat, module, is_input=False) for scale in scales], place)
    shape = (weight.shape[0], -1, *weight.shape[2:]) if entry.transposed else (-1, *weight.shape[1:])
    new_weight = (flat.unsqueeze(place) * factors).view(shape)
    new_biases = shifts
    if bias is not None:
        # The bias is (C_out,) or, after a fold_before with zero padding, (C_out, n_1, ..., n_d).
        new_biases = [
            bias.to(dtype) * _widen(scale, bias.dim()) + _widen(shift, bias.dim())
            for scale, shift in zip(scales, shifts, strict=True)
        ]
    new_bias = _side_by_side(torch.stack(new_biases), int(getattr(module, "groups", 1)))
    channels = out_channels(module) * len(affines)
    _write(edits, module, new_weight, new_bias)
    if len(affines) > 1:
        edits.set(module, "__dict__", "out_channels" if entry.spatial else "out_features", channels)


def _side_by_side(copies: Tensor, groups: int) -> Tensor:
    """Return ``(copies, C_out, ...)`` as ``(copies * C_out, ...)``, with the copies of each group together."""
    number, channels, *rest = copies.shape
    return copies.view(number, groups, channels // groups, *rest).transpose(0, 1).reshape(-1, *rest)


# How many entries a bias may have for each element of the weight. Measured: a 3x3 convolution of 64 channels needs
# 0.03; depthwise ones (where it is most) with kernel 3 1.8, 5 3.2, 7 5.2, 9 7.7, 11 10.7, 31 68; with 3x3x3 2.4, with
# 5x5x5 5.8; transposed depthwise ones with stride 2 and kernel 2 2.3, 3 2.8, 4 3.1, 5 4.0, 7 5.9.
MOST_ENTRIES_PER_WEIGHT: Final = 6


def why_not_before(module: nn.Module) -> str | None:
    """Return the reason why :func:`fold_before` should not be called, or None if nothing is against it.

    Nothing is computed but the number of entries that the bias would have.
    """
    geometries = axis_geometries(module)
    if not any(geometry.has_border for geometry in geometries):
        return None
    entries = out_channels(module) * math.prod(map(number_of_tap_sets, geometries))
    weights = math.prod(_weight_shape(module))
    if entries <= MOST_ENTRIES_PER_WEIGHT * weights:
        return None
    return f"its bias would need {entries} entries for the border, {entries / weights:.0f} times its weights"


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
        Scale :math:`s` and shift :math:`t`, shape ``(C,)``; for a Linear layer after a flatten ``C`` may divide
        ``in_features``, each channel then stands for neighbouring features.

    References
    ----------
    Hui & Binder 2019, "BatchNorm Decomposition for Deep Neural Network Interpretation"; the dependence on the
    border is section 3.2 of the design of this package.
    """
    weight, bias = _plain_parameters(edits, module)
    dtype = working_dtype(weight.dtype)
    affine = affine.repeat(in_channels(module) // affine.scale.numel())
    scale, shift = _to(affine.scale, weight), _to(affine.shift, weight)
    flat = _grouped(module, weight.to(dtype))
    new_weight = (flat * _spread(scale, flat, module, is_input=True)).view_as(weight)
    taps = _constant_through(module, flat, shift)
    geometries = axis_geometries(module)
    if any(geometry.has_border for geometry in geometries):
        for axis, geometry in enumerate(geometries, start=1):
            inside = torch.tensor(Border.of(geometry).sets, dtype=dtype, device=taps.device)
            # Not as a product of matrices: autocast would compute that in half precision.
            taps = (taps.movedim(axis, -1).unsqueeze(-2) * inside).sum(-1).movedim(-1, axis)
    else:
        taps = taps.flatten(1).sum(1) if taps.dim() > 1 else taps
    if bias is not None:
        wide = max(bias.dim(), taps.dim())
        taps = _widen(taps, wide) + _widen(bias.to(dtype), wide)
    _write(edits, module, new_weight, taps)
    if taps.dim() > 1 and "forward" not in vars(module):
        bind_forward(edits, module, forward_from_slots, Layer.of(module))


def _grouped(module: nn.Module, weight: Tensor) -> Tensor:
    """View the weight as ``(groups, out, in * taps)``, for a transposed layer ``(groups, in, out * taps)``."""
    groups = int(getattr(module, "groups", 1))
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _spread(values: Tensor, flat: Tensor, module: nn.Module, *, is_input: bool) -> Tensor:
    """Return one value for each input or output channel in a shape that broadcasts against a grouped weight.

    In rows as long as those of the weight, for over a few taps at a time the product would be ten times as slow.
    """
    if is_input == linear_type(module).transposed:
        return values.view(flat.shape[0], -1, 1)
    values = values.view(flat.shape[0], 1, -1)
    times = flat.shape[2] // values.shape[2]
    return values if times == 1 else values.repeat_interleave(times, 2)


def _constant_through(module: nn.Module, flat: Tensor, shift: Tensor) -> Tensor:
    """Return what constants ``(C_in,)`` put into each output channel through each kernel tap, ``(C_out, *kernel)``."""
    entry, channels = linear_type(module), flat.shape[0] * flat.shape[1]
    kernel = _weight_shape(module)[2:]
    # Without a product as large as the weight, which may be hundreds of megabytes.
    if flat.shape[0] == math.prod(kernel) == 1 and not entry.transposed:
        kind = flat.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            return torch.mv(flat[0], shift).view(-1, *kernel)
    products = flat * _spread(shift, flat, module, is_input=True)
    if entry.transposed:
        return products.sum(1).view(-1, *kernel)
    # In two steps, the first over long rows.
    taps = math.prod(kernel)
    inputs = products.shape[2] // taps
    several = math.gcd(inputs, 16)
    rows = products.view(channels, inputs // several, several * taps).sum(1)
    return rows.view(channels, several, taps).sum(1).view(-1, *kernel)


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


_CHANNELS_LAST: Final = {4: torch.channels_last, 5: torch.channels_last_3d}


def _write(edits: Edits, module: nn.Module, weight: Tensor, bias: Tensor) -> None:
    old = module.weight
    assert isinstance(old, Tensor)
    for name, value in (("weight", weight), ("bias", bias)):
        former = vars(module)["_parameters"].get(name)
        requires_grad = (old if former is None else former).requires_grad
        value = value.to(old.dtype)
        if name == "weight" and old.dim() in _CHANNELS_LAST and not old.is_contiguous():
            value = value.contiguous(memory_format=_CHANNELS_LAST[old.dim()])  # as folding row by row has not left it
        edits.set(module, "_parameters", name, parameter(value, requires_grad))
