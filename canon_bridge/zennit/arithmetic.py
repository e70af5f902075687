"""Sums, differences, products and quotients as zennit's composites want to see them.

zennit's own types stand inside: composites give ``Sum`` the Norm rule, so that each branch gets the share of relevance
that it has in the sum, and activations the Pass rule, so that a signal gets all the relevance of its product with a
gate. Without such rules on them they compute ordinary gradients.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from zennit.layer import Sum

from canon_bridge.core.modules.arithmetic import Add, Arithmetic, Divide, Multiply, Negate, Operand, Subtract, signal_of


class Signal(nn.Softsign):
    """An element-wise function of a signal and what is done to it; by its base class an activation for zennit.

    Parameters
    ----------
    function : callable
        From the signal and the other operand to the output.
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.function = function
        self._other: Operand = 1.0

    def behind(self, signal: Any, other: Operand) -> Tensor:
        """Return ``function(signal, other)``; a rule on this module keeps relevance away from the other operand."""
        shape = torch.broadcast_shapes(signal.shape, other.shape if isinstance(other, Tensor) else ())
        has_rule = bool(self._forward_pre_hooks)
        self._other = other.detach() if has_rule and isinstance(other, Tensor) else other
        try:
            return self(signal.expand(shape))
        finally:
            self._other = 1.0

    def forward(self, input: Tensor) -> Any:
        """Return the function of the signal and the operand that :meth:`behind` was given."""
        return self.function(input, self._other)


class Negative(Signal):
    """Return ``-x``."""

    def __init__(self) -> None:
        super().__init__(lambda signal, _: -signal)


class StackedSum(nn.Module):
    """Add two operands by stacking them along a new last dimension and zennit's ``Sum`` over that.

    Parameters
    ----------
    minus : bool, default False
        Whether the second operand is subtracted.
    """

    def __init__(self, minus: bool = False) -> None:
        super().__init__()
        self.sum = Sum(dim=-1)
        if minus:
            self.negative = Negative()

    def forward(self, left: Operand, right: Operand) -> Tensor:
        """Return ``left + right`` or ``left - right``; shapes broadcast, and one of the two may be a number."""
        kind = torch.result_type(left, right)
        device = next(operand.device for operand in (left, right) if isinstance(operand, Tensor))
        first, second = (torch.as_tensor(operand, dtype=kind, device=device) for operand in (left, right))
        if "negative" in self._modules:
            second = self.negative(second)
        return self.sum(torch.stack(torch.broadcast_tensors(first, second), dim=-1))


class Product(Arithmetic):
    """Multiply or divide two operands; relevance goes to the signal, or in halves where neither is a gate.

    Parameters
    ----------
    function : callable
        From the left and the right operand to the output.
    signal : {0, 1} or None
        Which one carries the signal; None: the one with more elements, or both.
    """

    def __init__(self, function: Callable[[Any, Any], Any], signal: int | None) -> None:
        super().__init__(signal)
        if signal != 1:
            self.left = Signal(function)
        if signal != 0:
            self.right = Signal(lambda signal, other: function(other, signal))

    def forward(self, left: Operand, right: Operand) -> Tensor:
        """Return the function of the two; shapes broadcast, and one of the two may be a number."""
        signal = signal_of(self.signal, left, right)
        if signal == 0:
            return self.left.behind(left, right)
        if signal == 1:
            return self.right.behind(right, left)
        return (self.left.behind(left, right) + self.right.behind(right, left)) / 2


MODULES: Final[Mapping[type[nn.Module], Callable[[Any], nn.Module]]] = {
    Add: lambda add: StackedSum(),
    Subtract: lambda subtract: StackedSum(minus=True),
    Multiply: lambda multiply: Product(operator.mul, multiply.signal),
    Divide: lambda divide: Product(operator.truediv, divide.signal),
    Negate: lambda negate: Negative(),
}
