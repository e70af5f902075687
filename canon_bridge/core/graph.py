"""The data flow of a model, containers inlined, with the place in the source that wrote each operation.

Floor 1: imports ``layers``; the only user of ``fx.Tracer`` but for ``values``. Tracing writes nothing to the model
and runs no hook.
"""

import inspect
import operator
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from canon_bridge.core.layers import Add

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

# Types of arguments that choose a course in forward instead of carrying data.
FLAGS: frozenset[type] = frozenset({type(None), bool, str})


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
    flags : dict
        Arguments of the root that were taken as constants: the flow holds for these values only.
    inputs : dict
        What each container was called with (proxies, or values where it was traced with values), by path.
    """

    graph: fx.Graph
    sites: dict[fx.Node, Site]
    constants: dict[str, Tensor]
    flags: dict[str, object]
    inputs: dict[str, Inputs]


@dataclass
class _Frame:
    owner: str
    counts: Counter[Hashable] = field(default_factory=Counter[Hashable])

    def site(self, what: Hashable) -> Site:
        occurrence = self.counts[what]
        self.counts[what] += 1
        return Site(self.owner, what, occurrence)


class InPlaceProxy(fx.Proxy):
    """A proxy that records ``x += y`` as the in-place operation that it is; fx records ``x = x + y``."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class SymbolicTracer(fx.Tracer):
    """Record the site of every call; inline containers, or take all children as leaves.

    Parameters
    ----------
    inline : bool
        Whether to trace into containers.
    inputs : Inputs, optional
        What the root is called with. Flags among them (None, bool, str; else the defaults) count as constants.
    """

    def __init__(self, inline: bool, inputs: Inputs | None = None) -> None:
        super().__init__()
        self.inline = inline
        self.frames = [_Frame("")]
        self.sites: dict[fx.Node, Site] = {}
        self.constants: dict[str, Tensor] = {}
        self.flags: dict[str, object] = {}
        self.inputs: dict[str, Inputs] = {}
        self.bound: dict[str, Any] = {}
        self._root_inputs = inputs
        self._call_site: Site | None = None

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace the root with the inputs that the tracer was made with."""
        if self._root_inputs is not None:
            args, kwargs = self._root_inputs
            bound = inspect.signature(root.forward).bind(*args, **kwargs)
            bound.apply_defaults()
            self.bound = dict(bound.arguments)
        return super().trace(root, concrete_args)

    def _proxy_placeholder(self, name: str, concrete_args: Any, sig: inspect.Signature, fn_for_analysis: Any) -> Any:
        proxy = super()._proxy_placeholder(name, concrete_args, sig, fn_for_analysis)
        if name.startswith("*"):
            return proxy
        value = self.bound.get(name, sig.parameters[name].default)
        if type(value) not in FLAGS:
            return proxy
        # `if mask is None` would take the wrong branch on a proxy, `if verbose` none at all.
        self.flags[name] = value
        return value

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the proxy for a node."""
        return InPlaceProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a call of the module is one operation of the graph."""
        return not self.inline or isinstance(m, Add) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record the call of a leaf, or trace the forward of a container."""
        site = self.frames[-1].site(id(m))
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            self._call_site = site
            return self.create_proxy("call_module", path, args, kwargs)
        self.inputs.setdefault(path, self.inputs_of_call(args, kwargs))
        self.frames.append(_Frame(path))
        # forward itself, not the call: the user's hooks are not made for proxies and must not run here.
        result = m.forward(*args, **kwargs)
        # Popped only on success: after an exception the last frame names the module that cannot be traced.
        self.frames.pop()
        return result

    def inputs_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Return what to remember of the arguments of a container."""
        return args, kwargs

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Create a node, and note its site."""
        node = super().create_node(kind, target, *args, **kwargs)
        if kind == "call_module" and self._call_site is not None:
            self.sites[node], self._call_site = self._call_site, None
        elif kind in ("call_function", "call_method"):
            self.sites[node] = self.frames[-1].site(target)
        return node

    def create_arg(self, a: Any) -> Any:
        """Return what stands for a value in the graph; nothing is stored on the model."""
        if issubclass(type(a), fx.Proxy):  # not isinstance: a proxy may pass itself off as what it stands for
            return a.node
        # fx would store unknown tensors as attributes of the user's model.
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and not self._is_attribute(a):
            name = next((n for n, t in self.constants.items() if t is a), f"_tensor_constant{len(self.constants)}")
            self.constants[name] = a
            return self.create_node("get_attr", name, (), {})
        return super().create_arg(a)

    def _is_attribute(self, tensor: Tensor) -> bool:
        return tensor in self.tensor_attrs or any(tensor is buffer for buffer in self.root.buffers())
