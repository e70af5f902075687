"""Rules for the first layer, where inputs are pixels: by the range of the input, or without looking at it."""

from typing import Any

import torch
from torch import Tensor

from canon_bridge.captum.rules.base import Stabilizer, Tensors
from canon_bridge.captum.rules.linear import Linear, Names, Outputs, Term, negative, positive, together


class ZBox(Linear):
    r"""The z-box rule, for inputs between two bounds.

    .. math:: R_i = \sum_j \frac{x_i w_{ij} - l_i w_{ij}^+ - h_i w_{ij}^-}
                               {\sum_k (x_k w_{kj} - l_k w_{kj}^+ - h_k w_{kj}^-) + b_j - b_j^+ - b_j^-} R_j

    Parameters
    ----------
    low, high : float or Tensor
        The lowest and highest values that an input can have, in the units of the input (after normalization). A
        number, shape ``(C,)`` for a value a channel, or the shape of the input with or without the batch, ones where
        it does not vary. Where the batch dimension is longer than the input's, its first entries count.
    stabilizer, zero_params
        See :class:`Rule`.

    Raises
    ------
    ValueError
        When relevance is propagated and a bound does not fit the shape of the input.

    References
    ----------
    Montavon et al. 2017, "Explaining NonLinear Classification Decisions with Deep Taylor Decomposition", section 4.2.
    """

    def __init__(
        self, low: Tensor | float, high: Tensor | float, stabilizer: Stabilizer = 1e-6, zero_params: Names = ()
    ) -> None:
        super().__init__(stabilizer, zero_params)
        self.low, self.high = low, high

    def terms(self) -> tuple[Term, ...]:
        """Return the layer as it is, and the two that bound it."""
        return (
            Term(),
            Term(lambda value: _bound(self.low, value, "low"), positive),
            Term(lambda value: _bound(self.high, value, "high"), negative),
        )

    def factors(self, outputs: Outputs, relevance: Tensor) -> Tensors:
        """Return the relevance over the difference, with its signs."""
        factor = self.divide(relevance, together(outputs[0]) - together(outputs[1]) - together(outputs[2]))
        return factor, -factor, -factor


def _bound(bound: Tensor | float, like: Tensor, name: str) -> Tensor:
    """Return the bound in the shape of the input."""
    value: Any = torch.as_tensor(bound).to(like)
    if value.dim() == 1 and like.dim() > 1 and value.shape[0] == like.shape[1]:
        value = value.reshape(1, -1, *[1] * (like.dim() - 2))
    if value.dim() == like.dim():
        value = value[: like.shape[0]]
    try:
        if value.dim() not in (0, like.dim() - 1, like.dim()):
            raise RuntimeError
        return value.expand(like.shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has the shape {tuple(torch.as_tensor(bound).shape)}, which does not fit an input of shape "
            f"{tuple(like.shape)}; give a number, one value a channel, or a tensor like the input with ones where it "
            "does not vary."
        ) from None


class WSquare(Linear):
    r"""The w-square rule, :math:`R_i = \sum_j w_{ij}^2 / (\sum_k w_{kj}^2 + b_j^2) R_j`; the input does not matter.

    References
    ----------
    Montavon et al. 2017, "Explaining NonLinear Classification Decisions with Deep Taylor Decomposition", section 4.1.
    Here the bias counts as a weight of the input one.
    """

    def terms(self) -> tuple[Term, ...]:
        """Return the squared layer on ones."""
        return (Term(torch.ones_like, torch.square),)

    def factors(self, outputs: Outputs, relevance: Tensor) -> Tensors:
        """Return the relevance over the sum of the squares."""
        return (self.divide(relevance, together(outputs[0])),)


class Flat(Linear):
    r"""The flat rule, :math:`R_i = \sum_j R_j / n_j` with the count :math:`n_j` of inputs that output j sees.

    Neither input nor weights matter, and the bias takes no part.

    References
    ----------
    Lapuschkin et al. 2019, "Unmasking Clever Hans predictors and assessing what machines really learn", methods.
    """

    def terms(self) -> tuple[Term, ...]:
        """Return the layer with ones for weights, on ones."""
        return (Term(torch.ones_like, torch.ones_like, bias=False),)

    def factors(self, outputs: Outputs, relevance: Tensor) -> Tensors:
        """Return the relevance over the count."""
        return (self.divide(relevance, together(outputs[0])),)
