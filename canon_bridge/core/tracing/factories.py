"""Functions that make tensors, called with sizes that are not known while a model is traced.

Floor 1: imports ``arguments``. ``torch.zeros(x.shape[0], 4)`` and ``torch.tensor(x.shape[1])`` want numbers and know
nothing of proxies; other such functions (``torch.arange``, ``torch.full``, ``x.new_zeros``) record themselves.
"""

import functools
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

import torch
from torch.utils._pytree import tree_leaves

from canon_bridge.core.tracing.arguments import is_proxy

FACTORIES: Final = ("zeros", "ones", "empty", "rand", "randn", "tensor", "as_tensor", "asarray")


@contextmanager
def recorded_factories() -> Generator[None]:
    """Make functions of torch that make tensors record their calls with proxies while the block lasts."""
    with ExitStack() as stack:
        for name in FACTORIES:
            stack.enter_context(patch.object(torch, name, _recorded(getattr(torch, name))))
        yield


def _recorded(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = next(filter(is_proxy, tree_leaves((args, kwargs))), None)
        if proxy is None:
            return factory(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", factory, args, kwargs)

    return call
