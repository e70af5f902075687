"""The table of linear layers, how each pads and computes, and its forward with a bias that depends on the position.

Floor 1: imports ``border`` and ``kinds``. A new linear layer is one entry of ``LINEAR``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge.core.modules.border import AxisGeometry, Border, gather
from canon_bridge.core.modules.kinds import Kind, find_kind


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
    """

    spatial: int
    transposed: bool = False
    weight: Callable[[nn.Module], Tensor] | None = None
    same: Callable[[nn.Module], bool] | None = None
    ends: Callable[[nn.Module], Sequence[tuple[int, int]]] | None = None

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
LINEAR: dict[Kind, LinearType] = {
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
for _home in ("efficientnet_pytorch.utils", "segmentation_models_pytorch.encoders._efficientnet"):
    LINEAR[f"{_home}.Conv2dDynamicSamePadding"] = LinearType(2, same=_always)
    LINEAR[f"{_home}.Conv2dStaticSamePadding"] = LinearType(2, ends=_of_child)


def linear_type(module: nn.Module) -> LinearType:
    """Return the entry of ``LINEAR`` for a module; raise ``KeyError`` if there is none."""
    entry = find_kind(LINEAR, module)
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
        before, behind = entry.ends(module)[axis]
        low, high = low + before, high + behind
    # Every tap of a transposed convolution may fall outside; output_padding and output_size add positions at the
    # upper end, at most stride - 1 or dilation - 1 of them.
    extra = max(stride, dilation) - 1 if entry.transposed else 0
    return AxisGeometry(kernel, stride, dilation, low, high, entry.transposed, extra, by_size)


def _pads_with_zeros(module: nn.Module, entry: LinearType) -> bool:
    return module.padding_mode == "zeros" or not entry.looks_at_padding_mode()


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
    """Compute the layer with what its ``weight`` and ``bias`` slots hold now, whatever its class does with them.

    Parameters
    ----------
    module : nn.Module
        A layer with an entry in ``LINEAR``. Its bias is ``(C_out,)``, or compact, with one entry for each distinct set
        of taps on each axis, ``(C_out, n_1, ..., n_d)``, and is then gathered to the size of the output.
    layer : Layer
        What there is to know about it.
    input : Tensor
        As the class of the layer takes it.
    output_size : list of int, optional
        For transposed convolutions.
    """
    bias = module.bias
    if not isinstance(bias, Tensor) or bias.dim() == 1:
        return _apply(module, layer, input, bias if isinstance(bias, Tensor) else None, output_size)
    output = _apply(module, layer, input, None, output_size)
    spatial = bias.dim() - 1
    sizes = zip(input.shape[-spatial:], output.shape[-spatial:], strict=True)
    return output + gather(bias, layer.borders, list(sizes)).to(output.dtype)  # autocast lowers the output's


def _apply(
    module: nn.Module, layer: Layer, input: Tensor, bias: Tensor | None, output_size: list[int] | None
) -> Tensor:
    entry, weight = layer.entry, module.weight
    assert isinstance(weight, Tensor)
    if entry.spatial == 0:
        return F.linear(input, weight, bias)
    if entry.transposed:
        return _apply_transposed(module, entry.spatial, input, bias, output_size)
    if entry.looks_at_padding_mode():
        return module._conv_forward(input, weight, bias)  # pyright: ignore[reportCallIssue]  # knows every padding mode
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
    assert isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    geometry: list[list[int]] = [list(getattr(module, n)) for n in ("stride", "padding", "kernel_size", "dilation")]
    stride, padding, kernel_size, dilation = geometry
    output_padding = module._output_padding(input, output_size, stride, padding, kernel_size, spatial, dilation)
    convolve = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[spatial]
    return convolve(input, module.weight, bias, stride, padding, output_padding, module.groups, dilation)
