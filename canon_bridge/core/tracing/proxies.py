"""Proxies that stand for tensors while a model is traced.

Floor 1: imports ``data``.
"""

import builtins
import functools
import operator
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from torch import Tensor, fx

from canon_bridge.core.tracing.data import is_tensor

_isinstance: Final = builtins.isinstance

# Attributes of tensors that are tensors or sizes.
ATTRIBUTES = frozenset({"T", "mT", "H", "mH", "data", "real", "imag", "shape", "ndim", "dtype", "device"})


class InPlaceProxy(fx.Proxy):
    """A proxy that records ``x += y`` as the in-place operation that it is (fx records ``x = x + y``)."""

    def stands_for(self) -> type:
        """Return the type that a model is to see when it asks ``isinstance(x, Tensor)``."""
        return Tensor if is_tensor(self.node) else type(self)

    def __getattr__(self, k: str) -> Any:
        if k == "requires_grad":
            return self.without_gradient()
        if k in ("_is_param", "_is_buffer"):
            return False
        if k in ATTRIBUTES:  # fx would return a proxy without in-place operators
            return self.tracer.create_proxy("call_function", getattr, (self, k), {})
        return super().__getattr__(k)

    def without_gradient(self) -> bool:
        """Return that no gradient is wanted, and have the forward that asked rewritten.

        What a forward does for gradients alone (checkpoints) is no data flow, and runs modules twice.
        """
        tracer: Any = self.tracer
        tracer.decided.add(tracer.frames[-1].owner)
        return False

    def _overwrite(self, target: Callable[..., Any], other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    __iadd__ = functools.partialmethod(_overwrite, operator.iadd)
    __isub__ = functools.partialmethod(_overwrite, operator.isub)
    __imul__ = functools.partialmethod(_overwrite, operator.imul)
    __itruediv__ = functools.partialmethod(_overwrite, operator.itruediv)
    __ifloordiv__ = functools.partialmethod(_overwrite, operator.ifloordiv)
    __ipow__ = functools.partialmethod(_overwrite, operator.ipow)
    __imod__ = functools.partialmethod(_overwrite, operator.imod)


@contextmanager
def taken_for_what_they_stand_for() -> Generator[None]:
    """Make ``isinstance`` of Python take a proxy for what it stands for while the block lasts.

    A ``__class__`` that lies would be believed by the C++ code of torch, too, which then reads memory of no tensor.
    """
    with patch.object(builtins, "isinstance", _is_instance):
        yield


def _is_instance(value: object, kinds: Any) -> bool:
    if _isinstance(value, kinds):
        return True
    return _isinstance(value, InPlaceProxy) and issubclass(value.stands_for(), kinds)
