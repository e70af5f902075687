"""Explicit modules for operations that a model writes as operators or functions.

Floor 0: imports torch alone.
"""

import copy

from torch import Tensor, nn


class Add(nn.Module):
    """Add two tensors, ``y = a + b``, as a module of its own, so that rules and hooks can see the sum."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left + right``; shapes broadcast as in :func:`torch.add`."""
        return left + right


class OfRank(nn.Identity):
    """The identity for input with a given number of dimensions; where a merge holds for no other.

    Parameters
    ----------
    rank : int
        Number of dimensions, the batch and the channels included.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, input: Tensor) -> Tensor:
        """Return the input; raise ``ValueError`` if it has another number of dimensions."""
        if input.dim() != self.rank:
            raise ValueError(f"this copy was canonized for {self.rank} dimensions here, but got {tuple(input.shape)}.")
        return input


def clone(module: nn.Module) -> nn.Module:
    """Return a module for a second call site of ``module``: same type, same tensors, dictionaries of its own.

    Hooks that are on the module now are called at both call sites; hooks added later are added to one of them.
    """
    twin = copy.copy(module)
    for name, value in vars(twin).items():
        if isinstance(value, (dict, set)):
            vars(twin)[name] = copy.copy(value)  # pyright: ignore[reportUnknownArgumentType]
    return twin
