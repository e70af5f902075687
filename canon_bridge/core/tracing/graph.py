"""The data flow of a model, containers inlined, with the place in the source that wrote each operation.

Floor 7: imports ``arguments``, ``flow``, ``layers`` and ``lifts``; the only user of ``fx.Tracer`` but for ``values``.
Tracing writes nothing to the model and runs no hook.
"""

import inspect
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from canon_bridge.core.modules.arithmetic import Arithmetic, Negate
from canon_bridge.core.norms import children_after
from canon_bridge.core.tracing.arguments import DATA, by_position, is_proxy, kept, pattern, unpack
from canon_bridge.core.tracing.data import note_data
from canon_bridge.core.tracing.flow import Frame, Inputs, Site
from canon_bridge.core.tracing.known import is_known
from canon_bridge.core.tracing.proxies import InPlaceProxy

# Classes of torch.nn that have no forward of their own to know.
CONTAINERS = frozenset({nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict})


class SymbolicTracer(fx.Tracer):
    """Record the site of every call; inline containers, or take all children as leaves.

    Parameters
    ----------
    inline : bool
        Whether to trace into containers.
    path : str
        The name of the root in the model.
    inputs : Inputs, optional
        What the root is called with. Constants among them (else the defaults) are taken as they are.
    returns : dict
        What containers are known to return, by path; a call of such a leaf gets that structure.
    fixed_numbers : bool
        Whether numbers among the arguments of the root are constants, for a forward that computes sizes from them.
    """

    proxy_buffer_attributes = True

    def __init__(
        self,
        inline: bool,
        path: str = "",
        inputs: Inputs | None = None,
        returns: dict[str, Any] | None = None,
        fixed_numbers: bool = True,
    ) -> None:
        super().__init__()
        self.inline = inline
        self.frames = [Frame(path)]
        self.sites: dict[fx.Node, Site] = {}
        self.constants: dict[str, Tensor] = {}
        self.expected: dict[str, Any] = {}
        self.inputs: dict[str, Inputs] = {} if inputs is None else {path: inputs}
        self.returns: dict[str, Any] = {}
        self.values: dict[fx.Node, Any] = {}
        self.decided: set[str] = set()
        self.bound: dict[str, Any] = {}
        self._known_returns = returns or {}
        self._fixed_numbers = fixed_numbers
        self._root_inputs = inputs
        self._call_site: Site | None = None
        self._own: set[int] = set()
        self._thread = threading.get_ident()

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a proxy for a parameter that the traced forward uses; other threads get what they ask for."""
        return attr_val if self._is_foreign() else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _is_foreign(self) -> bool:
        # fx patches nn.Module for all threads; those that run models meanwhile must not notice.
        return threading.get_ident() != self._thread

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace the root with the inputs that the tracer was made with."""
        if self._root_inputs is not None:
            args, kwargs = self._root_inputs
            bound = inspect.signature(root.forward).bind(*args, **kwargs)
            bound.apply_defaults()
            self.bound = dict(bound.arguments)
        self._own = {id(module) for module in root.modules()}
        return super().trace(root, concrete_args)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Return the root's function and its arguments: proxies, and what is known to be no data as it is."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        parameters = list(inspect.signature(root_fn).parameters.values())
        return function, [args[0], *map(self._argument, parameters[1:], args[1:])]

    def _argument(self, parameter: inspect.Parameter, proxy: Any) -> Any:
        is_named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        value = self.bound.get(parameter.name, parameter.default if is_named else DATA)
        is_free_number = type(value) in (int, float) and not self._fixed_numbers
        if value is parameter.empty or pattern(value) is DATA or is_free_number:
            return proxy
        # `if mask is None` would take the wrong branch on a proxy, `for part in parts` none at all.
        self.expected[parameter.name] = pattern(value)
        return unpack(value, proxy)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the proxy for a node."""
        return InPlaceProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a call of the module is one operation of the graph."""
        if not self.inline or isinstance(m, Arithmetic | Negate) or is_known(m):
            return True
        if super().is_leaf_module(m, module_qualified_name):
            return True
        # A subclass of a layer of torch.nn is a layer, even if its forward is not known.
        return any(
            base.__module__.startswith("torch.nn.modules") and base not in CONTAINERS for base in type(m).__mro__
        )

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record the call of a leaf, or trace the forward of a container."""
        if self._is_foreign():
            return forward(*args, **kwargs)
        if id(m) not in self._own:
            if any(True for _ in (*m.parameters(recurse=False), *m.buffers(recurse=False))):
                raise TypeError(f"it calls a {type(m).__name__} that has tensors and is not registered as a submodule")
            return m.forward(*args, **kwargs)  # made in forward, such as nn.ReLU()(x): part of what forward writes
        site = self.frames[-1].site(id(m))
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            self._call_site = site
            given = args
            args, kwargs = by_position(m.forward, args, kwargs)
            if args is not given:  # rules see the positional arguments of a module alone: forward has to pass them
                self.decided.add(self.frames[-1].owner)
            called = self.create_proxy("call_module", path, args, kwargs)
            owner = self.frames[0].owner
            result = unpack(self._known_returns.get(f"{owner}.{path}" if owner else path, DATA), called)
            return self._behind(m, path, result) if self.inline else result
        self.inputs.setdefault(path, (kept(args), kept(kwargs)))
        self.frames.append(Frame(path))
        # forward itself, not the call: the user's hooks are not made for proxies and must not run here.
        result = m.forward(*args, **kwargs)
        # Popped only on success: after an exception the last frame names the module that cannot be traced.
        self.frames.pop()
        self.returns.setdefault(path, result)
        return result

    def _behind(self, norm: nn.Module, path: str, result: Any) -> Any:
        """Record what a normalization layer calls behind itself."""
        self.frames.append(Frame(path))
        for name in children_after(norm):
            child = getattr(norm, name)
            result = self.call_module(child, child.forward, (result,), {})
        self.frames.pop()
        return result

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **names: Any) -> fx.Node:
        """Create a node, and note its site."""
        if kind == "call_function":
            args, kwargs = by_position(target, args, kwargs)
        node = super().create_node(kind, target, args, kwargs, *more, **names)
        note_data(node)
        if not torch.is_grad_enabled():
            self.frames[-1].stops_gradients = True
        if kind == "call_module" and self._call_site is not None:
            self.sites[node], self._call_site = self._call_site, None
        elif kind in ("call_function", "call_method"):
            self.sites[node] = self.frames[-1].site(target)
        return node

    def create_arg(self, a: Any) -> Any:
        """Return what stands for a value in the graph; nothing is stored on the model."""
        if is_proxy(a):
            return a.node
        # fx would store unknown tensors as attributes of the user's model.
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and not self._is_attribute(a):
            name = next((n for n, t in self.constants.items() if t is a), f"_tensor_constant{len(self.constants)}")
            self.constants[name] = a
            return self.create_node("get_attr", name, (), {})
        return super().create_arg(a)

    def _is_attribute(self, tensor: Tensor) -> bool:
        return tensor in self.tensor_attrs or any(tensor is buffer for buffer in self.root.buffers())
