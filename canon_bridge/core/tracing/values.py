"""Tracing with values: a proxy that knows what it stands for, so that control flow on values can be followed.

Floor 8: imports ``arguments`` and ``graph``.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import Attribute

from canon_bridge.core.norms import children_after, normalized
from canon_bridge.core.tracing.arguments import copied, is_proxy, same_length, same_number, same_truth
from canon_bridge.core.tracing.flow import Inputs
from canon_bridge.core.tracing.graph import SymbolicTracer
from canon_bridge.core.tracing.proxies import InPlaceProxy


class ValueProxy(InPlaceProxy):
    """A proxy with the value that the operation has on the example inputs.

    Conditions, lengths, loops and ``isinstance`` see the value; every operation is recorded as usual.
    """

    @property
    def value(self) -> Any:
        """What the proxy stands for."""
        tracer = self.tracer
        assert isinstance(tracer, ValueTracer)
        return tracer.values[self.node]

    def stands_for(self) -> type:
        """Return the type of the value."""
        return type(self.value)

    def __getattr__(self, name: str) -> Any:
        if name == "requires_grad":
            return self.without_gradient()
        attribute = getattr(self.value, name)
        if callable(attribute):
            return Attribute(self, name)  # a method; it is recorded when it is called
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def _decide(self, check: Callable[..., None], value: Any) -> Any:
        tracer = self.tracer
        assert isinstance(tracer, ValueTracer)
        return tracer.decide(self.node, check, value)

    def __bool__(self) -> bool:
        return self._decide(same_truth, bool(self.value))

    def __len__(self) -> int:
        return self._decide(same_length, len(self.value))

    def __int__(self) -> int:
        return self._decide(same_number, int(self.value))

    def __float__(self) -> float:
        return self._decide(same_number, float(self.value))

    def __index__(self) -> int:
        return self._decide(same_number, self.value.__index__())

    def __contains__(self, item: object) -> bool:
        return any(bool(part == item) for part in self)

    def __hash__(self) -> int:
        return id(self)

    def __iter__(self) -> Iterator[Any]:
        keys = self.value.keys() if isinstance(self.value, dict) else range(len(self))
        return iter([self.tracer.create_proxy("call_function", operator.getitem, (self, key), {}) for key in keys])

    def keys(self) -> Any:
        """Return the keys of a dictionary, as they are."""
        return self.value.keys()


class ValueTracer(SymbolicTracer):
    """Trace while computing every operation on example inputs; nothing of the model's state is changed.

    Parameters
    ----------
    inline, path, inputs, returns
        As for :class:`SymbolicTracer`; ``inputs`` may hold proxies of an earlier trace.
    values : dict
        The values of those proxies.
    """

    def __init__(
        self, inline: bool, path: str, inputs: Inputs, returns: dict[str, Any], values: dict[fx.Node, Any]
    ) -> None:
        super().__init__(inline, path, inputs, returns)
        self._earlier = values
        self._computing = False

    def proxy(self, node: fx.Node) -> Any:
        """Compute the node; return a proxy for the result, or the result itself where it chooses a course."""
        if node not in self.values:
            self._computing = True  # what modules do inside is not traced
            try:
                with torch.no_grad():
                    self.values[node] = self._compute(node)
            finally:
                self._computing = False
        value = self.values[node]
        if type(value) is bool and node.op.startswith("call_") and node.target is not getattr:
            return self.decide(node, same_truth, value)
        return value if type(value) in (type(None), bool, str) else ValueProxy(node, self)

    def decide(self, node: fx.Node, check: Callable[..., None], value: Any) -> Any:
        """Return a value that the course may depend on, and have a new forward check that it is the same."""
        self.decided.add(self.frames[-1].owner)
        if not self.inline:
            self.values[self.create_node("call_function", check, (node, value, self.frames[0].owner), {})] = None
        return value

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a proxy for a parameter that forward uses, or the parameter itself to a module that is computed."""
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        """Return what stands for a value in the graph, and note the value of a tensor that forward created."""
        made = super().create_arg(a)
        if isinstance(made, fx.Node) and made not in self.values:
            self.values[made] = self._compute(made)
        return made

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record the call, or compute it if it is inside a leaf."""
        if self._computing and not self._is_foreign():
            return m.forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def _earlier_value(self, structure: Any) -> Any:
        """Return the structure with the values of the proxies in it."""
        if type(structure) in (tuple, list):
            return type(structure)(self._earlier_value(item) for item in structure)
        if type(structure) is dict:
            return {key: self._earlier_value(item) for key, item in structure.items()}
        return self._earlier[structure.node] if is_proxy(structure) else structure

    def _compute(self, node: fx.Node) -> Any:
        args: Any
        args, kwargs = map_arg((node.args, node.kwargs), self.values.__getitem__)
        if node.op == "placeholder":
            return copied(self._earlier_value(self.bound[str(node.target).lstrip("*")]))
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            if self.inline and children_after(module):  # the children have nodes of their own
                return normalized(module, args[0])
            # A copy of each tensor: a module that works in place must not spoil what other nodes read.
            return module.forward(*copied(args), **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _attribute(self, name: str) -> Any:
        if name in self.constants:
            return self.constants[name]
        value: Any = self.root
        for part in name.split("."):
            value = getattr(value, part)
        return value
