"""Trace a model or one container: symbolically, and with values where that does not work."""

import copy
import functools
import inspect
import threading
import types
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import fx, nn

from canon_bridge.core.alerts import alert
from canon_bridge.core.forwards import bound_function
from canon_bridge.core.trace.flow import DATA, CannotBeWrittenError, Flow, TracingError, is_proxy, pattern
from canon_bridge.core.trace.patches import patched
from canon_bridge.core.trace.preserve import Kept, gpus_of, preserved
from canon_bridge.core.trace.tracer import SymbolicTracer, ValueTracer, detached

MakeTracer = Callable[[], SymbolicTracer]

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
    TypeError
        If forward does not take so many arguments.
    """
    if arguments is not None:
        signature = inspect.signature(model.forward)
        try:
            signature.bind(*arguments)
        except TypeError as error:
            raise TypeError(
                f"{type(model).__name__} cannot be called with {len(arguments)} positional arguments ({error}); "
                f"example_inputs are those of its forward{signature}."
            ) from None
    bound = bound_function(model)
    if bound is not None and bound[1]:
        return _nothing_to_find()
    inputs = None if arguments is None else (arguments, dict[str, Any]())
    # First with numbers as data, so that the model can be called with others.
    tracers: list[MakeTracer] = [
        partial(SymbolicTracer, inputs=inputs, fixed_numbers=False),
        partial(SymbolicTracer, inputs=inputs),
    ]
    if inputs is None and _takes_any_number(model):  # one tensor, if that works; the new forward refuses others
        tracers.insert(0, partial(SymbolicTracer, inputs=((DATA,), dict[str, Any]())))
    if inputs is not None:
        tracers.append(partial(ValueTracer, inputs=inputs))
    return _first_that_works(model, tracers)


def trace_locally(container: nn.Module, path: str, whole: Flow) -> Flow:
    """Trace the forward of one container alone, with its children as leaves.

    Parameters
    ----------
    container : nn.Module
        The module whose forward to trace.
    path : str
        Its name in the canonical model.
    whole : Flow
        The flow of the whole model: it knows what the container is called with, and what its children return.

    Raises
    ------
    TracingError
        If that does not work, or a new forward would differ from the container's own.
    """
    inputs = whole.inputs.get(path)
    # The root as it was traced before; a container gets the numbers that its parent writes, always the same.
    fixed = path != "" or any(type(value) in (int, float) for value in whole.expected.values())
    tracers: list[MakeTracer] = [partial(SymbolicTracer, path, inputs, fixed, whole)]
    if inputs is not None and whole.values:
        tracers.append(partial(ValueTracer, path, inputs, whole=whole))
    return _first_that_works(container, tracers)


def _takes_any_number(model: nn.Module) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


def _first_that_works(root: nn.Module, tracers: list[MakeTracer]) -> Flow:
    """Return the flow of the first tracer that can trace it."""
    with _TRACING:
        for make in tracers[:-1]:
            try:
                return _traced(root, make)
            except TracingError:
                continue
        return _traced(root, tracers[-1])


def _traced(root: nn.Module, make: MakeTracer) -> Flow:
    """Return the flow of one tracer; what a model asks of how it is run is answered in the other way, too."""
    tracer = make()
    flow = _run(root, tracer)
    for question, owners in tracer.asked.items() if tracer.inline else ():
        otherwise = make()
        otherwise.answered_otherwise = question
        try:
            is_same = _calls(_run(root, otherwise).graph) == _calls(flow.graph)
        except TracingError:
            is_same = False
        if not is_same:
            flow.depends_on.add(question)
            flow.decided |= owners
            for owner in owners:
                flow.checks.setdefault(owner, []).append(lambda: None)
        if otherwise.has_tensor_hooks:
            alert(
                f"the forward of {type(root).__name__} registers hooks on tensors where a gradient is wanted; in the "
                "canonical model it does not. Register them on modules, from outside (register_full_backward_hook).",
                UserWarning,
            )
    return flow


def _calls(graph: fx.Graph) -> list[str]:
    """Return what is called with what, in order; a list of arguments is as good as a tuple."""

    def words(value: Any) -> str:
        return f"({', '.join(map(words, value))})" if isinstance(value, tuple | list) else str(value)

    return [
        f"{node.op} {node._pretty_print_target(node.target)} {words(node.args)} {node.kwargs}" for node in graph.nodes
    ]


def _run(root: nn.Module, tracer: SymbolicTracer) -> Flow:
    path, original, written = tracer.frames[0].owner, tracer.frames[0].original, tracer.whole.written
    try:
        twin = _with_forward_in_class(root, path)
        with ExitStack() as stack:
            if tracer.inline or isinstance(tracer, ValueTracer):  # others set nothing, and draw no numbers
                stack.enter_context(_process_state(root))
            if written:  # taken out before it is noted what forward writes
                stack.enter_context(preserved(root, twin))
                _forget(root, original, written)
            kept = stack.enter_context(preserved(root, twin))
            with (
                patched(tracer, root),
                torch.inference_mode(False),
                torch.enable_grad(),
            ):
                tracer.former, tracer.generators = dict(kept.former), dict(kept.generators)
                tracer.trace(twin)
            if tracer.inline:
                tracer.flow.written = _written_by_all(root, kept)
                tracer.flow.former = kept.contents_changed()
            else:
                _put_out(tracer, twin, kept)
                _detach(tracer.flow)
    except Exception as error:
        place = tracer.frames[-1].original
        where = root if place == original else _inside(root, place, original)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = (
            "not even on example_inputs; rewrite this forward with plain operations on tensors."
            if isinstance(tracer, ValueTracer)
            else "it probably depends on the values, the shape, the length or the type of its input. Pass "
            "example_inputs=(x,) to trace it with values, or rewrite this forward without such control flow."
        )
        what = f"the forward of {place or 'the model'} ({type(where).__name__})"
        if isinstance(error, CannotBeWrittenError):
            raise TracingError(f"{what} cannot be written anew: {error}") from error
        raise TracingError(f"{what} cannot be traced: {reason}; {advice}") from error
    return tracer.flow


@contextmanager
def _process_state(root: nn.Module) -> Generator[None]:
    """Restore what a forward may set for the whole process."""
    dtype = torch.get_default_dtype()
    try:
        with torch.random.fork_rng(gpus_of(root.parameters())):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _inside(root: nn.Module, place: str, original: str) -> nn.Module:
    return root.get_submodule(place.removeprefix(f"{original}.") if original else place)


def _forget(root: nn.Module, original: str, written: dict[str, set[str]]) -> None:
    """Take out what forwards write on modules: a forward that reads it must not take the former for a constant."""
    for path, names in written.items():
        if original and path != original and not path.startswith(f"{original}."):
            continue
        module = _inside(root, path, original) if path != original else root
        for name in names:
            vars(module).pop(name, None)


def _written_by_all(root: nn.Module, kept: Kept) -> dict[str, set[str]]:
    changed = kept.attributes()
    return {path: changed[module] for path, module in root.named_modules() if module in changed}


def _put_out(tracer: SymbolicTracer, root: nn.Module, kept: Kept) -> None:
    """Have the graph of a container put out what it wrote on itself, after its result; refuse any other write.

    Into lists and dictionaries that it is called with it writes itself.
    """
    changed = kept.attributes()
    names = sorted(changed.pop(root, set()))
    values = [vars(root).get(name, DATA) for name in names]
    is_lost = any(pattern(value) is DATA and not is_proxy(value) for value in values)
    if changed or is_lost or kept.contents_changed():
        raise CannotBeWrittenError(
            "it writes on other modules, or into a list or a dictionary of a module, which a new forward would not; "
            "return what is to be kept, write it to attributes of the module itself, or read it by a forward hook."
        )
    (output,) = [node for node in tracer.flow.graph.nodes if node.op == "output"]
    tracer.fill_arguments()
    if names:
        output.args = ((output.args[0], *map(tracer.create_arg, values)),)
        tracer.flow.written = dict.fromkeys(names)
    last = next(iter(reversed(tracer.flow.graph.nodes)))
    if last is not output:
        last.append(output)


def _detach(flow: Flow) -> None:
    """Have a graph detach what was computed with gradients switched off, where it is read with gradients.

    A new forward does not switch them off: rules hook modules by their gradients.
    """
    for node in flow.without_gradient:
        readers = [user for user in node.users if user not in flow.without_gradient]
        if readers:
            with flow.graph.inserting_after(node):
                result = flow.graph.call_function(detached, (node,))
            for user in readers:
                user.replace_input_with(node, result)


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
        function: Any = _plain(bound[0])
    elif isinstance(forward, types.MethodType) and forward.__self__ is root:
        function = forward.__func__
    else:
        raise TracingError(f"{path or 'the model'} has a forward on the instance that is not a bound method")
    twin = copy.copy(root)
    del vars(twin)["forward"]
    twin.__class__ = type(type(root).__name__, (type(root),), {"forward": function})
    return twin


def _plain(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function, which fx wants for the forward of a class."""
    if isinstance(forward, types.FunctionType):
        return forward

    @functools.wraps(inspect.unwrap(forward))
    def function(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return function


def _nothing_to_find() -> Flow:
    """Return the flow of a single layer that an outer canonization has changed: it contains no calls."""
    graph = fx.Graph()
    graph.output(graph.placeholder("input"))
    return Flow(graph, owners=[""])
