"""Rules that do not look at contributions: pass, signal takes all, winner takes all."""

import torch
from torch import Tensor

from canon_bridge.captum.rules.base import Call, Rule, Stabilizer, Tensors, are_data
from canon_bridge.core import Arithmetic, Product, signal_of


class Pass(Rule):
    """Hand relevance on unchanged, for element-wise activations and identity BatchNorms."""

    def __init__(self) -> None:
        super().__init__()

    @property
    def keeps_inputs(self) -> bool:
        """Shapes are enough, unless a class made from this one has a :meth:`propagate` of its own."""
        return type(self).propagate is not Pass.propagate

    def propagate(self, call: Call, inputs: Tensors, relevance: Tensor) -> Tensors:
        """Return the relevance of the output for the first input, zero for others."""
        first, *others = inputs
        return (relevance.expand_as(first), *(relevance.new_zeros(()).expand_as(other) for other in others))


class SignalTakesAll(Rule):
    r"""All relevance of a product goes to the signal, none to the gate: :math:`R_s = R`, :math:`R_g = 0`.

    The signal is the operand that :class:`Multiply` names: the one that does not come from a sigmoid, softmax or the
    like; else the one with more elements. Where nothing tells the two apart, each gets half. Relevance of a signal that
    was broadcast is summed over its copies.

    References
    ----------
    Arras et al. 2019, "Explaining and Interpreting LSTMs": the variants "all" and "half" for gated interactions.
    """

    def __init__(self, stabilizer: Stabilizer = 1e-6) -> None:
        super().__init__(stabilizer)

    def propagate(self, call: Call, inputs: Tensors, relevance: Tensor) -> Tensors:
        """Return the relevance of the signal, and zero for the gate."""
        if isinstance(call.module, Product):
            return self._of_map(call, inputs, relevance, call.module.signal)
        left, right = call.arguments
        named = call.module.signal if isinstance(call.module, Arithmetic) else None
        signal = signal_of(named, left, right)
        shares = (0.5, 0.5) if signal is None else (1.0 - signal, float(signal))
        by_operand = zip((left, right), shares, are_data(call.module, call.arguments), strict=True)
        return tuple((share * relevance).sum_to_size(a.shape) for a, share, is_data in by_operand if is_data)

    def _of_map(self, call: Call, inputs: Tensors, relevance: Tensor, signal: int | None) -> Tensors:
        """Return the relevance by the epsilon rule of the map that the other factors make of the signal."""
        leaves = tuple(value.detach().requires_grad_() for value in inputs)
        output = call.forward(*leaves)
        gradients = torch.autograd.grad(output, leaves, self.divide(relevance, output.detach()))
        shares = [1 / len(leaves) if signal is None else float(index == signal) for index in range(len(leaves))]
        return tuple(s * leaf.detach() * g for s, leaf, g in zip(shares, leaves, gradients, strict=True))


class WinnerTakesAll(Rule):
    """All relevance of a max pooling goes to the largest input of its window: the gradient, for max pooling.

    References
    ----------
    Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview", on special layers.
    """

    def __init__(self) -> None:
        super().__init__()

    def propagate(self, call: Call, inputs: Tensors, relevance: Tensor) -> Tensors:
        """Return the relevance at the winners, zero elsewhere."""
        leaves = tuple(value.detach().requires_grad_() for value in inputs)
        return torch.autograd.grad(call.forward(*leaves), leaves, relevance)
