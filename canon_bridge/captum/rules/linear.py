r"""Rules for linear layers: each evaluates the layer on changed inputs and parameters, and divides the relevance.

Every one of them has the form

.. math:: R_i = \sum_k x_i^{(k)} \sum_j w_{ij}^{(k)} s_j^{(k)}

with the inputs and weights of a term :math:`k` and factors :math:`s_j^{(k)}` that are made from the relevance
:math:`R_j` and the outputs :math:`z_j^{(k)}` of all terms. A rule is its terms and its factors.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from canon_bridge.captum.rules.base import Call, Rule, Stabilizer, Tensors, modified

Change = Callable[[Tensor], Tensor]
Names = str | Sequence[str] | None


def same(value: Tensor) -> Tensor:
    """Return the value."""
    return value


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
    def factors(self, outputs: Tensors, relevance: Tensor) -> Tensors:
        """Return what the output of each term is weighed with; none for terms at the end that only decide."""

    def propagate(self, call: Call, inputs: Tensors, relevance: Tensor) -> Tensors:
        """Return the relevance of each input."""
        total = [torch.zeros_like(value) for value in inputs]
        leaves: list[Tensors] = []
        outputs: list[Tensor] = []
        for term in self.terms():
            leaves.append(tuple(term.inputs(value.detach()).detach().requires_grad_() for value in inputs))
            with modified(call.module, term.parameters, term.zeros(self.zero_params)):
                outputs.append(call.forward(*leaves[-1]))
        factors = self.factors(tuple(output.detach() for output in outputs), relevance)
        for own, output, factor in zip(leaves, outputs, factors, strict=False):
            gradients = torch.autograd.grad(output, own, factor)
            total = [sum_ + leaf.detach() * g for sum_, leaf, g in zip(total, own, gradients, strict=True)]
        return tuple(total)


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

    def factors(self, outputs: Tensors, relevance: Tensor) -> Tensors:
        """Return the relevance over the output."""
        return (self.divide(relevance, outputs[0]),)


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
