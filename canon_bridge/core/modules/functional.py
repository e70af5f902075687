"""Modules from the arguments of functions, where the two differ.

Floor 3: imports ``arithmetic``, ``layers`` and ``parameters``. Each raises ``ValueError`` for arguments that have no
module form.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from canon_bridge.core.layers.parameters import parameter
from canon_bridge.core.modules.arithmetic import Add, Subtract
from canon_bridge.core.modules.layers import BatchNorm, Mean

MakeModule = Callable[..., nn.Module]


def add(alpha: float = 1, signal: int | None = None) -> nn.Module:
    """Return the module of a sum; a weighted one has none."""
    _check_alpha(alpha)
    return Add(signal)


def subtract(alpha: float = 1, signal: int | None = None) -> nn.Module:
    """Return the module of a difference; a weighted one has none."""
    _check_alpha(alpha)
    return Subtract(signal)


def _check_alpha(alpha: float) -> None:
    if alpha != 1:
        raise ValueError(f"alpha={alpha}: a weighted sum is not the sum of two branches")


def max_pool(module: MakeModule) -> MakeModule:
    """Return what makes a max pooling from the arguments of the function, which are in another order."""

    def build(
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> nn.Module:
        if return_indices:
            raise ValueError("return_indices=True: it has two outputs")
        return module(kernel_size, stride, padding, dilation, ceil_mode=ceil_mode)

    return build


def adaptive_max_pool(module: MakeModule) -> MakeModule:
    """Return what makes an adaptive max pooling from the arguments of the function."""

    def build(output_size: Any, return_indices: bool = False) -> nn.Module:
        if return_indices:
            raise ValueError("return_indices=True: it has two outputs")
        return module(output_size)

    return build


def mean(dim: Any = None, keepdim: bool = False, dtype: Any = None, axis: Any = None) -> nn.Module:
    """Return the module of a mean over given dimensions."""
    dim = axis if dim is None else dim
    if dim is None or dtype is not None:
        raise ValueError("a mean over all dimensions or in another dtype has no module form")
    return Mean(dim, keepdim)


def interpolate(
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> nn.Module:
    """Return the module of an interpolation."""
    if antialias:
        raise ValueError("antialias=True has no module form")
    return nn.Upsample(size, scale_factor, mode, align_corners, recompute_scale_factor)


def clamp(min: Any = None, max: Any = None) -> nn.Module:
    """Return the module of a clamp: from zero, or between two numbers."""
    if min == 0 and max is None:
        return nn.ReLU()
    if not isinstance(min, int | float) or not isinstance(max, int | float) or not min < max:
        raise ValueError("clamp has a module form only between two numbers, or from 0")
    return nn.Hardtanh(min, max)


def clamp_min(min: Any) -> nn.Module:
    """Return the module of a clamp from zero."""
    return clamp(min)


def raw_elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> nn.Module:
    """Return the module of an ELU, from the arguments of torch's own ``elu_``."""
    if (scale, input_scale) != (1, 1):
        raise ValueError("a scaled elu has no module form")
    return nn.ELU(alpha)


def prelu(weight: Any) -> nn.Module:
    """Return the PReLU with the given slopes."""
    return _with_tensors(nn.PReLU(weight.numel(), device="meta"), weight=weight)


def batch_norm(
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> nn.Module:
    """Return the module of a normalization by running statistics."""
    if training or running_mean is None or running_var is None:
        raise ValueError("batch_norm by the statistics of the batch is not an affine map")
    return BatchNorm(running_mean, running_var, weight, bias, eps)


def raw_batch_norm(
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> nn.Module:
    """Return the module of a normalization by running statistics, from the arguments of ``torch.batch_norm``."""
    return batch_norm(running_mean, running_var, weight, bias, training, momentum, eps)


def linear(weight: Any, bias: Any = None) -> nn.Module:
    """Return the linear layer with the given tensors."""
    return _with_tensors(nn.Linear(weight.shape[1], weight.shape[0], device="meta"), weight=weight, bias=bias)


def convolution(module: MakeModule) -> MakeModule:
    """Return what makes a convolution from its tensors and the other arguments of the function."""

    def build(
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> nn.Module:
        out_channels, in_channels, *kernel = weight.shape
        made = module(
            in_channels * groups, out_channels, tuple(kernel), stride, padding, dilation, groups, device="meta"
        )
        return _with_tensors(made, weight=weight, bias=bias)

    return build


def transposed_convolution(module: MakeModule) -> MakeModule:
    """Return what makes a transposed convolution from its tensors and the other arguments of the function."""

    def build(
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> nn.Module:
        in_channels, out_channels, *kernel = weight.shape
        made = module(
            in_channels,
            out_channels * groups,
            tuple(kernel),
            stride,
            padding,
            output_padding,
            groups,
            dilation=dilation,
            device="meta",
        )
        return _with_tensors(made, weight=weight, bias=bias)

    return build


def _with_tensors(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """Put tensors of the model, or what it computes from them, into a new layer; parameters as they are."""
    for name, value in tensors.items():
        if value is not None and not isinstance(value, nn.Parameter):
            value = parameter(value, value.requires_grad)
        vars(module)["_parameters"][name] = value
    return module
