"""What has to be other than torch and Python have it while a model is traced, all in one place, and for that long only.

Calls that cannot record themselves because torch takes no proxy there, in older versions wherever no tensor belongs;
``isinstance``, ``type`` and ``callable`` in the packages that the model's classes come from and in all that use torch;
activation checkpoints, which run their function a second time in the backward pass.
"""

import functools
import random
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.variable import VariableMeta
from torch.fx.proxy import Attribute
from torch.nn.utils import stateless
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves

from canon_bridge.core import versions
from canon_bridge.core.operations import is_random, setitem_
from canon_bridge.core.portable import named
from canon_bridge.core.trace.flow import CannotBeWrittenError, is_proxy

# They want numbers, or a type; other functions that make tensors record themselves, and so do other methods.
_FACTORIES: Final = ("zeros", "ones", "empty", "rand", "randn", "tensor", "as_tensor", "asarray", "finfo", "iinfo")
_METHODS: Final = ("expand", "view", "reshape", "repeat", "tile", "new_zeros", "new_ones", "new_empty", "narrow")
_CHECK: Final = torch._check
_TYPE_NAME: Final = torch.typename
_IS_INSTANCE: Final = torch.jit.isinstance
_SET_ATTRIBUTE: Final = nn.Module.__setattr__
_ABSENT: Final = object()
# What changes how later operations compute.
_EFFECTS: Final = (
    (torch, "manual_seed"),
    (torch, "set_rng_state"),
    (torch, "set_default_dtype"),
    (torch.autocast, "__enter__"),
)
# What says how a model is run.
_STATE: Final = ("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "is_autocast_cpu_enabled")
_OWN: Final = frozenset({"torch", "builtins", "canon_bridge"})
_GENERATORS: Final = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")


@contextmanager
def patched(tracer: Any, root: nn.Module) -> Generator[None]:
    """Make a model ready to be traced, for the length of the block.

    Parameters
    ----------
    tracer : SymbolicTracer
        What records.
    root : nn.Module
        The model.
    """
    # Functions are known by themselves: they, and who has imported some, are looked up before others stand for them.
    is_random(patched)
    is_tensor_method_or_property(patched)
    parsed, namespaces = _parsed(), list(_namespaces(root))
    formers: list[tuple[Any, str, Any]] = []
    with ExitStack() as stack:
        for _ in range(2):  # what an interrupt cuts short in one is done by the other
            stack.callback(_restore, formers)
        for holder, name, replacement in (*parsed, *_replacements(tracer)):
            formers.append((holder, name, vars(holder).get(name, _ABSENT)))
            setattr(holder, name, replacement)
        imported = {id(replacement.stands_in_for): replacement for _, _, replacement in parsed}
        for namespace, drawing in namespaces:
            names = {n: imported[id(f)] for n, f in list(namespace.items()) if id(f) in imported} if imported else {}
            if tracer.inline:  # a container that is traced alone draws none, or it would not be
                names |= {name: _refused(tracer, namespace[name]) for name in drawing if callable(namespace.get(name))}
            for name, replacement in {**names, **_QUESTIONS}.items():
                formers.append((namespace, name, namespace.get(name, _ABSENT)))
                namespace[name] = replacement
        stack.enter_context(_Recording(tracer))
        yield


def _replacements(tracer: Any) -> list[tuple[Any, str, Any]]:
    """Return what stands in for what, by the class or package that holds it and the name."""
    return [
        *((torch, name, _recorded(getattr(torch, name))) for name in _FACTORIES),
        *((Tensor, name, _recorded_method(name, getattr(Tensor, name))) for name in _METHODS),
        (torch.autograd.Function, "apply", _Apply()),
        (torch.jit.ScriptFunction, "__call__", _call_scripted),
        (torch, "is_tensor", _is_tensor),
        (torch, "typename", _type_name),
        (torch.jit, "isinstance", _is_scripted_instance),
        (torch, "_check", _check),
        *(() if versions.buffers_take_proxies() else [(nn.Module, "__setattr__", _set_attribute)]),
        (VariableMeta, "__call__", _make_variable),
        (stateless, "_reparametrize_module", _exchanged(tracer)),
        *((holder, name, _lost(tracer, getattr(holder, name))) for holder, name in _EFFECTS),
        *((torch, name, _answered(tracer, getattr(torch, name))) for name in _STATE),
        *((home, name, _refused(tracer, function)) for home, name, function in (_drawing() if tracer.inline else ())),
        (torch, "Generator", _generators(tracer)),
        *_checkpoints(tracer),
    ]


@functools.cache
def _parsed() -> list[tuple[Any, str, Any]]:
    """Return what stands in for all that C++ parses, in the versions of torch that take proxies for tensors alone."""
    if versions.takes_proxies_everywhere():
        return []
    return [
        *((home, name, _recorded(function)) for home, name, function in versions.parsed_functions()),
        *((Tensor, name, _recorded_method(name, method)) for name, method in versions.parsed_methods()),
    ]


def _restore(formers: list[tuple[Any, str, Any]]) -> None:
    """Put back what names stood for before, in classes, packages and the globals of packages; a repeat does no harm."""
    for holder, name, former in reversed(formers):
        if isinstance(holder, dict):
            if former is _ABSENT:
                holder.pop(name, None)
            else:
                holder[name] = former
        elif former is not _ABSENT:
            setattr(holder, name, former)
        elif name in vars(holder):
            delattr(holder, name)


class _Recording(TorchFunctionMode):
    """Record calls on tensors that forward has made, with a proxy among the arguments or one that was written to.

    And random ones: what they draw is no constant. It has the tracer know whether forward has switched gradients off.
    """

    def __init__(self, tracer: Any) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled:
            self.tracer.switched_off = not args[0]
        func = getattr(func, "stands_in_for", func)  # torch looks methods up where others stand in their places
        is_recorded = is_random(func) or any(map(self.tracer.stands_for_data, tree_leaves((args, kwargs))))
        if self.tracer.is_computing or not is_recorded:
            return func(*args, **kwargs)
        if func is Tensor.__setitem__:
            return self.tracer.create_proxy("call_function", setitem_, args, kwargs)
        if is_tensor_method_or_property(func):
            return self.tracer.create_proxy("call_method", func.__name__, args, kwargs)
        return self.tracer.create_proxy("call_function", func, args, kwargs)


class _Apply:
    """The class method ``torch.autograd.Function.apply``, recorded as a call of a function with the class's name."""

    def __get__(self, instance: object, owner: type[torch.autograd.Function]) -> Callable[..., Any]:
        return _recorded(named(owner, owner.__name__))


def _call_scripted(self: Any, *args: Any, **kwargs: Any) -> Any:
    return _recorded(named(self, self.name))(*args, **kwargs)


def _check(cond: Any, message: Any = None) -> None:
    if is_proxy(cond):  # without the message, which may be a function
        cond.tracer.create_proxy("call_function", _CHECK, (cond,), {})
    else:
        _CHECK(cond, message)


def _set_attribute(self: nn.Module, name: str, value: Any) -> None:
    if is_proxy(value) and name in self._buffers:
        self._buffers[name] = value
    else:
        _SET_ATTRIBUTE(self, name, value)


def _lost(tracer: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that changes something for all that comes after it, which a new forward would not."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not (tracer.is_foreign() or tracer.is_computing):
            tracer.refuse_effect(function.__qualname__)
        return function(*args, **kwargs)

    return call


def _answered(tracer: Any, function: Callable[..., bool]) -> Callable[..., bool]:
    """Return a question of how the model is run, which the tracer answers."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> bool:
        return tracer.answer_state((function.__name__, *args, *kwargs.values()), function(*args, **kwargs))

    return call


def _exchanged(tracer: Any) -> Callable[..., Any]:
    """Return what notes the modules whose tensors ``torch.func.functional_call`` exchanges."""
    original = stateless._reparametrize_module

    def exchange(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for part in () if tracer.is_foreign() or tracer.is_computing else module.modules():
            tracer.note_altered(part)
        return original(module, *args, **kwargs)

    return exchange


def _make_variable(self: Any, data: Any = None, *args: Any, **kwargs: Any) -> Any:
    return data if is_proxy(data) else type.__call__(self, *(() if data is None else (data,)), *args, **kwargs)


@functools.lru_cache(maxsize=2048)
def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = next(filter(is_proxy, tree_leaves((args, kwargs))), None)
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, kwargs)

    call.stands_in_for = function  # pyright: ignore[reportAttributeAccessIssue]
    return call


@functools.lru_cache(maxsize=2048)
def _recorded_method(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        proxy = next(filter(is_proxy, tree_leaves((args, kwargs))), None)
        if proxy is None:
            return original(self, *args, **kwargs)
        return proxy.tracer.create_proxy("call_method", name, (self, *args), kwargs)

    call.stands_in_for = original  # pyright: ignore[reportAttributeAccessIssue]
    return call


def _drawing() -> list[tuple[Any, str, Callable[..., Any]]]:
    """Return the functions that draw random numbers without torch, with what holds them and their names."""
    homes = [module for name in ("random", "numpy.random") if (module := sys.modules.get(name)) is not None]
    found = ((home, name, function) for home in homes for name, function in vars(home).items())
    return [entry for entry in found if _is_state(getattr(entry[2], "__self__", None))]


def _is_state(holder: object) -> bool:
    return isinstance(holder, random.Random) or type(holder).__name__ == "RandomState"


def _refused(tracer: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that forward may not call: what it returns would be taken for a constant."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if tracer.is_asked_by_forward(sys._getframe(1)):
            raise CannotBeWrittenError(
                f"it draws random numbers by {function.__qualname__}, which no trace records; draw them by torch "
                "(torch.rand), or outside of the model."
            )
        return function(*args, **kwargs)

    return call


def _generators(tracer: Any) -> type:
    """Return what stands for ``torch.Generator``: one that forward makes is made anew by a new forward."""
    original = torch.Generator

    class Meta(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if not tracer.is_asked_by_forward(sys._getframe(1)):
                return original(*args, **kwargs)
            return tracer.create_proxy("call_function", original, args, kwargs)

        def __instancecheck__(cls, instance: Any) -> bool:
            node = instance.node if is_proxy(instance) else None
            while node is not None and node.op == "call_method":
                node = node.args[0]
            return isinstance(instance, original) or (node is not None and node.target is original)

    return Meta("Generator", (), {})


def _namespaces(root: nn.Module) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Yield the globals of all modules of the packages that the classes of the model come from, and that use torch.

    But for torch's own, and Python's; with the names of what draws random numbers without torch.

    A ``__class__`` of proxies that lies would be believed by the C++ code of torch, too, which then reads memory of no
    tensor; and ``builtins`` are everybody's.
    """
    kinds = {type(module) for module in root.modules()}
    packages = frozenset(base.__module__.partition(".")[0] for kind in kinds for base in kind.__mro__)
    for name, drawing in _modules_with_torch(packages, len(sys.modules), next(reversed(sys.modules))):
        if isinstance(module := sys.modules.get(name), type(sys)):
            yield vars(module), drawing


# Packages of which one module alone asks for the type of a tensor; others check sizes that happen to be known.
_ASKING: Final = {"einops": "einops._backends"}


@functools.lru_cache(maxsize=16)
def _modules_with_torch(packages: frozenset[str], number: int, newest: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the names of the modules; what is imported later comes with another number, or another newest one."""
    drawing = {id(function) for _, _, function in _drawing()}
    return tuple(
        (name, tuple(own for own, value in list(vars(module).items()) if id(value) in drawing))
        for name, module in list(sys.modules.items())
        if (package := name.partition(".")[0]) not in _OWN
        and isinstance(module, type(sys))
        and _ASKING.get(package, name) == name
        and (package in {*packages, *_ASKING} or "torch" in vars(module) or "Tensor" in vars(module))
    )


def _is_instance(value: object, kinds: Any) -> bool:
    return isinstance(value, kinds) or (is_proxy(value) and issubclass(value.stands_for(), kinds))  # pyright: ignore


class _TypeOfType(type):
    """Has :class:`_Type` called and asked as ``type`` is."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is not _Type:
            return super().__call__(*args, **kwargs)
        if len(args) == 1 and is_proxy(args[0]):
            return args[0].stands_for()
        return type(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, type) if cls is _Type else super().__instancecheck__(instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, type) if cls is _Type else super().__subclasscheck__(subclass)


class _Type(type, metaclass=_TypeOfType):
    """What stands for ``type``: of a proxy it says the type of what that stands for."""


def _callable(value: Any) -> bool:
    if issubclass(type(value), Attribute):
        return callable(getattr(Tensor, value.attr, None))
    return not is_proxy(value) and callable(value)


_QUESTIONS: Final[dict[str, Any]] = {"isinstance": _is_instance, "type": _Type, "callable": _callable}


def _is_tensor(value: object) -> bool:
    return _is_instance(value, Tensor)


def _is_scripted_instance(obj: Any, target_type: Any) -> bool:
    is_type = isinstance(target_type, type) and is_proxy(obj)
    return _is_instance(obj, target_type) if is_type else _IS_INSTANCE(obj, target_type)


def _type_name(value: Any, /) -> str:
    return value.type() if is_proxy(value) and _is_tensor(value) else _TYPE_NAME(value)


def _checkpoints(tracer: Any) -> list[tuple[Any, str, Any]]:
    """Return what makes :func:`torch.utils.checkpoint.checkpoint` call its function and nothing else."""

    def reentrant(original: Any) -> Any:
        class Reentrant:
            @staticmethod
            def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
                if tracer.is_foreign():  # a model that trains in another thread
                    return original.apply(function, preserve, *args)
                tracer.note_course()
                return function(*args)

        return Reentrant

    def around(original: Callable[..., Generator[None]]) -> Callable[..., Generator[None]]:
        def generator(*args: Any, **kwargs: Any) -> Generator[None]:
            if tracer.is_foreign():
                yield from original(*args, **kwargs)
                return
            tracer.note_course()
            yield

        return generator

    replacements = {"CheckpointFunction": reentrant, **dict.fromkeys(_GENERATORS, around)}
    return [(checkpoint, n, make(getattr(checkpoint, n))) for n, make in replacements.items() if hasattr(checkpoint, n)]
