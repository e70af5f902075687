"""Plans are kept, weakly and by model, and are used again as long as the model would get the same plan.

A plan depends on the modules and their places, types and forwards, on plain attributes (flags, sizes, the mode), on
attributes and methods of their classes, on which tensors there are, on hooks that compute weights, on which norms are
the identity, on what is registered, and on autocast, but not on the values of parameters and buffers. All of that is
compared, in one pass over the modules.
"""

import weakref
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final

import torch
from torch import Tensor, nn

from canon_bridge.core.norms import is_identity, is_norm
from canon_bridge.core.options import Options, Scope
from canon_bridge.core.plan import Plan
from canon_bridge.core.planner import make_plan
from canon_bridge.core.registry import Registry
from canon_bridge.core.restore import TRANSIENT, paths, writes_in_force

_PLAIN: Final = frozenset({NoneType, bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})
_ANY: Final = {TRANSIENT, *(name for name in vars(nn.Module()) if "hook" in name)} - {"_forward_pre_hooks"}
_MANY, _DEEP = 10_000, 6
_DATA: Final = ("_parameters", "_buffers")
_CONSTANT: Final = frozenset({"torch", "builtins"})  # packages whose classes stay as they are


@dataclass(frozen=True, eq=False)
class _Object:
    """An attribute of a class (a method, a property), to compare by identity; the class keeps it alive, too."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Object) and other.value is self.value

    __hash__ = None  # pyright: ignore[reportAssignmentType]


class _Likeness:
    """All that a plan depends on: plain values, to compare by value, and objects, to compare by identity."""

    def __init__(self, model: nn.Module) -> None:
        self.values: list[Any] = [Registry.changes]
        self.objects: list[Any] = []
        kinds: dict[type, None] = {}
        for module, path in paths(model).items():
            kind = type(module)
            kinds[kind] = None
            self.values.append(path)
            self.objects += (module, kind, getattr(kind, "forward", None))
            for name, value in vars(module).items():
                if type(value) in _PLAIN:
                    self.values += (name, value)
                elif name not in _ANY:
                    self.values.append(name)
                    # Tracing puts data in the place of parameters and buffers: a forward cannot ask for their values.
                    self._add(value, with_values=name not in _DATA)
        for base in dict.fromkeys(base for kind in kinds for base in kind.__mro__):
            if base.__module__.partition(".")[0] not in _CONSTANT:
                for name, value in vars(base).items():
                    self.values += (name, value if type(value) in _PLAIN else _Object(value))

    def _add(self, value: Any, depth: int = 0, with_values: bool = True) -> None:
        if type(value) in _PLAIN:
            self.values.append(value)
        elif isinstance(value, Tensor):
            self.objects.append(value)
            self.values += (value.shape, value.dtype, value.device, value.requires_grad)
            if with_values:
                self.values += _version(value)
        elif isinstance(value, dict | list | tuple | set | frozenset):
            if len(value) > _MANY or depth > _DEEP:
                self.values.append(object())  # like nothing else: the plan is made anew
                return
            self.values.append(len(value))
            for item in [*value, *value.values()] if isinstance(value, dict) else value:
                self._add(item, depth + 1, with_values)
        else:
            self.objects.append(value)
            if depth < 2 and not isinstance(value, nn.Module | type) and hasattr(value, "__dict__"):
                for name, item in vars(value).items():  # a configuration, which a forward may read
                    self.values.append(name)
                    self._add(item, depth + 2) if type(item) in _PLAIN else self.objects.append(item)


@dataclass
class _Kept:
    """A plan, what the model was like, and the norms in it, with their versions and whether they are the identity."""

    plan: Plan
    values: list[Any]
    objects: list[weakref.ref[Any]]
    norms: list[tuple[weakref.ref[nn.Module], list[Any], bool]]

    def holds(self, likeness: _Likeness) -> bool:
        if len(self.objects) != len(likeness.objects) or self.values != likeness.values:
            return False
        if any(former() is not now for former, now in zip(self.objects, likeness.objects, strict=True)):
            return False
        for place, (reference, versions, was_identity) in enumerate(self.norms):
            norm = reference()
            assert norm is not None  # it is among the objects
            now = _versions(norm)
            # What writes past the version (``.data``) may end an identity that others were searched through.
            if (was_identity or now != versions) and is_identity(norm) != was_identity:
                return False
            self.norms[place] = (reference, now, was_identity)
        return True


_KEPT: Final[weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], _Kept]]] = weakref.WeakKeyDictionary()


def plan_for(model: nn.Module, options: Options, scope: Scope, arguments: tuple[Any, ...] | None = None) -> Plan:
    """Return the plan of a model: the one that it has had, where that still holds, else a new one.

    Parameters and errors are those of :func:`make_plan`. With example inputs, or arguments to trace with, the plan may
    depend on any value, and is always made anew; so is that of a model that is canonical already.
    """
    if options.arguments is not None or arguments is not None or writes_in_force(model):
        return make_plan(model, options, scope, arguments)
    likeness = _Likeness(model)
    key = (options, scope, *map(torch.is_autocast_enabled, ("cpu", "cuda")), torch.get_default_dtype())
    kept = _KEPT.get(model, {}).get(key)
    if kept is not None and kept.holds(likeness):
        return kept.plan
    plan = make_plan(model, options, scope)
    norms = [(weakref.ref(m), _versions(m), is_identity(m)) for m in paths(model) if is_norm(m)]
    try:
        objects = [weakref.ref(value) for value in likeness.objects]
    except TypeError:  # an object that cannot be referred to weakly might keep the model alive
        return plan
    _KEPT.setdefault(model, {})[key] = _Kept(plan, likeness.values, objects, norms)
    return plan


def _versions(module: nn.Module) -> list[Any]:
    tensors = (*vars(module)["_parameters"].values(), *vars(module)["_buffers"].values())
    return [version for tensor in tensors if tensor is not None for version in _version(tensor)]


def _version(tensor: Tensor) -> tuple[Any, ...]:
    return (object(),) if tensor.is_inference() else (tensor._version, tensor.data_ptr())
