"""Rules of layer-wise relevance propagation as Captum ``PropagationRule`` classes, right for inputs of either sign.

A rule takes the place of a module in the autograd graph: what arrives at the module's output as a gradient is
relevance, and what leaves at its inputs is relevance. Nothing is hooked to tensors, so a tensor may feed any number
of modules.
"""

from abc import abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module: which module, and its positional arguments."""

    module: nn.Module
    arguments: tuple[Any, ...]

    def forward(self, *tensors: Tensor) -> Tensor:
        """Compute the module, without its hooks, with other values for those arguments that are tensors."""
        values = iter(tensors)
        return self.module.forward(*(next(values) if isinstance(a, Tensor) else a for a in self.arguments))


class Rule(PropagationRule):
    """A rule that computes the relevance of a module's inputs from that of its output.

    Works with :class:`canon_bridge.captum.LRP` and, set as ``module.rule``, with Captum's own ``LRP``.

    Parameters
    ----------
    stabilizer : float, default 1e-6
        Added to denominators away from zero, ``z + stabilizer * sign(z)`` with ``sign(0) = 1``.
    zero_params : tuple of str, default ()
        Names of parameters that count as zero, for example ``("bias",)``.
    """

    def __init__(self, stabilizer: float = 1e-6, zero_params: tuple[str, ...] = ()) -> None:
        self.stabilizer = stabilizer
        self.zero_params = zero_params
        self.relevance_input: dict[torch.device, Any] = {}
        self.relevance_output: dict[torch.device, Tensor] = {}

    @abstractmethod
    def propagate(self, call: Call, inputs: Tensors, relevance: Tensor) -> Tensors:
        """Return the relevance of each input tensor, given that of the output; gradients are enabled."""

    def forward_hook(self, module: nn.Module, inputs: Any, outputs: Tensor) -> Tensor:
        """Put the rule in the place of the module in the autograd graph; a forward hook."""
        tensors = inputs if isinstance(inputs, tuple) else (inputs,)
        return cast(Tensor, _Propagation.apply(self, module, outputs, *tensors))

    def record(self, inputs: Tensors, output: Tensor) -> None:
        """Keep the relevance where Captum's ``LayerLRP`` looks for it."""
        self.relevance_input[output.device] = inputs[0] if len(inputs) == 1 else inputs
        self.relevance_output[output.device] = output

    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Do nothing: parameters are changed only while the rule computes, see :func:`modified`."""

    def divide(self, relevance: Tensor, denominator: Tensor) -> Tensor:
        """Return ``relevance / (denominator + stabilizer * sign(denominator))`` with ``sign(0) = 1``."""
        sign = torch.where(denominator < 0, -1.0, 1.0).to(denominator.dtype)
        return relevance / (denominator + sign * self.stabilizer)


class _Propagation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: Rule, module: nn.Module, output: Tensor, *inputs: Any) -> Tensor:
        # Kept without the tensors: those are saved in the way that autograd frees.
        ctx.rule, ctx.module = rule, module
        ctx.arguments = tuple(None if isinstance(value, Tensor) else value for value in inputs)
        ctx.is_tensor = tuple(isinstance(value, Tensor) for value in inputs)
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
        return output.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (relevance,) = grad_outputs
        tensors = tuple(tensor.detach() for tensor in ctx.saved_tensors)
        saved = iter(tensors)
        arguments = tuple(
            next(saved) if is_tensor else other for is_tensor, other in zip(ctx.is_tensor, ctx.arguments, strict=True)
        )
        with torch.enable_grad():
            propagated = ctx.rule.propagate(Call(ctx.module, arguments), tensors, relevance.detach())
        ctx.rule.record(propagated, relevance)
        remaining = iter(propagated)
        return None, None, None, *(next(remaining) if is_tensor else None for is_tensor in ctx.is_tensor)


@contextmanager
def modified(
    module: nn.Module, change: Callable[[Tensor], Tensor], zero_params: tuple[str, ...] = ()
) -> Generator[nn.Module]:
    """Replace the module's own parameters by ``change(parameter)``, or by zeros, for the length of the block."""
    slots = cast("dict[str, Tensor | None]", vars(module)["_parameters"])
    former = dict(slots)
    try:
        for name, value in former.items():
            if value is not None:
                value = value.detach()
                slots[name] = torch.zeros_like(value) if name in zero_params else change(value)
        yield module
    finally:
        slots.clear()
        slots.update(former)


