r"""Rules for linear layers: each evaluates the layer on changed inputs and parameters, and divides the relevance.

Every one of them has the form

.. math:: R_i = \sum_k x_i^{(k)} \sum_j w_{ij}^{(k)} s_j^{(k)}

with the inputs and weights of a term :math:`k` and factors :math:`s_j^{(k)}` that are made from the relevance
:math:`R_j` and the outputs :math:`z_j^{(k)}` of all terms. A rule is its terms and its factors.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from canon_bridge.captum.rules.base import Call, Evaluation, Rule, Stabilizer, Tensors, modified

Change = Callable[[Tensor], Tensor]
Names = str | Sequence[str] | None
Outputs = Sequence[Tensor | None]  # of the terms; None is zero


def same(value: Tensor) -> Tensor:
    """Return the value."""
    return value


def positive(value: Tensor) -> Tensor:
    """Return ``max(value, 0)``."""
    return value.clamp(min=0)


def negative(value: Tensor) -> Tensor:
    """Return ``min(value, 0)``."""
    return value.clamp(max=0)


def together(*outputs: Tensor | None) -> Tensor:
    """Return the sum of the outputs of several terms, of those that are not known to be zero."""
    first, *others = (output for output in outputs if output is not None)
    return sum(others, first)


@dataclass(frozen=True)
class Term:
    """One evaluation of the layer.

    Attributes
    ----------
    inputs, parameters : callable
        What becomes of the inputs, and of the parameters.
    bias : bool
        Whether the bias takes part.
    whole : bool
        Whether also those parameters take part that the rule's ``zero_params`` names.
    """

    inputs: Change = same
    parameters: Change = same
    bias: bool = True
    whole: bool = False

    def zeros(self, zero_params: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the parameters that are zero, given those of the rule."""
        return () if self.whole else zero_params if self.bias else (*zero_params, "bias")


class Linear(Rule):
    """A rule that is its terms and its factors."""

    @abstractmethod
    def terms(self) -> tuple[Term, ...]:
        """Return the evaluations of the layer."""

    @abstractmethod
    def factors(self, outputs: Outputs, relevance: Tensor) -> Tensors:
        """Return what the output of each term is weighed with; none for terms at the end that only decide."""

    def keeps_output(self, module: nn.Module) -> bool:
        """Return whether one of the terms is the layer as it is."""
        return any(self._is_own(term, module) for term in self.terms())

    def _is_own(self, term: Term, module: nn.Module) -> bool:
        changes = any(module._parameters.get(name) is not None for name in term.zeros(self.zero_params))
        return term.inputs is same and term.parameters is same and not changes

    def propagate(self, call: Call, inputs: Tensors, relevance: Tensor) -> Tensors:
        """Return the relevance of each input."""
        values = tuple(map(_Values, inputs))
        evaluations = [self._evaluate(call, term, values) for term in self.terms()]
        outputs = tuple(None if found is None else found.output.detach() for found in evaluations)
        total: list[Tensor] = []
        for found, factor in zip(evaluations, self.factors(outputs, relevance), strict=False):
            if found is not None:
                gradients = torch.autograd.grad(found.output, found.leaves, factor)
                shares = [leaf.detach() * g for leaf, g in zip(found.leaves, gradients, strict=True)]
                total = [sum_.add_(share) for sum_, share in zip(total, shares, strict=True)] if total else shares
        return tuple(total)

    def _evaluate(self, call: Call, term: Term, values: tuple["_Values", ...]) -> Evaluation | None:
        """Return the layer's output for a term, or None where that is zero because all inputs are."""
        if call.own is not None and self._is_own(term, call.module):
            return call.own
        if not term.bias and all(value.is_zero(term.inputs) for value in values):
            return None
        leaves = tuple(value.changed(term.inputs).detach().requires_grad_() for value in values)
        with modified(call.module, term.parameters, term.zeros(self.zero_params)):
            return Evaluation(leaves, call.forward(*leaves))


class _Values:
    """An input, and which signs its values have: most are of one sign, and their other part is zero."""

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach()

    @cached_property
    def _is_positive(self) -> bool:
        return self.value.numel() > 0 and bool(self.value.amin() >= 0)  # not where there is a NaN

    @cached_property
    def _is_negative(self) -> bool:
        return self.value.numel() > 0 and bool(self.value.amax() <= 0)

    def is_zero(self, change: Change) -> bool:
        """Return whether the change is known to make zeros of all values."""
        return (change is negative and self._is_positive) or (change is positive and self._is_negative)

    def changed(self, change: Change) -> Tensor:
        """Return the changed values."""
        is_itself = (change is positive and self._is_positive) or (change is negative and self._is_negative)
        return self.value if is_itself else change(self.value)


class Epsilon(Linear):
    r"""The epsilon rule, :math:`R_i = x_i \sum_j w_{ij} R_j / (z_j + \epsilon \, \mathrm{sign}(z_j))`.

    Parameters
    ----------
    epsilon : float or callable, default 1e-6
        The stabilizer.
    zero_params : str or sequence of str, default ()
        Names of parameters that count as zero.

    References
    ----------
    Bach et al. 2015, "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
    Propagation", eq. 58.
    """

    def __init__(self, epsilon: Stabilizer = 1e-6, zero_params: Names = ()) -> None:
        super().__init__(epsilon, zero_params)

    def terms(self) -> tuple[Term, ...]:
        """Return the layer as it is."""
        return (Term(),)

    def factors(self, outputs: Outputs, relevance: Tensor) -> Tensors:
        """Return the relevance over the output."""
        return (self.divide(relevance, together(outputs[0])),)


class Norm(Epsilon):
    """Distribute relevance in proportion to what each input contributes; for sums and average pools.

    The epsilon rule with a small stabilizer, for modules without parameters.

    Parameters
    ----------
    stabilizer : float or callable, default 1e-6
        See :class:`Rule`.
    """

    def __init__(self, stabilizer: Stabilizer = 1e-6) -> None:
        super().__init__(stabilizer)
