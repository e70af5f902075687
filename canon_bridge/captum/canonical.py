"""One forward and one backward pass on the canonical model, with the rules of a preset."""

from contextlib import ExitStack
from typing import Any, cast

import torch
from captum._utils.common import (
    _format_additional_forward_args,
    _format_tensor_into_tuples,
    _run_forward,
)
from torch import Tensor, nn

from canon_bridge.captum import presets
from canon_bridge.captum.attach import attached
from canon_bridge.captum.preprocess import BACKEND
from canon_bridge.captum.taps import Tap
from canon_bridge.core.canonize import Canonization
from canon_bridge.core.options import Options


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
        self.canonical()  # so that a model that cannot be canonized is refused here

    def canonical(self) -> Canonization:
        """Return the canonization of the model as it is now; planned anew where the model has changed."""
        if self._canonization is None or not self._canonization.is_current():
            self._canonization = Canonization(self.model, self.options, BACKEND)
        return self._canonization

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
            stack.enter_context(self.canonical())
            stack.enter_context(attached(self.model, self.preset, verbose))
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
