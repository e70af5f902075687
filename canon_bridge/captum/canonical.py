"""One forward and one backward pass on the canonical model, with the rules of a preset."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from captum._utils.common import _format_additional_forward_args
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn

from canon_bridge.auditing.target import as_tuple, select
from canon_bridge.captum import presets
from canon_bridge.captum.attach import attached
from canon_bridge.captum.preprocess import BACKEND
from canon_bridge.captum.taps import Tap
from canon_bridge.core import (
    Canonization,
    FunctionChangedError,
    Options,
    OtherCourseError,
    TracingError,
    fits_defaults,
    tensors_in,
    warn_uncovered,
)

Values = tuple[Any, ...]


class OnCanonicalModel:
    """What LRP and LayerLRP share: canonize, attach rules, one forward and one backward pass, leave nothing.

    A model that can be traced only with values is traced with those of the first attribution, and anew for inputs of
    other shapes or on which that trace is another function.
    """

    model: nn.Module
    preset: presets.Preset
    options: Options
    _canonization: Canonization | None
    _overwritten: frozenset[str]  # modules whose arguments the forward overwrites after them
    _traced_with: Values | None  # what is like the arguments that the model was traced with, if it had to be

    def _check_rules(self) -> None:
        """Raise ``TypeError`` where the attribute in which Captum keeps the rule of a module holds something else."""
        for path, module in self.model.named_modules():
            rule = getattr(module, "rule", None)
            if rule is not None and not isinstance(rule, PropagationRule):
                raise TypeError(
                    f"{path or 'the model'} ({type(module).__name__}) has the attribute rule = {rule!r}; Captum keeps "
                    "the rule of a module there: set one of canon_bridge.captum.rules, or name the attribute otherwise."
                )

    def _set_up(self, preset: presets.Preset | None, options: Options) -> None:
        self.preset = presets.epsilon_plus() if preset is None else preset
        if not isinstance(self.preset, presets.Preset):  # pyright: ignore[reportUnnecessaryIsInstance]
            found = getattr(preset, "__name__", repr(preset))
            raise TypeError(
                f"preset is {found} ({type(preset).__name__}); it must be a preset, for example presets.epsilon_plus() "
                "(called, with parentheses) or presets.Preset(layer_map=[...])."
            )
        self.options = options
        self._canonization = self._traced_with = None
        self._overwritten = frozenset[str]()
        try:
            self.canonical()  # so that a model that cannot be canonized is refused here
        except TracingError:
            if options.arguments is not None:
                raise

    def canonical(self, arguments: Values | None = None) -> Canonization:
        """Return the canonization of the model as it is now; planned anew where the model has changed.

        Parameters
        ----------
        arguments : tuple, optional
            What to trace the model with where it cannot be traced without values.
        """
        known = self._canonization
        is_of_values = self._traced_with is not None or self._wants_values(arguments)
        fits = arguments is None or not is_of_values or self._traced_with == _likeness(arguments)
        return known if known is not None and fits and known.is_current() else self._plan(arguments)

    def _plan(self, arguments: Values | None) -> Canonization:
        self._traced_with, self._is_checked, self._has_warned = None, False, False
        if not self._wants_values(arguments):
            try:
                self._canonization = Canonization(self.model, self.options, BACKEND)
                return self._canonization
            except TracingError:
                if arguments is None or self.options.arguments is not None:
                    raise
        self._canonization = Canonization(self.model, self.options, BACKEND, arguments=arguments)
        self._traced_with = _likeness(arguments)
        return self._canonization

    def _wants_values(self, arguments: Values | None) -> bool:
        """Return whether an optional argument has another value than its default, which a plan without values has."""
        if arguments is None or self.options.arguments is not None:
            return False
        return not fits_defaults(self.model.forward, arguments)

    def _propagate(
        self,
        inputs: Any,
        target: Any,
        additional_forward_args: Any,
        verbose: bool,
        taps: Sequence[Tap] = (),
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the relevance of each input and the target's score, shape ``(N,)``."""
        given = as_tuple(inputs)
        if not taps:
            _check_differentiable(given)
        # Aliases of our own: the user's tensors keep their flags and gradients, also after an exception.
        leaves = tuple(t.detach().requires_grad_() if _is_differentiable(t) else t for t in given)
        arguments = (*leaves, *(_format_additional_forward_args(additional_forward_args) or ()))
        former, canonization = self._canonization, self.canonical(arguments)
        try:
            return self._run(leaves, arguments, target, verbose, taps)
        except (FunctionChangedError, OtherCourseError):
            if self._traced_with is None or canonization is not former:
                raise
            self._plan(arguments)  # these values take another course than those it was traced with
            return self._run(leaves, arguments, target, verbose, taps)

    def _run(
        self, leaves: tuple[Tensor, ...], arguments: Values, target: Any, verbose: bool, taps: Sequence[Tap]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        _check_no_other_rules(self.model)
        canonization = self.canonical(arguments)
        for tap in taps:
            tap.begin(canonization.plan)
        is_known = self._is_checked and self._traced_with is None
        before = None if is_known else canonization.reference(arguments)
        with ExitStack() as stack:
            stack.enter_context(canonization)
            kept = stack.enter_context(attached(self.model, self.preset, True, verbose, self._overwritten))
            for tap in taps:
                stack.enter_context(tap.attached())
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            output = self.model(*arguments)
            overwritten = kept.overwritten(self.model)
            score = select(output, target)
            explained = [leaf for leaf in leaves if leaf.requires_grad] or [v for tap in taps for v in tap.values]
            found: dict[Tensor, Tensor | None] = {}
            if score.requires_grad and explained and not overwritten:
                gradients = torch.autograd.grad(score, explained, score.detach(), allow_unused=True)
                found = dict(zip(explained, cast("tuple[Tensor | None, ...]", gradients), strict=True))
        if overwritten:  # once more, with copies of those; from now on from the beginning
            self._overwritten |= overwritten
            return self._run(leaves, arguments, target, verbose, taps)
        if before is not None:
            self._is_checked = canonization.check_function(before, tensors_in(output))
        if not self._has_warned:
            warn_uncovered(canonization.plan)
            self._has_warned = True
        relevance = [found.get(leaf) for leaf in leaves]
        pairs = zip(leaves, relevance, strict=True)
        return tuple(torch.zeros_like(leaf) if r is None else r.detach() for leaf, r in pairs), score.detach()


def _check_no_other_rules(model: nn.Module) -> None:
    """Raise ``RuntimeError`` where rules of another framework are on the model: both would act on one map."""
    for path, module in model.named_modules():
        for table in (module._forward_pre_hooks, module._forward_hooks):
            names = {str(getattr(hook, "__module__", "")).partition(".")[0] for hook in table.values()}
            if "zennit" in names:
                raise RuntimeError(
                    f"{path or 'the model'} has a rule of zennit on it: both would act on one map. Leave the context "
                    "of the composite first (an Explainer keeps one open), or explain a copy of the model."
                )


def _is_differentiable(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _check_differentiable(inputs: tuple[Tensor, ...]) -> None:
    kinds = [str(value.dtype) for value in inputs if not _is_differentiable(value)]
    if kinds:
        raise TypeError(
            f"inputs hold integers ({', '.join(kinds)}), which have no relevance of their own: use LayerLRP at the "
            "layer that looks them up, LayerLRP(model, model.embedding), whose output has; what is not to be "
            "explained goes into additional_forward_args."
        )


def _likeness(arguments: Values | None) -> Values | None:
    """Return what two calls have in common that a trace with values holds for both of."""
    if arguments is None:
        return None
    return tuple((a.shape, a.dtype) if isinstance(a, Tensor) else (type(a), repr(a)) for a in arguments)
