"""The data flow of a model, containers inlined, with the place in the source that wrote each operation.

Floor 1: imports ``errors``; the only user of ``fx.Tracer``. Tracing writes nothing to the model and runs no hook.
"""

import copy
import operator
import types
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from canon_bridge.core.errors import TracingError
from canon_bridge.core.layers import Add


@dataclass(frozen=True)
class Site:
    """Where an operation is written: the module whose forward wrote it, what it calls, and the how-manieth time.

    The same site is found again when only ``owner`` is traced with its children as leaves.

    Attributes
    ----------
    owner : str
        Path of the module whose forward contains the call; the empty string is the root.
    what : Hashable
        The function, the name of the method, or the identity of the child module that is called.
    occurrence : int
        How many calls of the same ``what`` come before it in that forward.
    """

    owner: str
    what: Hashable
    occurrence: int


@dataclass(frozen=True, eq=False)
class Flow:
    """A traced model.

    Attributes
    ----------
    graph : fx.Graph
        The operations in order.
    sites : dict
        The site of every call in the graph.
    constants : dict
        Tensors that forward creates anew, by the name under which the graph refers to them.
    """

    graph: fx.Graph
    sites: dict[fx.Node, Site]
    constants: dict[str, Tensor]


@dataclass
class _Frame:
    owner: str
    counts: Counter[Hashable] = field(default_factory=Counter[Hashable])

    def site(self, what: Hashable) -> Site:
        occurrence = self.counts[what]
        self.counts[what] += 1
        return Site(self.owner, what, occurrence)


class _Proxy(fx.Proxy):
    """A proxy that records ``x += y`` as the in-place operation that it is; fx records ``x = x + y``."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """Record the site of every call; inline containers, or (``inline=False``) take all children as leaves."""

    def __init__(self, inline: bool) -> None:
        super().__init__()
        self.inline = inline
        self.frames = [_Frame("")]
        self.sites: dict[fx.Node, Site] = {}
        self.constants: dict[str, Tensor] = {}
        self._call_site: Site | None = None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.inline or isinstance(m, Add) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        site = self.frames[-1].site(id(m))
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            self._call_site = site
            return self.create_proxy("call_module", path, args, kwargs)
        self.frames.append(_Frame(path))
        # forward itself, not the call: the user's hooks are not made for proxies and must not run here.
        result = m.forward(*args, **kwargs)
        # Popped only on success: after an exception the last frame names the module that cannot be traced.
        self.frames.pop()
        return result

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        if kind == "call_module" and self._call_site is not None:
            self.sites[node], self._call_site = self._call_site, None
        elif kind in ("call_function", "call_method"):
            self.sites[node] = self.frames[-1].site(target)
        return node

    def create_arg(self, a: Any) -> Any:
        # fx would store unknown tensors as attributes of the user's model.
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and not self._is_attribute(a):
            name = next((n for n, t in self.constants.items() if t is a), f"_tensor_constant{len(self.constants)}")
            self.constants[name] = a
            return self.create_node("get_attr", name, (), {})
        return super().create_arg(a)

    def _is_attribute(self, tensor: Tensor) -> bool:
        return tensor in self.tensor_attrs or any(tensor is buffer for buffer in self.root.buffers())


def trace(model: nn.Module) -> Flow:
    """Trace the data flow of the whole model, containers inlined, modules of torch.nn as leaves.

    Parameters
    ----------
    model : nn.Module
        The root; it is not changed and its hooks do not run.

    Raises
    ------
    TracingError
        If forward depends on values (``if x.sum() > 0``), on the length or the type of an input, or otherwise
        cannot run on symbolic values. The message names the module and the cause.
    """
    return _trace(model, _Tracer(inline=True), "")


def trace_locally(container: nn.Module, path: str) -> Flow:
    """Trace the forward of one container alone, with its children as leaves; ``path`` is its name in the model."""
    return _trace(container, _Tracer(inline=False), path)


def _trace(root: nn.Module, tracer: _Tracer, path: str) -> Flow:
    tracer.frames[0].owner = path
    try:
        with torch.no_grad():
            graph = tracer.trace(_with_forward_in_class(root, path))
    except Exception as error:
        place = tracer.frames[-1].owner
        name = (
            f"{place} ({type(root.get_submodule(place)).__name__})"
            if place and not path
            else (f"{path or 'the model'} ({type(root).__name__})")
        )
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TracingError(
            f"the forward of {name} cannot be traced symbolically: {reason}; it probably depends on the values, "
            "the shape, the length or the type of its input. Pass example_inputs=(x,) to trace it with values, or "
            "rewrite this forward without such control flow."
        ) from error
    return Flow(graph, tracer.sites, tracer.constants)


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
