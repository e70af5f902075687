"""The per-channel affine map, which is what a norm computes in evaluation mode and what merges move about."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


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

    @classmethod
    def identity(cls, like: Tensor) -> "Affine":
        """Return the map ``y = x``, of the shape, precision and device of a tensor."""
        return cls(torch.ones_like(like, requires_grad=False), torch.zeros_like(like, requires_grad=False))

    def is_identity(self) -> bool:
        """Return whether it is the map ``y = x``, to the bit."""
        return bool((self.scale == 1).all()) and bool((self.shift == 0).all())

    def applied(self, input: Tensor) -> Tensor:
        """Return the map of an input ``(N, C, *spatial)``, in the input's precision."""
        shape = (-1, *(1,) * (input.dim() - 2))
        return input * self.scale.to(input.dtype).view(shape) + self.shift.to(input.dtype).view(shape)

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
        first, number = channels[0] if channels else 0, len(channels)
        if first >= 0 and tuple(channels) == _neighbours(first, number):
            scale, shift = self.scale, self.shift
            if number < scale.numel():
                scale, shift = scale.narrow(0, first, number), shift.narrow(0, first, number)
            return Affine(scale.clone(), shift.clone())
        index = torch.tensor(channels, dtype=torch.long, device=self.scale.device)
        chosen, stays = index.clamp(min=0), index < 0
        one, zero = self.scale.new_ones(()), self.scale.new_zeros(())
        return Affine(
            torch.where(stays, one, self.scale[chosen]), torch.where(stays, zero, self.shift[chosen].to(zero.dtype))
        )


@lru_cache(256)
def _neighbours(first: int, number: int) -> tuple[int, ...]:
    return tuple(range(first, first + number))


def is_eager(value: Tensor) -> bool:
    """Return whether a look at values costs next to nothing and binds nothing: on the CPU, call by call."""
    return type(value) is Tensor and value.is_cpu and not is_transformed()


def is_transformed() -> bool:
    """Return whether a graph is recorded (compile, export, ``jit.trace``) or a function transformed (vmap, jvp)."""
    if torch.compiler.is_compiling():
        return True
    return bool(torch._C._get_tracing_state()) or torch._C._are_functorch_transforms_active()


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision to compute a merge in: the layer's own, and never less than float32."""
    # No function of torch, which an exported program would record: torch 2.6 cannot load one with a type for an output.
    return dtype if dtype.itemsize >= 4 else torch.float32
