"""A forward of the package's own on one module, which the copies that ``nn.DataParallel`` makes take over as theirs.

A forward that is set on an instance is bound to that instance; a replica has a shallow copy
of its ``__dict__``, and would compute with the tensors of the original, on another device.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor, nn

from canon_bridge.core.restore import Edits

_REPLICATE: Final = "_replicate_for_data_parallel"


def bind_forward(edits: Edits, module: nn.Module, function: Callable[..., Any], *arguments: object) -> None:
    """Have a module compute ``function(module, *arguments, *inputs)``.

    Parameters
    ----------
    edits : Edits
        The journal that records the writes.
    module : nn.Module
        The module to change.
    function : callable
        The forward. It must read all tensors from the module that it is given, by ``getattr`` or by :func:`tensors`:
        the parameters of a replica are no Parameters.
    arguments : object
        What comes between the module and the inputs; the same for every replica.
    """
    for name, value in forward_slots(module, function, *arguments).items():
        edits.set(module, "__dict__", name, value)


def forward_slots(module: nn.Module, function: Callable[..., Any], *arguments: object) -> dict[str, object]:
    """Return what :func:`bind_forward` writes, for a new module that no journal need restore."""
    return {
        "forward": functools.partial(function, module, *arguments),
        _REPLICATE: functools.partial(_replicate, module),
    }


def bound_function(module: nn.Module) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """Return the function and arguments that were bound to this very module (not to one it is a copy of), or None."""
    forward = vars(module).get("forward")
    if not isinstance(forward, functools.partial) or forward.keywords or forward.args[:1] != (module,):
        return None
    return forward.func, forward.args[1:]


def by_position(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call, by position all that may be: what computes the module again has those alone."""
    if not kwargs:
        return args, kwargs
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args, bound.kwargs


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a module by name; in a replica they are plain attributes."""
    parameters: dict[str, Tensor] = {name: value for name, value in module._parameters.items() if value is not None}
    if "_is_replica" in module.__dict__:
        parameters |= {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
    return parameters


def _replicate(module: nn.Module) -> nn.Module:
    replica = type(module)._replicate_for_data_parallel(module)
    bound = bound_function(module)
    if bound is not None:
        function, arguments = bound
        vars(replica).update(forward_slots(replica, function, *arguments))
    return replica
