"""Rules that weigh positive and negative contributions apart: z+, alpha-beta, gamma."""

from torch import Tensor

from canon_bridge.captum.rules.base import Stabilizer, Tensors
from canon_bridge.captum.rules.linear import Change, Linear, Names, Outputs, Term, negative, positive, together

_ACTIVATING = (Term(positive, positive), Term(negative, negative, bias=False))
_INHIBITING = (Term(positive, negative), Term(negative, positive, bias=False))


class ZPlus(Linear):
    r"""The z+ rule for inputs of either sign: only positive contributions count.

    .. math:: R_i = \sum_j \frac{x_i^+ w_{ij}^+ + x_i^- w_{ij}^-}
                               {\sum_k (x_k^+ w_{kj}^+ + x_k^- w_{kj}^-) + b_j^+} R_j

    with :math:`x^+ = \max(x, 0)` and :math:`x^- = \min(x, 0)`; the stabilizer is added to the denominator.

    References
    ----------
    Bach et al. 2015, eq. 60 with alpha 1 and beta 0; Montavon et al. 2017, "Explaining NonLinear Classification
    Decisions with Deep Taylor Decomposition", section 4.2, for positive inputs.
    """

    def terms(self) -> tuple[Term, ...]:
        """Return the positive contributions."""
        return _ACTIVATING

    def factors(self, outputs: Outputs, relevance: Tensor) -> Tensors:
        """Return the relevance over the sum of the positive contributions."""
        factor = self.divide(relevance, together(*outputs[:2]))
        return factor, factor


class AlphaBeta(Linear):
    r"""The alpha-beta rule for inputs of either sign: positive and negative contributions, weighed apart.

    .. math:: R_i = \sum_j \left(\alpha \frac{z_{ij}^+}{\sum_k z_{kj}^+ + b_j^+}
                               - \beta \frac{z_{ij}^-}{\sum_k z_{kj}^- + b_j^-}\right) R_j

    with :math:`z_{ij} = x_i w_{ij}`; the stabilizer is added to both denominators.

    Parameters
    ----------
    alpha, beta : float, default 2 and 1
        Weights of the positive and negative contributions; not negative, ``alpha - beta = 1``.
    stabilizer, zero_params
        See :class:`Rule`.

    Raises
    ------
    ValueError
        If alpha or beta is negative, or their difference is not one.

    References
    ----------
    Bach et al. 2015, eq. 60.
    """

    def __init__(
        self, alpha: float = 2.0, beta: float = 1.0, stabilizer: Stabilizer = 1e-6, zero_params: Names = ()
    ) -> None:
        super().__init__(stabilizer, zero_params)
        if alpha < 0 or beta < 0 or abs(alpha - beta - 1) > 1e-12:
            raise ValueError(f"alpha is {alpha} and beta is {beta}; both must be >= 0, and alpha - beta must be 1.")
        self.alpha, self.beta = alpha, beta

    def terms(self) -> tuple[Term, ...]:
        """Return the positive and the negative contributions."""
        return _ACTIVATING + _INHIBITING

    def factors(self, outputs: Outputs, relevance: Tensor) -> Tensors:
        """Return alpha and minus beta, times the relevance, over the sums of the contributions."""
        plus = self.alpha * self.divide(relevance, together(*outputs[:2]))
        minus = -self.beta * self.divide(relevance, together(*outputs[2:4]))
        return plus, plus, minus, minus


class Gamma(Linear):
    r"""The generalized gamma rule, for inputs and outputs of either sign.

    .. math:: R_i = \sum_j \begin{cases}
        \dfrac{x_i^+ (w_{ij} + \gamma w_{ij}^+) + x_i^- (w_{ij} + \gamma w_{ij}^-)}{\text{sum over } i} R_j & z_j > 0\\
        \dfrac{x_i^+ (w_{ij} + \gamma w_{ij}^-) + x_i^- (w_{ij} + \gamma w_{ij}^+)}{\text{sum over } i} R_j & z_j < 0
        \end{cases}

    The bias counts as a weight of the input one. For inputs that are not negative and outputs that are positive it is
    the rule of the paper.

    Parameters
    ----------
    gamma : float, default 0.25
        How much the contributions in favour of the output are raised.
    stabilizer, zero_params
        See :class:`Rule`.

    References
    ----------
    Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview", section 10.2.1; Andeol et al. 2021,
    "Learning Domain Invariant Representations by Joint Wasserstein Distance Minimization", for either sign.
    """

    def __init__(self, gamma: float = 0.25, stabilizer: Stabilizer = 1e-6, zero_params: Names = ()) -> None:
        super().__init__(stabilizer, zero_params)
        self.gamma = gamma

    def _raised(self, part: Change) -> Change:
        return lambda value: value + self.gamma * part(value)

    def terms(self) -> tuple[Term, ...]:
        """Return two terms for outputs above zero and two for those below, and the layer as it is."""
        plus, minus = self._raised(positive), self._raised(negative)
        return (
            Term(positive, plus),
            Term(negative, minus, bias=False),
            Term(positive, minus),
            Term(negative, plus, bias=False),
            Term(whole=True),
        )

    def factors(self, outputs: Outputs, relevance: Tensor) -> Tensors:
        """Return the relevance of the outputs above zero, and of those below, over the sum of their two terms."""
        whole = together(outputs[4])
        above = self.divide((whole > 0) * relevance, together(*outputs[:2]))
        below = self.divide((whole < 0) * relevance, together(*outputs[2:4]))
        return above, above, below, below
