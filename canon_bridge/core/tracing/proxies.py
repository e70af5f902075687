"""Proxies that stand for tensors while a model is traced.

Floor 1: imports ``data``.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from canon_bridge.core.tracing.data import is_tensor

# Attributes of tensors that are tensors or sizes.
ATTRIBUTES = frozenset({"T", "mT", "H", "mH", "data", "real", "imag", "shape", "ndim", "dtype", "device"})


class InPlaceProxy(fx.Proxy):
    """A proxy that records ``x += y`` as the in-place operation that it is (fx records ``x = x + y``).

    It is an instance of Tensor where it stands for one, for models that ask ``isinstance(x, Tensor)``.
    """

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
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
