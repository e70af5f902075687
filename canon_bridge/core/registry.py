"""Tables of module types, and which entry of a table a module has.

A key is a type, or the qualified name of a type in a package that need not be installed, ``"package.module.Type"``.
"""

import sys
from collections import UserDict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Final, TypeVar

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

TypeKey = type[nn.Module] | str
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


class Registry(UserDict[TypeKey, T]):
    """A table with one entry for each type of module.

    Attributes
    ----------
    changes : int
        How often something was registered anywhere; plans that were made before may be others since.
    """

    changes: ClassVar[int] = 0

    def find(self, module: nn.Module) -> T | None:
        """Return the entry for a module, or None; whether a forward was set on the instance is not looked at.

        A type counts as what it was before parametrizations. A subclass has the entry of its base class where it
        overrides nothing that the base class computes with (usually it has an ``__init__`` of its own), and none else.
        """
        return find_entry(self.data, module)

    def by_type(self) -> dict[type[nn.Module], T]:
        """Return the entries of all types, also of those named whose modules are imported by now."""
        found = {key if isinstance(key, type) else _imported(key): entry for key, entry in self.items()}
        return {kind: entry for kind, entry in found.items() if kind is not None}

    def __setitem__(self, key: TypeKey, entry: T) -> None:
        """Put in an entry; raise ``TypeError`` if the key is neither a subclass of ``nn.Module`` nor a full name."""
        _check_key(key)
        self.data[key] = entry
        Registry.changes += 1

    def __delitem__(self, key: TypeKey) -> None:
        del self.data[key]
        Registry.changes += 1


def find_entry(entries: Mapping[TypeKey, T], module: nn.Module) -> T | None:
    """Return what :meth:`Registry.find` returns, from a plain mapping."""
    # torch asks for an attribute, which on modules takes long where it is missing.
    is_plain = "parametrizations" not in vars(module).get("_modules", ())
    for key in _same_as(type(module) if is_plain else type_before_parametrizations(module)):
        if key in entries:
            return entries[key]
    return None


def _check_key(key: Any) -> None:
    if isinstance(key, str):
        parts = key.split(".")
        if len(parts) > 1 and all(part == part.strip() != "" for part in parts):
            return
    elif isinstance(key, type) and issubclass(key, nn.Module) and key is not nn.Module:
        return
    raise TypeError(
        f"{key!r} is no type of module; it must be a subclass of torch.nn.Module, or the full name of one, "
        '"package.module.Type". What a forward calls as a function is taught with canon_bridge.register_operation.'
    )


def _imported(name: str) -> type[nn.Module] | None:
    home, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(home), attribute, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


@lru_cache(maxsize=4096)
def _same_as(kind: type[nn.Module]) -> tuple[TypeKey, ...]:
    """Return the type, its qualified name, and base classes that compute the same."""
    same: list[TypeKey] = [kind, _name(kind)]
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
