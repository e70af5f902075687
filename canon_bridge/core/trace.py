"""Trace a model or one container: symbolically, and with values where that does not work.

Floor 3: imports ``graph``, ``values`` and ``errors``.
"""

import copy
import types
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from canon_bridge.core.errors import TracingError
from canon_bridge.core.graph import Flow, Inputs, SymbolicTracer
from canon_bridge.core.values import ValueTracer


def trace(model: nn.Module, arguments: tuple[Any, ...] | None = None) -> Flow:
    """Trace the data flow of the whole model, containers inlined, modules of torch.nn as leaves.

    Parameters
    ----------
    model : nn.Module
        The root; it is not changed and its hooks do not run.
    arguments : tuple, optional
        Positional arguments: where forward depends on values, lengths or types, it is traced on these.

    Raises
    ------
    TracingError
        If forward depends on values (``if x.sum() > 0``), on the length or the type of an input, or otherwise
        cannot run on symbolic values, nor on ``arguments``. The message names the module and the cause.
    """
    inputs = None if arguments is None else (arguments, dict[str, Any]())
    return _trace(model, "", inputs, inline=True)


def trace_locally(container: nn.Module, path: str, inputs: Inputs | None = None) -> Flow:
    """Trace the forward of one container alone, with its children as leaves.

    Parameters
    ----------
    container : nn.Module
        The module whose forward to trace.
    path : str
        Its name in the model.
    inputs : Inputs, optional
        What it was called with when the whole model was traced with values.
    """
    return _trace(container, path, inputs, inline=False)


def _trace(root: nn.Module, path: str, inputs: Inputs | None, inline: bool) -> Flow:
    try:
        return _run(root, path, SymbolicTracer(inline, inputs), False)
    except TracingError:
        if inputs is None or not _has_values(inputs):
            raise
    return _run(root, path, ValueTracer(inline, inputs), True)


def _has_values(inputs: Inputs) -> bool:
    """Return whether the inputs are values; those of a container in a symbolic trace are proxies."""
    return not any(issubclass(type(leaf), fx.Proxy) for leaf in tree_leaves(inputs))


def _run(root: nn.Module, path: str, tracer: SymbolicTracer, with_values: bool) -> Flow:
    tracer.frames[0].owner = path
    try:
        with torch.no_grad():
            graph = tracer.trace(_with_forward_in_class(root, path))
    except Exception as error:
        place = tracer.frames[-1].owner
        where = root if place == path else root.get_submodule(place)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = (
            "it probably depends on the values, the shape, the length or the type of its input. Pass "
            "example_inputs=(x,) to trace it with values, or rewrite this forward without such control flow."
            if not with_values
            else "not even on example_inputs; rewrite this forward with plain operations on tensors."
        )
        raise TracingError(
            f"the forward of {place or 'the model'} ({type(where).__name__}) cannot be traced: {reason}; {advice}"
        ) from error
    return Flow(graph, tracer.sites, tracer.constants, tracer.flags, tracer.inputs)


def _with_forward_in_class(root: nn.Module, path: str) -> nn.Module:
    """Return the root, or a shallow twin of it whose class has the forward that was set on the instance.

    fx looks up ``type(root).forward`` and would overlook a forward on the instance (one that canonization or the
    user put there).
    """
    forward = vars(root).get("forward")
    if forward is None:
        return root
    if not isinstance(forward, types.MethodType) or forward.__self__ is not root:
        raise TracingError(f"{path or 'the model'} has a forward on the instance that is not a bound method")
    twin = copy.copy(root)
    del vars(twin)["forward"]
    twin.__class__ = type(type(root).__name__, (type(root),), {"forward": forward.__func__})
    return twin
