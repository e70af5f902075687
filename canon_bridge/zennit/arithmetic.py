"""Explicit modules as zennit's composites want to see them.

Composites choose rules by type and give a rule one input. So zennit's own types stand inside, with one input each:
``Sum`` gets the Norm rule, and activations the Pass rule. Without rules on them they compute ordinary gradients. What
they stand in is of the core's own types: for a block inside this one it is one operation.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from zennit.layer import Sum
from zennit.types import Activation, AvgPool

from canon_bridge.core import (
    Add,
    Divide,
    ElementWise,
    Explicit,
    Kind,
    LinearMap,
    Multiply,
    Normaliser,
    Operand,
    Product,
    Subtract,
    kind_for_rules,
    operation_of_module,
    signal_of,
    stand_in,
)


def _alone(output: Any) -> Any:
    """Return a tensor that is the only output of what computed it, as rules that hold on to that want it.

    A scripted function puts out what it computes with besides, a GroupNorm its statistics.
    """
    return output.clone() if isinstance(output, Tensor) and output.grad_fn is not None else output


class InPlace(nn.Module):
    """A module that has to work in place, as a type that no composite has a rule for: hooks would hand it a copy.

    Parameters
    ----------
    module : nn.Module
        The module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._held = (module,)  # no child, which composites would see

    def forward(self, input: Tensor) -> Any:
        """Return what the module makes of the input, which it overwrites."""
        return self._held[0].forward(input)


