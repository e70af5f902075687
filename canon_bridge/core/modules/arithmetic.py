"""Explicit modules for sums, differences, products and quotients.

Floor 0: imports torch alone.
"""

from typing import Any

from torch import Tensor, nn

Operand = Tensor | float


class Arithmetic(nn.Module):
    """An operation on two operands of which one or both carry the data of the input.

    Parameters
    ----------
    signal : {0, 1} or None
        Which operand carries the signal: the only one with data (the other is a number or a tensor of the model), or,
        in products, the one that is no gate. None if both do, or if only their shapes tell.
    """

    def __init__(self, signal: int | None = None) -> None:
        super().__init__()
        self.signal = signal

    def extra_repr(self) -> str:
        """Return the arguments."""
        return "" if self.signal is None else f"signal={self.signal}"


class Add(Arithmetic):
    """Add two operands, ``y = a + b``, as a module of its own, so that rules and hooks can see the sum."""

    def forward(self, left: Operand, right: Operand) -> Any:
        """Return ``left + right``; shapes broadcast as in :func:`torch.add`."""
        return left + right


class Subtract(Arithmetic):
    """Subtract two operands, ``y = a - b``: for rules the sum of ``a`` and ``-b``."""

    def forward(self, left: Operand, right: Operand) -> Any:
        """Return ``left - right``; shapes broadcast as in :func:`torch.sub`."""
        return left - right


class Multiply(Arithmetic):
    """Multiply two operands, ``y = a * b``: one of the two usually is a gate, or a factor."""

    def forward(self, left: Operand, right: Operand) -> Any:
        """Return ``left * right``; shapes broadcast as in :func:`torch.mul`."""
        return left * right


class Divide(Arithmetic):
    """Divide two operands, ``y = a / b``; the signal is in the numerator."""

    def forward(self, left: Operand, right: Operand) -> Any:
        """Return ``left / right``; shapes broadcast as in :func:`torch.div`."""
        return left / right


def signal_of(signal: int | None, left: Operand, right: Operand) -> int | None:
    """Return which operand of a product carries the signal: as stated, else the only tensor, else the larger one.

    None if both are of one size: then neither is known to be a gate, and each gets half of the relevance.
    """
    if signal is not None:
        return signal
    sizes = [operand.numel() if isinstance(operand, Tensor) else 0 for operand in (left, right)]
    return None if sizes[0] == sizes[1] else int(sizes[0] < sizes[1])


class Negate(nn.Module):
    """Return ``-x``."""

    def forward(self, input: Tensor) -> Tensor:
        """Return ``-input``."""
        return -input
