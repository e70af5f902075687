"""What a normalization layer computes in evaluation mode: one scale and one shift for each channel.

Floor 0: imports torch alone. A new normalization layer is one entry of ``NORMS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Affine:
    """The per-channel map ``y = scale * x + shift``.

    Attributes
    ----------
    scale, shift : Tensor
        Shape ``(C,)``, at least float32, on one device.
    """

    scale: Tensor
    shift: Tensor

    def repeat(self, times: int) -> "Affine":
        """Return the map after a flatten that turns each channel into ``times`` neighbouring features."""
        if times == 1:
            return self
        return Affine(self.scale.repeat_interleave(times), self.shift.repeat_interleave(times))


@dataclass(frozen=True)
class NormType:
    """How one exact type of normalization layer is read and made the identity.

    Attributes
    ----------
    read : callable
        Module to :class:`Affine`; the module is in evaluation mode.
    identity : callable
        Module to ``{(table, name): value}``: the slots that make the module compute ``y = x`` exactly.
    rank : int or None
        Number of dimensions of the input, ``(N, C, *spatial)``; None where the type accepts several.
    """

    read: Callable[[nn.Module], Affine]
    identity: Callable[[nn.Module], Mapping[tuple[str, str], object]]
    rank: int | None


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision to compute a merge in: the layer's own, and never less than float32."""
    return torch.promote_types(dtype, torch.float32)


def _read_batch_norm(module: nn.Module) -> Affine:
    # s = weight / sqrt(running_var + eps), b = bias - s * running_mean (design 3; Ioffe & Szegedy 2015, eq. 3).
    mean, variance = module.running_mean, module.running_var
    assert isinstance(mean, Tensor)  # check_norm has refused all others
    assert isinstance(variance, Tensor)
    weight, bias = module.weight, module.bias
    dtype = working_dtype(mean.dtype)
    scale = (variance.to(dtype) + float(module.eps)).rsqrt()  # pyright: ignore[reportArgumentType]
    if isinstance(weight, Tensor):
        scale = weight.to(dtype) * scale
    shift = -scale * mean.to(dtype)
    if isinstance(bias, Tensor):
        shift = bias.to(dtype) + shift
    return Affine(scale, shift)


def _batch_norm_identity(module: nn.Module) -> dict[tuple[str, str], object]:
    # eps 0 too: with running_var 1 and eps 1e-5 the layer would still scale by 1 - 5e-6.
    slots: dict[tuple[str, str], object] = {("__dict__", "eps"): 0.0}
    fills: tuple[tuple[str, str, float], ...] = (
        ("_buffers", "running_mean", 0.0),
        ("_buffers", "running_var", 1.0),
        ("_parameters", "weight", 1.0),
        ("_parameters", "bias", 0.0),
    )
    for table, name, value in fills:
        old = getattr(module, name)
        if isinstance(old, Tensor):
            new = torch.full_like(old, value, requires_grad=False)
            is_parameter = isinstance(old, nn.Parameter)
            slots[table, name] = nn.Parameter(new, old.requires_grad) if is_parameter else new
    return slots


def _batch_norm(rank: int | None) -> NormType:
    return NormType(_read_batch_norm, _batch_norm_identity, rank)


NORMS: Mapping[type[nn.Module], NormType] = {
    nn.BatchNorm1d: _batch_norm(None),
    nn.BatchNorm2d: _batch_norm(4),
    nn.BatchNorm3d: _batch_norm(5),
    nn.SyncBatchNorm: _batch_norm(None),
}


def is_norm(module: nn.Module) -> bool:
    """Return whether the module is a normalization layer of a type in ``NORMS`` with its class's own forward."""
    return type(module) in NORMS and "forward" not in vars(module)


def has_statistics(module: nn.Module) -> bool:
    """Return whether the layer normalizes by running statistics in evaluation mode."""
    return isinstance(module.running_mean, Tensor) and isinstance(module.running_var, Tensor)


def check_norm(module: nn.Module, path: str) -> None:
    """Raise ``ValueError`` where the layer normalizes by batch statistics, which are not an affine map.

    Parameters
    ----------
    module : nn.Module
        A layer for which :func:`is_norm` holds.
    path : str
        Its name in the model, for the message.
    """
    if module.training:
        raise ValueError(f"{path} is in training mode: its batch statistics cannot be merged; call model.eval() first.")
    if not has_statistics(module):
        raise ValueError(
            f"{path} has no running statistics (track_running_stats=False): it normalizes by the batch even in "
            "evaluation mode, which is not an affine map; give it running statistics or replace it by "
            "GroupNorm or LayerNorm before canonization."
        )


def is_identity(module: nn.Module) -> bool:
    """Return whether a layer in ``NORMS`` computes exactly ``y = x`` (also ``eps`` 0)."""
    if module.eps != 0 or not has_statistics(module):
        return False
    affine = NORMS[type(module)].read(module)
    return bool((affine.scale == 1).all()) and bool((affine.shift == 0).all())
