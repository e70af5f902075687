"""What the audit has to know of zennit: which rule is on a module, and what that rule evaluates."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from zennit.core import BasicHook, Composite, Hook, ParamMod

from canon_bridge.auditing.causes import Evaluation, owner
from canon_bridge.auditing.flows import Visit
from canon_bridge.zennit.arithmetic import Passed, SignalTimesGate, StackedSum


class CompositeRules:
    """The rules of a composite, as the audit asks for them.

    Parameters
    ----------
    model : nn.Module
        The model.
    rules : Composite
        The composite; its canonizers run.
    """

    gates: tuple[type[nn.Module], ...] = (SignalTimesGate, Passed)
    constants: tuple[type[nn.Module], ...] = (StackedSum,)

    def __init__(self, model: nn.Module, rules: Composite) -> None:
        self.model, self.composite = model, rules
        self.name = f"{type(rules).__name__} (zennit)"

    @contextmanager
    def attached(self, arguments: tuple[Any, ...]) -> Generator[None]:
        """Register the composite for the length of the block."""
        with self.composite.context(self.model):
            yield

    def rule_of(self, module: nn.Module) -> str:
        """Return the name of the rule on the module."""
        hook = owner(module._forward_pre_hooks, Hook)
        return "" if hook is None else type(hook).__name__

    def evaluations(self, visit: Visit, relevance: Tensor) -> Sequence[Evaluation] | None:
        """Return the evaluations of the rule, by what it modifies, weighed as its reducer weighs them."""
        hook = owner(visit.module._forward_pre_hooks, Hook)
        if not isinstance(hook, BasicHook):
            return None
        value = cast(Tensor, visit.arguments[0])
        outputs: list[Tensor] = []
        constants: list[Tensor] = []
        rule = cast(Any, hook)
        modifiers = zip(rule.input_modifiers, rule.param_modifiers, rule.output_modifiers, strict=False)
        with torch.no_grad():
            for change_input, change_parameters, change_output in modifiers:
                changed = change_input(value)
                with ParamMod.ensure(change_parameters)(visit.module) as modified:
                    outputs.append(change_output(modified.forward(changed)))
                    constants.append(change_output(modified.forward(torch.zeros_like(changed))))
            factors = rule.gradient_mapper(relevance, outputs)
        if isinstance(factors, Tensor):
            factors = (factors,)
        weights = _weights(hook, len(outputs), value)
        return [
            Evaluation(weight * factor, output, constant)
            for weight, factor, output, constant in zip(weights, factors, outputs, constants, strict=True)
        ]


def _weights(hook: BasicHook, count: int, like: Tensor) -> list[Tensor]:
    """Return with which sign and size the reducer takes each product of input and gradient."""
    one, zero = like.new_ones(()), like.new_zeros(())
    reduce: Any = hook.reducer
    return [reduce([one] * count, [one if j == k else zero for j in range(count)]) for k in range(count)]
