"""The source of a new forward: a function that computes a graph.

Written here and not by ``torch.fx``, which writes names and values as they print: a child that is called ``in``, a
lambda or a number of another package is no Python then. What is not a value of the graph is a constant here.
"""

import functools
import inspect
import keyword
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import fx, nn

_PRINTS_ITSELF: Final = (int, str, bool, type(None))


def write_forward(graph: fx.Graph, signature: inspect.Signature) -> tuple[str, dict[str, Any]]:
    """Return the source of ``forward(self, ...)`` of a graph, and its constants by the names that it gives them.

    Placeholders of the graph have the names of the arguments; the signature is that of the forward without ``self``.
    """
    source = _Source(graph, signature)
    return source.text(), source.constants


def call_plainly(module: nn.Module) -> Callable[..., Any]:
    """Return the call of a module as :class:`torch.nn.Module` has it, for a class that has its own around it."""
    return functools.partial(nn.Module.__call__, module)


class _Source:
    def __init__(self, graph: fx.Graph, signature: inspect.Signature) -> None:
        self.graph, self.signature = graph, signature
        self.constants: dict[str, Any] = {}
        taken = {*signature.parameters, *(node.name for node in graph.nodes), "forward"}
        lengths = range(1, len(taken) + 2)
        self.prefix = next("_" * n for n in lengths if not any(name.startswith("_" * n) for name in taken))
        self.owner = f"{self.prefix}self"

    def text(self) -> str:
        """Return the whole definition."""
        parameters = [
            p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else _Name(self.constant(p.default)))
            for p in self.signature.parameters.values()
        ]
        header = str(inspect.Signature(parameters)).removeprefix("(")
        last = {name: node for node in self.graph.nodes for name in node.all_input_nodes}
        lines = [f"def forward({self.owner}, {header}:"]
        for node in self.graph.nodes:
            if node.op == "output":
                lines.append(f"return {self.value(node.args[0])}")
                break
            lines.append(f"{node.name} = {self._computed(node)}")
            # Memory that nobody reads any more is free at once.
            lines += [f"{name.name} = None" for name in node.all_input_nodes if last[name] is node]
        return "\n    ".join(lines)

    def constant(self, value: object) -> str:
        """Return a name for a value."""
        name = f"{self.prefix}{len(self.constants)}"
        self.constants[name] = value
        return name

    def value(self, value: Any) -> str:
        """Return what stands for an argument."""
        if isinstance(value, fx.Node):
            return value.name
        if isinstance(value, tuple | list):
            items = "".join(f"{self.value(item)}, " for item in value)
            made = f"[{items}]" if isinstance(value, list) else f"({items})"
            return f"{self.constant(type(value))}(*{made})" if hasattr(value, "_fields") else made
        if isinstance(value, dict):
            return f"{{{', '.join(f'{self.value(key)}: {self.value(item)}' for key, item in value.items())}}}"
        if isinstance(value, slice):
            return f"{self.constant(slice)}(*{self.value((value.start, value.stop, value.step))})"
        return repr(value) if type(value) in _PRINTS_ITSELF else self.constant(value)

    def _computed(self, node: fx.Node) -> str:
        target, args = node.target, node.args
        if node.op == "placeholder":
            return str(target).lstrip("*")
        if node.op == "get_attr":
            return self._attribute(self.owner, str(target))
        if node.op == "call_module":
            function = self._attribute(self.owner, str(target))
            if node.meta.get("is_plain", False):
                function = f"{self.constant(call_plainly)}({function})"
        elif node.op == "call_method":
            function, args = self._attribute(self.value(args[0]), str(target)), args[1:]
        else:
            name = str(getattr(target, "__name__", ""))
            # Found in torch when it is called: tracing has others there.
            is_torch = vars(torch).get(name) is target
            function = self._attribute(self.constant(torch), name) if is_torch else self.constant(target)
        keywords = [f"**{self.value(node.kwargs)}"] if node.kwargs else []
        return f"{function}({', '.join([*map(self.value, args), *keywords])})"

    def _attribute(self, holder: str, path: str) -> str:
        for name in path.split("."):
            is_written = name.isidentifier() and not keyword.iskeyword(name)
            holder = f"{holder}.{name}" if is_written else f"{self.constant(getattr)}({holder}, {name!r})"
        return holder


class _Name(str):
    """A default value, which prints as the name of a constant."""

    __slots__ = ()
    __repr__ = str.__str__