class _OneInput(nn.Module):
    """A function of one input that carries data and of other values, which it is given before each call.

    Parameters
    ----------
    function : callable
        From the input and the other values to the output.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.others: tuple[Any, ...] = ()

    def of(self, input: Tensor, *others: Any) -> Any:
        """Return ``function(input, *others)``; a rule on this module keeps relevance away from the others."""
        has_rule = bool(self._forward_pre_hooks)
        self.others = tuple(o.detach() if has_rule and isinstance(o, Tensor) else o for o in others)
        try:
            return self(input)
        finally:
            if not has_rule:  # a rule computes the module once more
                self.others = ()

    def forward(self, input: Tensor) -> Any:
        """Return the function of the input and of what :meth:`of` was given."""
        return _alone(self.function(input, *self.others))


class Passed(_OneInput, nn.Softsign):
    """An element-wise function; by its base class an activation for zennit, to which composites give Pass."""


class Distributed(_OneInput, Sum):
    """A function that is linear in its input; by its base class a sum for zennit, to which composites give Norm."""


class OfOneInput(Explicit):
    """An explicit module of one input with data.

    Parameters
    ----------
    module : Explicit
        The module.
    """

    kind: ClassVar[Callable[..., Passed | Distributed]]

    def __init__(self, module: Explicit) -> None:
        super().__init__(module.function, module.args, module.kwargs, module.data_count)
        self.inner = self.kind(module.forward)

    def forward(self, *values: Any) -> Any:
        """Return what the explicit module makes of the values."""
        return self.inner.of(*values)


class PassedOperation(OfOneInput, ElementWise):
    """An element-wise function, or one that counts as such."""

    kind = Passed


class DistributedOperation(OfOneInput, LinearMap):
    """A function that is linear in its one input."""

    kind = Distributed


class JointOperation(LinearMap):
    """A function that is linear in several inputs together, as one of all their elements in one vector.

    Parameters
    ----------
    module : LinearMap
        The module.
    """

    def __init__(self, module: LinearMap) -> None:
        super().__init__(module.function, module.args, module.kwargs, module.data_count)
        self.inner = Distributed(partial(self._of_vector, module))

    @staticmethod
    def _of_vector(module: LinearMap, input: Tensor, *values: Any) -> Any:
        given = values[: module.data_count]
        parts = input.split([value.numel() for value in given])
        data = [part.view(value.shape).to(value.dtype) for part, value in zip(parts, given, strict=True)]
        return module.forward(*data, *values[module.data_count :])

    def forward(self, *values: Any) -> Any:
        """Return what the explicit module makes of the values."""
        return self.inner.of(torch.cat([value.flatten() for value in values[: self.data_count]]), *values)


class ProductOfMaps(Product):
    """A function that is linear in each of several inputs: relevance goes to the signal, or in equal shares.

    Parameters
    ----------
    module : Product
        The module.
    """

    def __init__(self, module: Product) -> None:
        super().__init__(module.function, module.args, module.kwargs, module.data_count, module.signal)
        self.signals = tuple(range(module.data_count)) if module.signal is None else (module.signal,)
        self.maps = nn.ModuleList(Distributed(partial(self._map, module, index)) for index in self.signals)

    @staticmethod
    def _map(module: Product, index: int, input: Tensor, *values: Any) -> Any:
        return module.forward(*(input if place == index else value for place, value in enumerate(values)))

    def forward(self, *values: Any) -> Any:
        """Return the product."""
        pairs = zip(self.maps, self.signals, strict=True)
        results = [inner.of(values[index], *values) for inner, index in pairs]  # pyright: ignore
        return sum(results[1:], results[0]) / len(results) if len(results) > 1 else results[0]


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """Return the values along a new last dimension, but one after the other in memory: ten times as fast."""
    return torch.stack(tuple(values)).movedim(0, -1)


class StackedSum(Add):
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
            self.negative = Passed(torch.neg)

    def forward(self, left: Operand, right: Operand) -> Tensor:
        """Return ``left + right`` or ``left - right``; shapes broadcast, and one of the two may be a number."""
        kind = torch.result_type(left, right)
        device = next(operand.device for operand in (left, right) if isinstance(operand, Tensor))
        first, second = (torch.as_tensor(operand, dtype=kind, device=device) for operand in (left, right))
        if "negative" in self._modules:
            second = self.negative(second)
        return self.sum(_stacked(torch.broadcast_tensors(first, second)))


class SignalTimesGate(Multiply):
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
            self.left = Passed(function)
        if signal != 0:
            self.right = Passed(partial(_swapped, function))

    def forward(self, left: Operand, right: Operand) -> Tensor:
        """Return the function of the two; shapes broadcast, and one of the two may be a number."""
        signal = signal_of(self.signal, left, right)
        if signal == 0:
            return _broadcast(self.left, left, right)
        if signal == 1:
            return _broadcast(self.right, right, left)
        return (_broadcast(self.left, left, right) + _broadcast(self.right, right, left)) / 2


def _swapped(function: Callable[[Any, Any], Any], signal: Any, other: Any) -> Any:
    return function(other, signal)


def _broadcast(passed: Passed, signal: Any, other: Operand) -> Tensor:
    shape = torch.broadcast_shapes(signal.shape, other.shape if isinstance(other, Tensor) else ())
    return passed.of(signal.expand(shape), other)


_EXPLICIT: Final[Mapping[type[nn.Module], Callable[[Any], nn.Module]]] = {
    Add: lambda add: StackedSum(),
    Subtract: lambda subtract: StackedSum(minus=True),
    Multiply: lambda multiply: SignalTimesGate(operator.mul, multiply.signal),
    Divide: lambda divide: SignalTimesGate(operator.truediv, divide.signal),
    ElementWise: lambda module: PassedOperation(module),
    Normaliser: lambda module: PassedOperation(module),
    LinearMap: lambda linear: DistributedOperation(linear) if linear.data_count == 1 else JointOperation(linear),
    Product: lambda module: ProductOfMaps(module),
}
_TYPES: Final[Mapping[Kind, tuple[Any, type[nn.Module]]]] = {
    Kind.ELEMENTWISE: (Activation, nn.Softsign),
    Kind.NORMALISER: (Activation, nn.Softsign),
    Kind.LINEAR: ((AvgPool, Sum), Sum),
}


def adapt(module: nn.Module) -> nn.Module:
    """Return the module that zennit's composites have a rule for: another for explicit ones, a twin for other types."""
    make = _EXPLICIT.get(type(module))
    if make is not None:
        return make(module)
    # In a canonical model only what has to be, see Plan.uncovered; the flag of a container is for its forward to read.
    if vars(module).get("inplace") and kind_for_rules(module) is not None:
        return InPlace(module)
    entry = operation_of_module(module)
    if entry is not None and entry.kind is Kind.WITHOUT_RULE and isinstance(module, Activation):  # by zennit's table
        return _with_class(module, _of_none(type(module)))
    kind = kind_for_rules(module)
    known, base = (object, nn.Module) if kind is None else _TYPES.get(kind, (object, nn.Module))
    if isinstance(module, known):
        return module
    return _with_class(module, _of_both(type(module), base))


def _with_class(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    twin = stand_in(module)
    twin.__class__ = kind
    return twin


@cache
def _of_none(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a type that computes what the given one does, and that is no type that composites know."""
    names: dict[str, Any] = {}
    for base in reversed(kind.__mro__[: kind.__mro__.index(nn.Module)]):
        names |= {name: value for name, value in vars(base).items() if name not in ("__dict__", "__weakref__")}
    return type(kind.__name__, (nn.Module,), names)


@cache
def _of_both(kind: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    """Return a type that computes what the first does, and that composites take for the second."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _alone(kind.forward(self, *args, **kwargs))

    return type(kind.__name__, (kind, base), {"__module__": kind.__module__, "forward": forward})
