"""Which rule each module gets: by name, for the first layer, and by type."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from canon_bridge.captum.rules import Rule
from canon_bridge.core import Kind, kind_for_rules

Types = tuple[type[nn.Module], ...]
MakeRule = Rule | Callable[[], Rule]
LayerMap = Iterable[tuple[Kind | type[nn.Module] | Types, MakeRule]]
NameMap = Iterable[tuple[str | Sequence[str], MakeRule]]


@dataclass(frozen=True)
class Preset:
    """Which rule each module of a model gets.

    What ``name_map`` says counts first, then ``first_map`` for the first module that it fits, then ``layer_map``; in
    each the first entry that fits. A module without an entry keeps its gradient, which for max pooling is
    winner-take-all; a linear layer is refused, for its gradient would not be relevance.

    Parameters
    ----------
    layer_map : sequence of (types, rule)
        Module types, a tuple or one, and the rule for modules of these types and their subclasses; or a
        :class:`canon_bridge.Kind` and the rule for all operations of that kind. A rule is copied for each module; a
        class or another function without arguments is called for each.
    first_map : sequence of (types, rule)
        The same for the first module of the model, in the order of ``model.named_modules()``, that is of these types.
    name_map : sequence of (names, rule)
        Names of modules, as ``model.named_modules()`` has them, a sequence or one.
    name : str, default "own"
        For messages.

    Raises
    ------
    TypeError
        For an entry that is not such a pair.

    Examples
    --------
    >>> preset = Preset(
    ...     layer_map=[(nn.Conv2d, rules.Gamma(0.1)), *presets.layer_map_base(), (nn.Linear, rules.Epsilon())],
    ...     first_map=[(nn.Conv2d, rules.ZBox(low=-3, high=3))],
    ...     name_map=[("classifier", rules.Epsilon(1e-2))],
    ... )
    """

    layer_map: LayerMap = ()
    first_map: LayerMap = ()
    name_map: NameMap = ()
    name: str = "own"

    def __post_init__(self) -> None:
        for field, fits, wanted in (
            ("layer_map", _is_type, "types of modules"),
            ("first_map", _is_type, "types of modules"),
            ("name_map", _is_name, "names of modules"),
        ):
            entries = tuple(_entry(field, pair, fits, wanted) for pair in getattr(self, field))
            object.__setattr__(self, field, entries)

    def assign(self, model: nn.Module) -> dict[str, Rule]:
        """Return a new rule for each module that an entry fits, by name."""
        rules: dict[str, Rule] = {}
        by_type: dict[type[nn.Module], MakeRule | None] = {}
        first = True
        for name, module in model.named_modules():
            make = next((rule for names, rule in self.name_map if name in names), None)
            if make is None and first and self.first_map:
                make = _for_type(self.first_map, module)
                first = make is None
            if make is None:
                if type(module) not in by_type:
                    by_type[type(module)] = _for_type(self.layer_map, module)
                make = by_type[type(module)]
            if make is not None:
                rules[name] = make_rule(make)
        return rules


def make_rule(make: MakeRule) -> Rule:
    """Return a new rule: a copy of this one, or what the function returns."""
    if not isinstance(make, Rule):
        return make()
    rule = copy.copy(make)
    rule.relevance_input, rule.relevance_output = {}, {}
    return rule


def _for_type(layer_map: LayerMap, module: nn.Module) -> MakeRule | None:
    kind = kind_for_rules(module)

    def fits(key: Any) -> bool:
        return key is kind if isinstance(key, Kind) else isinstance(module, key)

    return next((rule for keys, rule in layer_map if any(map(fits, cast("tuple[Any, ...]", keys)))), None)


def _is_type(value: Any) -> bool:
    return isinstance(value, Kind) or (isinstance(value, type) and issubclass(value, torch.nn.Module))


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _entry(field: str, pair: Any, fits: Callable[[Any], bool], wanted: str) -> tuple[Any, MakeRule]:
    """Return an entry with a tuple of keys."""
    try:
        keys, rule = pair
    except (TypeError, ValueError):
        raise TypeError(f"{field} has the entry {pair!r}; it must be a pair ({wanted}, rule).") from None
    keys = cast("tuple[Any, ...]", (keys,) if isinstance(keys, str | type | Kind) else tuple(keys))
    if not all(map(fits, keys)):
        raise TypeError(f"{field} has the keys {keys!r}; they must be {wanted}.")
    if not isinstance(rule, Rule) and not callable(rule):
        raise TypeError(
            f"{field} has {rule!r} for a rule; it must be a rule of canon_bridge.captum.rules, or a function that "
            "makes one."
        )
    return keys, cast(MakeRule, rule)
