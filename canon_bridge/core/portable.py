"""Functions that pickle does not find by their name, and where they are found: for models that are saved."""

import functools
import importlib
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F

_PLACES: Final = (F, torch, torch.special, torch.Tensor)
_APPLY: Final = vars(torch.autograd.Function)["apply"]
_SCRIPTED: Final = torch.jit.ScriptFunction.__call__


@functools.lru_cache(maxsize=1024)  # a call is found again by its function
def named(called: Any, name: str) -> Callable[..., Any]:
    """Return a function, which fx can write into a forward, that calls an autograd function or a scripted one."""

    def function(*args: Any, **kwargs: Any) -> Any:
        if isinstance(called, type):
            return _APPLY.__get__(None, called)(*args, **kwargs)
        return _SCRIPTED(called, *args, **kwargs)

    function.__name__ = function.__qualname__ = name
    function.calls = called  # pyright: ignore[reportFunctionMemberAccess]
    return function


def portable(value: Any) -> Any:
    """Return the value if pickle can store it, else something that is called like it and can be stored.

    That raises ``pickle.PicklingError`` when it is stored, if the value cannot be found again by a name.
    """
    try:
        pickle.dumps(value)
    except Exception:  # whatever pickle and the value raise
        return Portable(value)
    return value


class Portable:
    """A module, or a function that pickle does not find by its name, and where it is found."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return self.found(*args, **kwargs)

    def __repr__(self) -> str:
        return str(getattr(self.found, "__name__", self.found))

    def __reduce__(self) -> tuple[Any, ...]:
        return _find, self._place()

    def _place(self) -> tuple[Any, ...]:
        found = self.found
        if isinstance(found, types.ModuleType):
            return "module", found.__name__
        if isinstance(found, torch._ops.OpOverload):
            return "operator", *found.name().split("::"), found._overloadname
        if isinstance(found, torch._ops.OpOverloadPacket):
            return "operator", *found._qualified_op_name.split("::")
        called = getattr(found, "calls", None)
        if isinstance(called, type):
            return "autograd", called, found.__name__
        home = sys.modules.get(getattr(found, "__module__", None) or "")
        for place in (*_PLACES, *([home] if home else [])):
            for name, value in list(vars(place).items()):
                if value is found:
                    return "attribute", place.__name__ if isinstance(place, types.ModuleType) else place, name
        raise pickle.PicklingError(
            f"{found!r} is called by a forward that canonization wrote, and cannot be found by a name when that is "
            "loaded: define it at the top level of a module (no lambda, no function in a function), or save the "
            "state_dict() instead."
        )


def _find(kind: str, home: Any, name: str = "", *more: str) -> Any:
    """Return what a :class:`Portable` stood for."""
    if kind == "module":
        return Portable(importlib.import_module(home))
    if kind == "operator":
        packet = getattr(getattr(torch.ops, home), name.partition(".")[0])
        return Portable(getattr(packet, more[0]) if more else packet)
    if kind == "autograd":
        return Portable(named(home, name))
    return Portable(vars(importlib.import_module(home) if isinstance(home, str) else home)[name])
