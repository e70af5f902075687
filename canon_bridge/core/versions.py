"""What the versions of torch differ in, all in one place: asked of torch itself, by trying, and not of its number."""

import types
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Where functions stand whose arguments C++ reads; some stand in several places.
_HOMES: Final = (torch, F, torch.linalg, torch.fft, torch.special)
_KINDS: Final = ("_VariableFunctions", "_nn", "_linalg", "_fft", "_special")
_PARSED: Final = tuple(getattr(torch._C, kind) for kind in _KINDS)


class _Anything:
    """Takes part in calls as proxies do, by ``__torch_function__``, and is no tensor, number or type."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls


@cache
def takes_proxies_everywhere() -> bool:
    """Return whether torch hands a call to ``__torch_function__`` wherever a proxy stands among the arguments.

    Older versions (2.6) do so only where a tensor belongs; a size, a dimension or a dtype is a TypeError there.
    """
    anything: Any = _Anything()
    try:
        results = torch.full((2,), 0.0, dtype=anything), F.avg_pool2d(anything, anything), torch.cat(anything)
        return all(result is _Anything for result in results)
    except TypeError:
        return False


@cache
def buffers_take_proxies() -> bool:
    """Return whether a proxy can be assigned to a buffer, as ``self.count += 1`` does in a trace; 2.6 refuses it."""
    module = nn.Module()
    module.register_buffer("value", None)
    try:
        setattr(module, "value", _Anything())  # noqa: B010 - which the type checker refuses, too
    except TypeError:
        return False
    return True


def parsed_functions() -> Iterator[tuple[Any, str, Any]]:
    """Yield the functions whose arguments C++ reads: the module that holds it, the name, and the function itself."""
    # Not in torch._C, where torch itself looks up what it hands to __torch_function__.
    known = {id(getattr(home, name)) for home in _PARSED for name in dir(home)}
    for home in _HOMES:
        for name, value in list(vars(home).items()):
            is_public = home is not torch or not name.startswith("_")
            if is_public and isinstance(value, types.BuiltinFunctionType) and id(value) in known:
                yield home, name, value


def parsed_methods() -> Iterator[tuple[str, Any]]:
    """Yield the methods of tensors whose arguments C++ reads, by name; operators hand on all calls in any version."""
    for name, value in vars(torch._C.TensorBase).items():
        if isinstance(value, types.MethodDescriptorType) and not name.startswith("_") and name not in vars(Tensor):
            yield name, value
