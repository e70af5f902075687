"""Explicit modules for operations that a model writes as operators or functions.

Floor 0: imports torch alone.
"""

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Mean(nn.AdaptiveAvgPool2d):
    """The mean over given dimensions, usually the spatial ones; for rules it is an average pooling.

    Parameters
    ----------
    dim : int or sequence of int
        The dimensions to average over.
    keepdim : bool, default False
        Whether they stay, with length one.
    """

    def __init__(self, dim: int | list[int] | tuple[int, ...], keepdim: bool = False) -> None:
        super().__init__(1)
        self.dim = tuple(dim) if isinstance(dim, list | tuple) else dim
        self.keepdim = keepdim

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input.mean(dim, keepdim)``."""
        return input.mean(self.dim, self.keepdim)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"{self.dim}, keepdim={self.keepdim}"


class BatchNorm(nn.Module):
    """A BatchNorm by running statistics that a forward computes by :func:`torch.nn.functional.batch_norm`.

    Parameters
    ----------
    running_mean, running_var : Tensor
        Shape ``(C,)``; the very tensors of the module that the forward belongs to.
    weight, bias : Tensor or None
        Shape ``(C,)``.
    eps : float
        Added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self, running_mean: Tensor, running_var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> None:
        super().__init__()
        self.register_buffer("running_mean", running_mean, persistent=False)
        self.register_buffer("running_var", running_var, persistent=False)
        for name, value in (("weight", weight), ("bias", bias)):
            if value is None or isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value, persistent=False)
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalized input, ``(N, C, *spatial)``."""
        mean, variance, weight, bias = self.running_mean, self.running_var, self.weight, self.bias
        return F.batch_norm(input, mean, variance, weight, bias, eps=self.eps)


def configure(module: nn.Module, **sizes: Any) -> None:
    """Give a module of our own the sizes that forward has just computed, such as a kernel as large as the input."""
    vars(module).update(sizes)


class OfRank(nn.Identity):
    """The identity for input with a given number of dimensions; where a merge holds for no other.

    Parameters
    ----------
    ranks : tuple of int
        Numbers of dimensions, the batch and the channels included.
    """

    def __init__(self, ranks: tuple[int, ...]) -> None:
        super().__init__()
        self.ranks = ranks

    def forward(self, input: Tensor) -> Tensor:
        """Return the input; raise ``ValueError`` if it has another number of dimensions."""
        if input.dim() not in self.ranks:
            wanted = " or ".join(map(str, self.ranks))
            raise ValueError(f"this copy was canonized for {wanted} dimensions here, but got {tuple(input.shape)}.")
        return input


def clone(module: nn.Module) -> nn.Module:
    """Return a module for a second call site of ``module``: same type, same tensors, dictionaries of its own.

    Hooks that are on the module now are called at both call sites; hooks added later are added to one of them.
    """
    twin = copy.copy(module)
    for name, value in vars(twin).items():
        if isinstance(value, (dict, set)):
            vars(twin)[name] = copy.copy(value)
    return twin
