"""What the audit has to know of the rules for Captum: which rule is on a module, and what that rule evaluates."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from canon_bridge.auditing.causes import Evaluation, owner
from canon_bridge.auditing.flows import Visit
from canon_bridge.captum.attach import attached
from canon_bridge.captum.canonical import OnCanonicalModel
from canon_bridge.captum.maps import Preset
from canon_bridge.captum.rules import Rule
from canon_bridge.captum.rules.base import Call, modified
from canon_bridge.captum.rules.linear import Linear


class PresetRules:
    """The rules of a preset, or of an LRP, as the audit asks for them.

    Parameters
    ----------
    model : nn.Module
        The model.
    rules : Preset or LRP
        A preset, for the model as it stands, or an LRP of this model, which canonizes it.
    """

    gates: tuple[type[nn.Module], ...] = ()
    constants: tuple[type[nn.Module], ...] = ()

    def __init__(self, model: nn.Module, rules: Preset | OnCanonicalModel) -> None:
        if isinstance(rules, OnCanonicalModel) and rules.model is not model:
            raise ValueError("rules is an LRP of another model; audit the model that it was made for.")
        self.model, self.rules = model, rules
        self.preset = rules if isinstance(rules, Preset) else rules.preset
        self.name = f"{self.preset.name} (Captum)"

    @contextmanager
    def attached(self, arguments: tuple[Any, ...]) -> Generator[None]:
        """Attach the rules for the length of the block, to the canonical model if the rules are an LRP."""
        if isinstance(self.rules, OnCanonicalModel):
            with self.rules.canonical(arguments), attached(self.model, self.preset, True):
                yield
        else:
            with attached(self.model, self.preset, False):
                yield

    def rule_of(self, module: nn.Module) -> str:
        """Return the name of the rule on the module."""
        rule = owner(module._forward_hooks, Rule)
        return "" if rule is None else type(rule).__name__

    def evaluations(self, visit: Visit, relevance: Tensor) -> Sequence[Evaluation] | None:
        """Return the evaluations of a rule for linear layers."""
        rule = owner(visit.module._forward_hooks, Rule)
        if not isinstance(rule, Linear):
            return None
        call = Call(visit.module, visit.arguments)
        tensors = [(v, c) for v, c in zip(visit.arguments, visit.carries, strict=True) if isinstance(v, Tensor)]
        outputs: list[Tensor] = []
        constants: list[Tensor] = []
        with torch.no_grad():
            for term in rule.terms():
                changed = [term.inputs(value) for value, _ in tensors]
                zeros = [
                    torch.zeros_like(v) if carries else v for v, (_, carries) in zip(changed, tensors, strict=True)
                ]
                with modified(visit.module, term.parameters, term.zeros(rule.zero_params)):
                    outputs.append(call.forward(*changed))
                    constants.append(call.forward(*zeros))
            factors = rule.factors(tuple(outputs), relevance)
        return [Evaluation(f, z, b) for f, z, b in zip(factors, outputs, constants, strict=False)]
