"""Trace a model or one container: symbolically, and with values where that does not work.

Floor 9: imports ``graph``, ``values``, ``preserve`` and ``forwards``.
"""

import copy
import threading
import types
from typing import Any, Final

import torch
from torch import fx, nn

from canon_bridge.core.tracing.checkpoints import without_checkpoints
from canon_bridge.core.tracing.errors import TracingError
from canon_bridge.core.tracing.flow import Flow
from canon_bridge.core.tracing.graph import SymbolicTracer
from canon_bridge.core.tracing.preserve import preserved
from canon_bridge.core.tracing.proxies import taken_for_what_they_stand_for
from canon_bridge.core.tracing.recorded import recorded_calls
from canon_bridge.core.tracing.values import ValueTracer
from canon_bridge.core.undo.forwards import bound_function

# fx patches torch for all threads while it traces, so one thread traces at a time.
_TRACING: Final = threading.RLock()


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
    bound = bound_function(model)
    if bound is not None and bound[1]:
        return _nothing_to_find()
    inputs = None if arguments is None else (arguments, dict[str, Any]())
    # First with numbers as data, so that the model can be called with others.
    tracers = [SymbolicTracer(True, "", inputs, fixed_numbers=False), SymbolicTracer(True, "", inputs)]
    if inputs is not None:
        tracers.append(ValueTracer(True, "", inputs, {}, {}))
    return _first_that_works(model, tracers)


def trace_locally(container: nn.Module, path: str, flow: Flow | None = None) -> Flow:
    """Trace the forward of one container alone, with its children as leaves.

    Parameters
    ----------
    container : nn.Module
        The module whose forward to trace.
    path : str
        Its name in the model.
    flow : Flow, optional
        The flow of the whole model: it knows what the container is called with, and what its children return.

    Raises
    ------
    TracingError
        If that does not work, or a new forward would differ from the container's own.
    """
    inputs, returns = (flow.inputs.get(path), flow.returns) if flow else (None, {})
    # The root as it was traced before; a container gets the numbers that its parent writes, always the same.
    fixed = path != "" or (flow is not None and any(type(value) in (int, float) for value in flow.expected.values()))
    tracers = [SymbolicTracer(False, path, inputs, returns, fixed)]
    if inputs is not None and flow is not None and flow.values:
        tracers.append(ValueTracer(False, path, inputs, returns, flow.values))
    return _first_that_works(container, tracers)


def _first_that_works(root: nn.Module, tracers: list[SymbolicTracer]) -> Flow:
    with _TRACING:
        for tracer in tracers[:-1]:
            try:
                return _run(root, tracer)
            except TracingError:
                continue
        return _run(root, tracers[-1])


def _run(root: nn.Module, tracer: SymbolicTracer) -> Flow:
    path = tracer.frames[0].owner
    try:
        with (
            preserved(root) as kept,
            without_checkpoints(lambda: tracer.decided.add(tracer.frames[-1].owner)),
            recorded_calls(),
            taken_for_what_they_stand_for(),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            graph = tracer.trace(_with_forward_in_class(root, path))
        if tracer.frames[0].stops_gradients and not tracer.inline:
            raise RuntimeError("it switches gradients off in the middle, which a new forward would not")
        if kept.was_changed and not tracer.inline:
            raise RuntimeError("it writes on its module, which a new forward would not")
    except Exception as error:
        place = tracer.frames[-1].owner
        where = root if place == path else root.get_submodule(place)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = (
            "not even on example_inputs; rewrite this forward with plain operations on tensors."
            if isinstance(tracer, ValueTracer)
            else "it probably depends on the values, the shape, the length or the type of its input. Pass "
            "example_inputs=(x,) to trace it with values, or rewrite this forward without such control flow."
        )
        raise TracingError(
            f"the forward of {place or 'the model'} ({type(where).__name__}) cannot be traced: {reason}; {advice}"
        ) from error
    return Flow(
        graph,
        tracer.sites,
        tracer.constants,
        tracer.expected,
        tracer.inputs,
        tracer.returns,
        tracer.values,
        frozenset(tracer.decided),
    )


def _with_forward_in_class(root: nn.Module, path: str) -> nn.Module:
    """Return the root, or a shallow twin of it whose class has the forward that was set on the instance.

    fx looks up ``type(root).forward`` and would overlook a forward on the instance (one that canonization or the
    user put there).
    """
    forward = vars(root).get("forward")
    if forward is None:
        return root
    bound = bound_function(root)
    if bound is not None:  # the way in which canonization binds a forward
        function: Any = bound[0]
    elif isinstance(forward, types.MethodType) and forward.__self__ is root:
        function = forward.__func__
    else:
        raise TracingError(f"{path or 'the model'} has a forward on the instance that is not a bound method")
    twin = copy.copy(root)
    del vars(twin)["forward"]
    twin.__class__ = type(type(root).__name__, (type(root),), {"forward": function})
    return twin


def _nothing_to_find() -> Flow:
    """Return the flow of a single layer that an outer canonization has changed: it contains no calls."""
    graph = fx.Graph()
    graph.output(graph.placeholder("input"))
    return Flow(graph, {}, {}, {}, {}, {}, {}, frozenset())
