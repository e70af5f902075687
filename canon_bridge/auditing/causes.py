r"""What became of the relevance that arrived at a module, computed from the module and its rule.

A rule for linear layers evaluates the layer on changed inputs and weights, :math:`z_j^{(k)} = \sum_i w_{ij}^{(k)}
x_i^{(k)} + b_j^{(k)}`, and hands down :math:`R_i = \sum_k x_i^{(k)} \sum_j w_{ij}^{(k)} s_j^{(k)}`. Summed over the
inputs,

.. math:: \sum_j R_j = \sum_i R_i + \sum_{jk} s_j^{(k)} b_j^{(k)} + \sum_j \Big(R_j - \sum_k s_j^{(k)} z_j^{(k)}\Big)

The second term is what biases absorb, the third what stabilisers do. Neither is computed from the relevance that the
rule handed down, so that their sum with it can be wrong, and is where the rule is.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from canon_bridge.auditing.flows import Visit, total
from canon_bridge.core import Divide, Multiply, Product, is_norm, normalized, stopped_at

T = TypeVar("T")

BIASES, STABILISERS, CLIPPED, GATES, ELSEWHERE = "biases", "stabilisers", "clipped", "gates", "elsewhere"
CAUSES: tuple[str, ...] = (BIASES, STABILISERS, CLIPPED, GATES, ELSEWHERE)
"""What takes relevance away, in the order of the tables."""
LOST: tuple[str, ...] = (GATES, ELSEWHERE)
"""Those among them that no rule accounts for."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of a layer by its rule.

    Attributes
    ----------
    factor : Tensor
        :math:`s_j`, in the shape of the output.
    output : Tensor
        :math:`z_j`.
    constant : Tensor
        The output for inputs of zero, :math:`b_j`.
    """

    factor: Tensor
    output: Tensor
    constant: Tensor


class RuleSet(Protocol):
    """What the audit has to know of a framework and its rules."""

    name: str
    """What to call the rules."""
    gates: tuple[type[nn.Module], ...]
    """Types of modules that multiply or divide, besides those of the core."""
    constants: tuple[type[nn.Module], ...]
    """Containers that treat a constant operand as an input, whose relevance ends there: it is a bias."""

    def attached(self, arguments: tuple[Any, ...]) -> AbstractContextManager[None]:
        """Canonize the model as the rules say, and attach them, for the length of a block.

        The arguments are those of the model, for one that cannot be traced without them.
        """
        ...

    def rule_of(self, module: nn.Module) -> str:
        """Return the name of the rule on a module, or ``""``."""
        ...

    def evaluations(self, visit: Visit, relevance: Tensor) -> Sequence[Evaluation] | None:
        """Return the evaluations of the rule on a call, or None where its rule is of another kind, or it has none."""
        ...


def owner(hooks: Mapping[int, object], kind: type[T]) -> T | None:
    """Return the object of this type that one of the hooks is a method of, or None."""
    owners = (getattr(hook, "__self__", None) for hook in hooks.values())
    return next((found for found in owners if isinstance(found, kind)), None)


def shares(rule_set: RuleSet, visit: Visit, relevance: Tensor) -> dict[str, float]:
    """Return what biases, stabilisers and clipped constants absorb of the relevance at the output of a call."""
    evaluations = rule_set.evaluations(visit, relevance)
    if evaluations is not None:
        rest = relevance - torch.stack([term.factor * term.output for term in evaluations]).sum(0)
        return {
            BIASES: sum(total(term.factor * term.constant) for term in evaluations),
            STABILISERS: total(rest),
        }
    if len(visit.arguments) != 1 or not visit.carries[0]:
        return {}
    (value,) = visit.arguments
    if is_norm(visit.module):
        return {BIASES: _due_to_shift(visit.module, value, relevance)}
    return {CLIPPED: total(stopped_at(visit.module, value, relevance))}


def _due_to_shift(norm: nn.Module, input: Tensor, relevance: Tensor) -> float:
    r"""Return :math:`\sum_j R_j b_j / y_j` with the output :math:`y_j = s_j x_j + b_j`, whatever the rule did."""
    output, shift = normalized(norm, input), normalized(norm, torch.zeros_like(input))
    return total(torch.where(output == 0, 0, relevance * shift / output))


def cause_of(rule_set: RuleSet, visit: Visit) -> str:
    """Return what to call the relevance that no rule accounts for in a call."""
    if isinstance(visit.module, (Multiply, Divide, Product, *rule_set.gates)):
        return GATES
    if isinstance(visit.module, rule_set.constants) and not all(visit.carries):
        return BIASES
    return ELSEWHERE