def _identity(parameter: Tensor) -> Tensor:
    return parameter


def _positive(value: Tensor) -> Tensor:
    return value.clamp(min=0)


def _negative(value: Tensor) -> Tensor:
    return value.clamp(max=0)


class Epsilon(Rule):
    r"""The epsilon rule, :math:`R_i = x_i \sum_j w_{ij} R_j / (z_j + \epsilon \, \mathrm{sign}(z_j))`.

    References
    ----------
    Bach et al. 2015, "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
    Propagation", eq. 58.
    """

    def __init__(self, epsilon: float = 1e-6, zero_params: tuple[str, ...] = ()) -> None:
        super().__init__(epsilon, zero_params)

    def propagate(self, call: Call, inputs: Tensors, relevance: Tensor) -> Tensors:
        """Return the relevance of each input."""
        leaves = tuple(tensor.requires_grad_() for tensor in inputs)
        with modified(call.module, _identity, self.zero_params):
            output = call.forward(*leaves)
        gradients = torch.autograd.grad(output, leaves, self.divide(relevance, output.detach()))
        return tuple(leaf.detach() * gradient for leaf, gradient in zip(leaves, gradients, strict=True))


class Norm(Epsilon):
    """Distribute relevance in proportion to what each input contributes; for sums and average pools.

    The epsilon rule with a small stabilizer, for modules without parameters.
    """

    def __init__(self, stabilizer: float = 1e-6) -> None:
        super().__init__(stabilizer)


class ZPlus(Rule):
    r"""The z+ rule for inputs of either sign: only positive contributions count.

    .. math:: R_i = \sum_j \frac{x_i^+ w_{ij}^+ + x_i^- w_{ij}^-}
                               {\sum_k (x_k^+ w_{kj}^+ + x_k^- w_{kj}^-) + b_j^+} R_j

    with :math:`x^+ = \max(x, 0)` and :math:`x^- = \min(x, 0)`; the stabilizer is added to the denominator.

    References
    ----------
    Bach et al. 2015, eq. 60 with alpha 1 and beta 0; Montavon et al. 2017, "Explaining NonLinear Classification
    Decisions with Deep Taylor Decomposition", eq. 13, for positive inputs.
    """

    def propagate(self, call: Call, inputs: Tensors, relevance: Tensor) -> Tensors:
        """Return the relevance of the input (of the first one; these layers have one)."""
        (values,) = inputs
        upper = _positive(values.detach()).requires_grad_()
        lower = _negative(values.detach()).requires_grad_()
        with modified(call.module, _positive, self.zero_params):
            positive = call.forward(upper)
        with modified(call.module, _negative, (*self.zero_params, "bias")):
            positive = positive + call.forward(lower)
        gradients = torch.autograd.grad(positive, (upper, lower), self.divide(relevance, positive.detach()))
        return (upper.detach() * gradients[0] + lower.detach() * gradients[1],)


class Pass(Rule):
    """Hand relevance on unchanged, for element-wise activations and identity BatchNorms."""

    def __init__(self) -> None:
        super().__init__()

    def propagate(self, call: Call, inputs: Tensors, relevance: Tensor) -> Tensors:
        """Return the relevance of the output for the first input, zero for others."""
        first, *others = inputs
        return (relevance.expand_as(first), *(torch.zeros_like(other) for other in others))
