"""Which entry of a table of module types a module belongs to.

Floor 0: imports torch alone. Tables are keyed by type, or by the qualified name of a type in a package that need not
be installed, ``"package.module.Type"``.
"""

import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, TypeVar

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

Kind = type[nn.Module] | str
T = TypeVar("T")

# fmt: off
# What a subclass may define anew and still compute what its base class computes.
_HARMLESS: Final = frozenset(
    {
        "__abstractmethods__", "__annotate__", "__annotate_func__", "__annotations__", "__annotations_cache__",
        "__class_getitem__",
        "__constants__", "__dict__", "__doc__", "__firstlineno__", "__getstate__", "__init__", "__init_subclass__",
        "__module__", "__orig_bases__", "__parameters__", "__qualname__", "__reduce__", "__repr__", "__setstate__",
        "__static_attributes__", "__str__", "__weakref__", "_abc_impl", "_load_from_state_dict",
        "_save_to_state_dict", "_version", "extra_repr", "reset_parameters", "reset_running_stats",
    }
)
# fmt: on


def find_kind(table: Mapping[Kind, T], module: nn.Module) -> T | None:
    """Return the entry of the table for a module, or None.

    A type counts as what it was before parametrizations. A subclass has the entry of its base class where it
    overrides nothing that the base class computes with (usually it has an ``__init__`` of its own), and none else.

    Parameters
    ----------
    table : mapping of (type or str) to an entry
        The table.
    module : nn.Module
        The module; whether a forward was set on the instance is not looked at.
    """
    for kind in _same_as(type_before_parametrizations(module)):
        if kind in table:
            return table[kind]
    return None


@lru_cache(maxsize=4096)
def _same_as(kind: type[nn.Module]) -> tuple[Kind, ...]:
    """Return the type, its qualified name, and base classes that compute the same."""
    same: list[Kind] = [kind, _name(kind)]
    changed = set(vars(kind)) - _HARMLESS
    for base in kind.__mro__[1 : kind.__mro__.index(nn.Module)]:
        used = {*dir(base), *(name for part in base.__mro__ for name in _annotated(part))}
        if changed & used:
            break
        same += (base, _name(base))
        changed |= set(vars(base)) - _HARMLESS
    return tuple(same)


def _annotated(kind: type) -> Iterable[str]:
    """Return the names that the body of a class annotates; from Python 3.14 on they are computed when asked for."""
    if sys.version_info >= (3, 14):
        from annotationlib import Format, get_annotations

        return get_annotations(kind, format=Format.FORWARDREF)
    return vars(kind).get("__annotations__", ())


def _name(kind: type[nn.Module]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
