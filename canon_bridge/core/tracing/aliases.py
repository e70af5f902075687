"""Which operations give the same memory another name, and who reads a tensor after it was overwritten.

Floor 1: imports ``lifts``. A new view is one entry of a table below.
"""

import operator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import fx, nn

from canon_bridge.core.tracing.data import asks_for_sizes, works_in_place

# fmt: off
_NAMES = frozenset(
    {
        "T", "chunk", "contiguous", "data", "detach", "diagonal", "double", "expand", "expand_as", "flatten",
        "float", "half", "mT", "movedim", "narrow", "permute", "ravel", "real", "reshape", "reshape_as",
        "select", "split", "squeeze", "swapaxes", "swapdims", "t", "to", "transpose", "type", "type_as",
        "unbind", "unflatten", "unfold", "unsqueeze", "view", "view_as",
    }
)
# fmt: on
VIEW_METHODS: Final = _NAMES
VIEW_FUNCTIONS: Final[frozenset[Any]] = frozenset(
    [getattr(torch, name) for name in _NAMES if hasattr(torch, name)]
    + [operator.getitem, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout]
)
VIEW_MODULES: Final[frozenset[type[nn.Module]]] = frozenset(
    {
        nn.AlphaDropout,
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.FeatureAlphaDropout,
        nn.Flatten,
        nn.Identity,
        nn.Unflatten,
    }
)


class Aliases:
    """The memory that the nodes of a graph share.

    Parameters
    ----------
    graph : fx.Graph
        The operations in order.
    modules : dict
        The module that each node calls, where it calls one.
    """

    def __init__(self, graph: fx.Graph, modules: dict[fx.Node, nn.Module]) -> None:
        self.modules = modules
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        self._origin: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            base = node.args[0] if node.args else node.kwargs.get("input")
            shares = isinstance(base, fx.Node) and self._shares(node)
            self._origin[node] = self._origin[base] if shares and isinstance(base, fx.Node) else node
        self._readers: dict[fx.Node, list[tuple[fx.Node, fx.Node]]] = {}
        for node in graph.nodes:
            for name in node.all_input_nodes:
                self._readers.setdefault(self._origin[name], []).append((node, name))

    def overwrites(self, node: fx.Node) -> bool:
        """Return whether the call overwrites its first argument."""
        return works_in_place(node, self.modules.get(node))

    def read_after(self, node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
        """Return who reads values, after ``node`` has overwritten its argument, of that memory by a name from before.

        Returns
        -------
        list of (fx.Node, fx.Node)
            The reader, and the name (node) by which it reads.
        """
        now = self.order[node]
        return [
            (reader, name)
            for reader, name in self._readers.get(self._origin[node], [])
            if self.order[reader] > now and self.order[name] < now and not asks_for_sizes(reader)
        ]

    def _shares(self, node: fx.Node) -> bool:
        if self.overwrites(node):
            return True
        if node.op == "call_module":
            return type(self.modules.get(node)) in VIEW_MODULES
        if node.op == "call_method":
            return node.target in VIEW_METHODS
        if node.target is getattr:
            return node.args[1] in VIEW_METHODS
        return node.op == "call_function" and node.target in VIEW_FUNCTIONS
