"""One forward and one backward pass on the canonical model, with the rules of a preset."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from captum._utils.common import (
    _format_additional_forward_args,
    _format_tensor_into_tuples,
    _run_forward,
)
from captum.attr._utils.lrp_rules import EpsilonRule, IdentityRule, PropagationRule
from torch import Tensor, nn

from canon_bridge.captum import presets, rules
from canon_bridge.captum.preprocess import BACKEND
from canon_bridge.captum.taps import Tap
from canon_bridge.core.canonization import Canonization
from canon_bridge.core.planning.options import Options


class OnCanonicalModel:
    """What LRP and LayerLRP share: canonize, attach rules, one forward and one backward pass, leave nothing."""

    model: nn.Module
    preset: presets.Preset
    options: Options
    _canonization: Canonization | None

    def _set_up(self, preset: presets.Preset | None, options: Options) -> None:
        self.preset = preset or presets.epsilon_plus()
        self.options = options
        self._canonization = None
        self._canonical()  # so that a model that cannot be canonized is refused here

    def _canonical(self) -> Canonization:
        if self._canonization is None or not self._canonization.is_current():
            self._canonization = Canonization(self.model, self.options, BACKEND)
        return self._canonization

    @contextmanager
    def _attached(self, verbose: bool) -> Generator[None]:
        """Attach the rule of each module to it, for the length of the block."""
        handles: list[Any] = []
        try:
            chosen = self.preset.assign(self.model)
            for name, module in self.model.named_modules():
                rule = self._rule(name, module, chosen)
                if rule is not None:
                    handles.append(module.register_forward_hook(rule.forward_hook))
                    if verbose:
                        print(f"{type(rule).__name__} on {name} ({type(module).__name__})")  # noqa: T201 - what verbose asks for
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _rule(self, name: str, module: nn.Module, chosen: dict[str, rules.Rule]) -> rules.Rule | None:
        by_hand = vars(module).get("rule")
        if by_hand is not None:
            return _own_rule(by_hand, name)
        rule = chosen.get(name)
        is_leaf = not any(True for _ in module.children())
        if rule is None and is_leaf and any(True for _ in module.parameters()):
            raise TypeError(
                f"{name} ({type(module).__name__}) has parameters, and the preset {self.preset.name!r} has no rule "
                "for it; its gradient would not be relevance. Give the preset an entry, for example "
                f"`layer_map=[({type(module).__name__}, rules.Epsilon())]`."
            )
        return rule

    def _propagate(
        self,
        inputs: Any,
        target: Any,
        additional_forward_args: Any,
        verbose: bool,
        taps: list[Tap] | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the relevance of each input and the target's score, shape ``(N,)``."""
        # Aliases of our own: the user's tensors keep their flags and gradients, also after an exception.
        leaves = tuple(tensor.detach().requires_grad_() for tensor in _format_tensor_into_tuples(inputs))
        extra = _format_additional_forward_args(additional_forward_args)
        with ExitStack() as stack:
            stack.enter_context(self._canonical())
            stack.enter_context(self._attached(verbose))
            for tap in taps or ():
                stack.enter_context(tap.attached())
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            output = cast(Tensor, _run_forward(self.model, leaves, target, extra))
            if output.dim() > 1 and output[0].numel() > 1:
                raise ValueError(
                    f"target is {target!r} and leaves an output of shape {tuple(output.shape)}; LRP explains one "
                    "value for each example: give a target that selects it."
                )
            gradients = torch.autograd.grad(output, leaves, output.detach(), allow_unused=True)
        relevance = tuple(
            torch.zeros_like(leaf) if gradient is None else gradient.detach()
            for leaf, gradient in zip(leaves, cast("tuple[Tensor | None, ...]", gradients), strict=True)
        )
        return relevance, output.detach()


def _own_rule(rule: PropagationRule, name: str) -> rules.Rule:
    """Return a rule of ours for one that the user has set on the module ``name``."""
    if isinstance(rule, rules.Rule):
        return rule
    if type(rule) is IdentityRule:
        return rules.Pass()
    if type(rule) is EpsilonRule:
        return rules.Epsilon(rule.STABILITY_FACTOR)
    raise TypeError(
        f"{name} has the rule {type(rule).__name__}, which is made for Captum's own LRP; use a rule of "
        "canon_bridge.captum.rules, or Captum's LRP inside `with canon_bridge.captum.canonize(model):`."
    )
