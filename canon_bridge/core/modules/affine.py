"""What a normalization layer computes in evaluation mode: one scale and one shift for each channel.

Floor 1: imports ``kinds``. A new normalization layer is one entry of ``NORMS``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from canon_bridge.core.modules.kinds import Kind, find_kind


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

    def after(self, before: "Affine") -> "Affine":
        """Return the map that applies ``before`` and then this one."""
        return Affine(self.scale * before.scale, self.scale * before.shift + self.shift)

    def joined(self, other: "Affine") -> "Affine":
        """Return the map with the channels of both, one after the other."""
        return Affine(torch.cat([self.scale, other.scale]), torch.cat([self.shift, other.shift]))

    def select(self, channels: Sequence[int]) -> "Affine":
        """Return the map with the given channels, in that order; -1 stands for a channel that stays as it is."""
        index = torch.tensor(channels, dtype=torch.long, device=self.scale.device)
        chosen, stays = index.clamp(min=0), index < 0
        one, zero = self.scale.new_ones(()), self.scale.new_zeros(())
        return Affine(
            torch.where(stays, one, self.scale[chosen]), torch.where(stays, zero, self.shift[chosen].to(zero.dtype))
        )


@dataclass(frozen=True)
class NormType:
    """How one exact type of normalization layer is read and made the identity.

    Attributes
    ----------
    read : callable
        Module to :class:`Affine`; the module is in evaluation mode.
    identity : callable
        Module to ``{(table, name): value}``: the slots that make the module compute ``y = x`` exactly.
    ranks : tuple of int
        Numbers of dimensions of the input, ``(N, C, *spatial)``, that the type accepts.
    then : tuple of str
        Names of children that its forward calls after the normalization, one after the other.
    frozen : bool
        Whether it computes the same in training mode.
    """

    read: Callable[[nn.Module], Affine]
    identity: Callable[[nn.Module], Mapping[tuple[str, str], object]]
    ranks: tuple[int, ...] = field(kw_only=True)
    then: tuple[str, ...] = ()
    frozen: bool = False


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
    for name, value in (("running_mean", 0.0), ("running_var", 1.0), ("weight", 1.0), ("bias", 0.0)):
        old = getattr(module, name)
        if isinstance(old, Tensor):
            new = torch.full_like(old, value, requires_grad=False)
            if name in vars(module)["_buffers"]:  # a frozen layer has all four there
                slots["_buffers", name] = new
            else:
                slots["_parameters", name] = nn.Parameter(new, old.requires_grad)
    return slots


def _batch_norm(*ranks: int, then: tuple[str, ...] = (), frozen: bool = False) -> NormType:
    return NormType(_read_batch_norm, _batch_norm_identity, ranks=ranks, then=then, frozen=frozen)


_THEN = ("drop", "act")

NORMS: Mapping[Kind, NormType] = {
    nn.BatchNorm1d: _batch_norm(2, 3),
    nn.BatchNorm2d: _batch_norm(4),
    nn.BatchNorm3d: _batch_norm(5),
    nn.SyncBatchNorm: _batch_norm(2, 3, 4, 5),
    "canon_bridge.core.modules.layers.BatchNorm": _batch_norm(2, 3, 4, 5, frozen=True),
    "torchvision.ops.misc.FrozenBatchNorm2d": _batch_norm(4, frozen=True),
    "detectron2.layers.batch_norm.FrozenBatchNorm2d": _batch_norm(4, frozen=True),
    "timm.layers.norm_act.BatchNormAct2d": _batch_norm(4, then=_THEN),
    "timm.layers.norm_act.SyncBatchNormAct": _batch_norm(4, then=_THEN),
    "timm.layers.norm_act.FrozenBatchNormAct2d": _batch_norm(4, then=_THEN, frozen=True),
}


def norm_type(module: nn.Module) -> NormType:
    """Return the entry of ``NORMS`` for a layer for which :func:`is_norm` holds."""
    entry = find_kind(NORMS, module)
    if entry is None:
        raise TypeError(f"{type(module).__name__} is no normalization layer with an entry in NORMS.")
    return entry


def children_after(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the children that the layer calls behind the normalization, in order; none for most."""
    entry = find_kind(NORMS, module)
    return tuple(name for name in entry.then if name in vars(module)["_modules"]) if entry else ()


def is_norm(module: nn.Module) -> bool:
    """Return whether the module is a normalization layer of a type in ``NORMS`` with its class's own forward."""
    own = {*vars(module)["_parameters"], *vars(module)["_buffers"]}  # not where a parametrization computes them
    return find_kind(NORMS, module) is not None and "forward" not in vars(module) and own >= {"weight", "bias"}


def width(norm: nn.Module) -> int:
    """Return the number of channels of a normalization layer."""
    return int(norm.running_mean.numel() if has_statistics(norm) else norm.num_features)  # pyright: ignore


def normalized(norm: nn.Module, input: Tensor) -> Tensor:
    """Return what the normalization layer alone makes of its input, without the children that it calls."""
    affine = norm_type(norm).read(norm)
    shape = (-1, *(1,) * (input.dim() - 2))
    return input * affine.scale.to(input.dtype).view(shape) + affine.shift.to(input.dtype).view(shape)


@torch.no_grad()
def mean_ratio(norm: nn.Module) -> float:
    r"""Return by how many standard deviations the running mean is from zero, :math:`\max |s \mu| / \max |\gamma|`.

    A channel counts by its weight, compared with the largest of the layer.
    """
    affine, weight = norm_type(norm).read(norm), norm.weight
    largest = float(weight.abs().max()) if isinstance(weight, Tensor) else 1.0
    mean = norm.running_mean
    assert isinstance(mean, Tensor)
    return float((affine.scale * mean).abs().max()) / largest if largest else 0.0


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
    if module.training and not norm_type(module).frozen:
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
    affine = norm_type(module).read(module)
    return bool((affine.scale == 1).all()) and bool((affine.shift == 0).all())
