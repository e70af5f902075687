"""The rules of a preset on the modules of a model, for the length of a block."""

from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import Any

from captum.attr._utils.lrp_rules import EpsilonRule, IdentityRule, PropagationRule
from torch import nn

from canon_bridge.captum import rules
from canon_bridge.captum.maps import Preset
from canon_bridge.captum.rules.base import Kept
from canon_bridge.core import Edits, Kind, kind_for_rules


@contextmanager
def attached(
    model: nn.Module, preset: Preset, is_canonical: bool, verbose: bool = False, copied: Collection[str] | None = None
) -> Generator[Kept]:
    """Attach the rule of each module to it, for the length of the block; one that the user has set takes precedence.

    Parameters
    ----------
    model : nn.Module
        The model.
    preset : Preset
        Which rule each module gets.
    is_canonical : bool
        Whether the model is canonical: what still works in place then has to, and gets no rule, see ``Plan.uncovered``.
        In another model it works out of place, for rules need the input as it was.
    verbose : bool, default False
        Whether to print which rule is on which module.
    copied : collection of str, optional
        The modules whose arguments are overwritten after them, by their paths; by default it may be any.

    Yields
    ------
    Kept
        What the rules keep of the arguments.

    Raises
    ------
    TypeError
        For a linear layer without a rule, and for a rule that is made for Captum's own LRP.
    """
    handles: list[Any] = []
    edits = Edits()
    try:
        chosen = preset.assign(model)
        without: set[type[nn.Module]] = set()  # types that need none
        for name, module in model.named_modules():
            in_place = bool(vars(module).get("inplace"))
            if in_place and is_canonical:
                continue
            rule = vars(module).get("rule")
            rule = chosen.get(name) if rule is None else _own_rule(rule, name)
            if rule is None and type(module) not in without:
                _check_needs_none(name, module, preset.name)
                without.add(type(module))
            if rule is not None:
                handles += rule.attach(module)
                if in_place:
                    edits.set(module, "__dict__", "inplace", False)
                if verbose:
                    print(f"{type(rule).__name__} on {name} ({type(module).__name__})")  # noqa: T201 - what verbose asks for
        kept = Kept(None if copied is None else {module for path, module in model.named_modules() if path in copied})
        with kept.during():
            yield kept
    finally:
        for handle in handles:
            handle.remove()
        edits.undo()


def _check_needs_none(name: str, module: nn.Module, preset: str) -> None:
    if kind_for_rules(module) is Kind.LINEAR_LAYER:
        raise TypeError(
            f"{name} ({type(module).__name__}) is a linear layer, and the preset {preset!r} has no rule for it; its "
            "gradient would not be relevance. Give the preset an entry, for example "
            f"`layer_map=[({type(module).__name__}, rules.Epsilon())]`."
        )


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
