"""Calls that cannot record themselves while a model is traced, because torch takes no proxy for an argument of theirs.

Floor 1: imports ``arguments``. ``torch.zeros(x.shape[0], 4)`` and ``torch.tensor(x.shape[1])`` want numbers (other
functions that make tensors, ``torch.arange`` or ``x.new_zeros``, record themselves); custom autograd functions and
scripted functions want tensors. The latter are operations that nothing is known about.
"""

import functools
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

import torch
from torch.utils._pytree import tree_leaves

from canon_bridge.core.tracing.arguments import is_proxy

_APPLY: Final = vars(torch.autograd.Function)["apply"]
_SCRIPTED: Final = torch.jit.ScriptFunction.__call__
FACTORIES: Final = ("zeros", "ones", "empty", "rand", "randn", "tensor", "as_tensor", "asarray")


@contextmanager
def recorded_calls() -> Generator[None]:
    """Make such calls record themselves where a proxy is among their arguments, while the block lasts."""
    with ExitStack() as stack:
        for name in FACTORIES:
            stack.enter_context(patch.object(torch, name, _recorded(getattr(torch, name))))
        stack.enter_context(patch.object(torch.autograd.Function, "apply", _Apply()))
        stack.enter_context(patch.object(torch.jit.ScriptFunction, "__call__", _call_scripted))
        yield


class _Apply:
    """The class method ``torch.autograd.Function.apply``, recorded as a call of a function with the class's name."""

    def __get__(self, instance: object, owner: type[torch.autograd.Function]) -> Callable[..., Any]:
        return _recorded(_named(owner, owner.__name__))


def _call_scripted(self: Any, *args: Any, **kwargs: Any) -> Any:
    return _recorded(_named(self, self.name))(*args, **kwargs)


@functools.lru_cache(maxsize=1024)  # a call is found again by its function
def _named(called: Any, name: str) -> Callable[..., Any]:
    """Return a function, which fx can write into a forward, that calls an autograd function or a scripted one."""

    def function(*args: Any, **kwargs: Any) -> Any:
        if isinstance(called, type):
            return _APPLY.__get__(None, called)(*args, **kwargs)
        return _SCRIPTED(called, *args, **kwargs)

    function.__name__ = function.__qualname__ = name
    return function


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = next(filter(is_proxy, tree_leaves((args, kwargs))), None)
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, kwargs)

    return call
