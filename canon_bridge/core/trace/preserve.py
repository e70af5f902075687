"""What forward itself writes on a model while it is traced is taken back."""

import dis
import functools
import inspect
import types
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from canon_bridge.core.restore import paths, refill
from canon_bridge.core.trace.flow import fill

_CONTAINERS: Final = (list, dict, set)
_SIMPLE: Final = frozenset({type(None), bool, int, float, str, tuple, Tensor, nn.Parameter})  # hold nothing
_TABLES: Final = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict))  # torch's own
_NO_STORES: Final = (Tensor, type, types.FunctionType, types.MethodType, types.ModuleType, functools.partial)


class Kept:
    """What the modules of a model were at the beginning of a block: attributes, contents of containers, buffers.

    Containers and plain objects count that modules hold, or that their forwards name (global ones).
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.former = {module: dict(vars(module)) for module in modules}
        own = {id(module) for module in modules}
        pairs = [pair for former in self.former.values() for pair in former.items() if type(pair[1]) not in _SIMPLE]
        contents = {id(value): value for name, value in pairs if name in _TABLES}
        values = [value for name, value in pairs if name not in _TABLES]
        values += [value for kind in {type(module) for module in modules} for value in _shared_by(kind)]
        contents |= {id(content): content for value in values for content in _contents(value, own)}
        self._contents = [(content, content.copy() if content else None) for content in contents.values()]
        buffers = {id(b): b for module in modules for b in vars(module)["_buffers"].values() if b is not None}
        self._buffers = [(buffer, _version(buffer), buffer.detach().clone()) for buffer in buffers.values()]
        generators = dict.fromkeys(value for value in values if isinstance(value, torch.Generator))
        self.generators = {generator: generator.get_state() for generator in generators}

    def attributes(self) -> dict[nn.Module, set[str]]:
        """Return the names of the attributes that are other objects now, or new, or gone, by module."""
        found: dict[nn.Module, set[str]] = {}
        for module, former in self.former.items():
            now = vars(module)
            names = {name for name in {*now, *former} if now.get(name, Kept) is not former.get(name, Kept)}
            if names:
                found[module] = names
        return found

    def contents_changed(self) -> list[Any]:
        """Return the former contents of the lists, dictionaries, sets and objects that have other ones now."""
        return [former or () for value, former in self._contents if _differs(value, former)]

    def restore(self) -> None:
        """Put everything back; it can be repeated, and so does what an interrupt has left to do."""
        for module, former in self.former.items():
            now = vars(module)
            if now.keys() != former.keys() or any(now[key] is not former[key] for key in former):
                refill(now, former)
        for value, former in self._contents:
            if _differs(value, former):
                fill(value, former or ())
        for buffer, version, values in self._buffers:
            if _version(buffer) != version or (version == -1 and not torch.equal(buffer, values)):
                with torch.no_grad():  # what forward counts there is no reason against a new forward
                    buffer.copy_(values)
        for generator, state in self.generators.items():
            generator.set_state(state)


@contextmanager
def preserved(model: nn.Module, *more: nn.Module) -> Generator[Kept]:
    """Restore attributes, lists, dictionaries and buffers of all modules of the model when the block ends."""
    kept = Kept(list(dict.fromkeys((*paths(model), *more))))
    try:
        try:
            yield kept
        finally:
            kept.restore()
    except BaseException:
        kept.restore()  # the first time may have been interrupted
        raise


def _contents(value: Any, own: set[int], depth: int = 0) -> Iterator[Any]:
    """Yield what a forward may write to in a value: itself, if it is a container, or the attributes of an object.

    Of the modules those that are not among the model's ``own``.
    """
    inner: Iterable[Any] = ()
    if isinstance(value, _CONTAINERS):
        yield value
        inner = value.values() if isinstance(value, dict) else value
    elif depth < 2 and id(value) not in own and not isinstance(value, _NO_STORES):
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):  # those of a class are not
            yield attributes
            inner = attributes.values()
    for held in list(inner) if depth < 2 else ():
        if type(held) not in _SIMPLE:
            yield from _contents(held, own, depth + 1)


def _shared_by(kind: type[nn.Module]) -> list[Any]:
    """Return what modules of a type share: containers of their classes, and what their forward names globally."""
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    if all(base.__module__.partition(".")[0] == "torch" for base in own):
        return []
    found = [value for base in own for value in vars(base).values() if isinstance(value, _CONTAINERS)]
    forward = inspect.unwrap(kind.forward)
    code, names = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
    return found + ([names[name] for name in names_read(code) if name in names] if code is not None else [])


def gpus_of(tensors: Iterable[Any]) -> list[int]:
    """Return the GPUs that tensors lie on, whose random numbers a run may draw."""
    return sorted({value.device.index for value in tensors if isinstance(value, Tensor) and value.is_cuda})


def left_by_hooks(model: nn.Module) -> set[int]:
    """Return the identities of the tensors that forward hooks have left where they write; a trace runs no hooks."""
    tables = (vars(m)[table] for m in model.modules() for table in ("_forward_pre_hooks", "_forward_hooks"))
    left = {id(tensor) for hooks in tables for hook in hooks.values() for tensor in _left_by(hook)}
    return left - {id(tensor) for tensor in (*model.parameters(), *model.buffers())} if left else left


def _left_by(hook: Any) -> list[Tensor]:
    """Return the tensors in the attributes that a hook sets, and in the containers that it names or holds."""
    holders: list[Any] = []
    while isinstance(hook, functools.partial):
        holders += [*hook.args, *hook.keywords.values()]
        hook = hook.func
    hook = inspect.unwrap(hook)
    function: Any = hook if hasattr(hook, "__code__") else type(hook).__call__
    if not hasattr(function, "__code__"):
        return []
    names = names_read(function.__code__)
    stored = {step.argval for step in dis.get_instructions(function.__code__) if step.opname == "STORE_ATTR"}
    holders += [getattr(hook, "__self__", hook), *(cell.cell_contents for cell in function.__closure__ or ())]
    holders += [value for name, value in function.__globals__.items() if name in names]
    found: list[Any] = []
    for holder in holders:
        attributes = {} if isinstance(holder, _CONTAINERS) else getattr(holder, "__dict__", {})
        held = [value for name, value in attributes.items() if name in names and isinstance(value, _CONTAINERS)]
        held += [holder, *(value for name, value in attributes.items() if name in stored)]
        found += [list(value) if isinstance(value, set) else value for value in held]
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


@functools.lru_cache(maxsize=2048)
def names_read(code: types.CodeType) -> frozenset[str]:
    """Return the names that a function reads, of attributes among others, and those that functions in it read."""
    inner = (names_read(value) for value in code.co_consts if isinstance(value, types.CodeType))
    own = (step.argval for step in dis.get_instructions(code) if step.opname.startswith("LOAD_"))
    return frozenset(name for name in own if isinstance(name, str)).union(*inner)


def _differs(value: Any, former: Any) -> bool:
    """Return whether a list, dictionary or set has another content than the former one (None: empty)."""
    if not value and not former:
        return False
    now, before = _items(value), _items(former or ())
    return len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True))


def _items(content: Any) -> list[Any]:
    return [*content, *content.values()] if isinstance(content, dict) else list(content)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
