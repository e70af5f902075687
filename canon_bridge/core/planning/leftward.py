"""From a normalization layer to the layers before it.

Floor 15: imports ``rightward``, ``network`` and the tables below it.
"""

from dataclasses import dataclass, field

from torch import fx

from canon_bridge.core.channels.layout import Layout, position
from canon_bridge.core.channels.parts import concatenated
from canon_bridge.core.channels.through import find_through
from canon_bridge.core.layers.linear import is_linear
from canon_bridge.core.norms import is_norm, width
from canon_bridge.core.planning.chains import Chain, Obstacle, Step, words
from canon_bridge.core.planning.fitting import name_of, why_not_put_out
from canon_bridge.core.planning.network import UNKNOWN_WIDTH, Network, first_argument
from canon_bridge.core.planning.rightward import of_any_rank
from canon_bridge.core.tracing.explicit import Operation


def find_left(network: Network, norm: Operation) -> Chain | Obstacle:
    """Return the chain from a normalization layer to the layers before it, or what stands in the way.

    Parameters
    ----------
    network : Network
        The flow.
    norm : Operation
        The normalization layer; if it is called several times, the chain holds for every call.
    """
    return of_any_rank(network, norm, lambda rank: _Search(network, norm, rank).run())


@dataclass
class _Reached:
    layout: Layout
    nodes: list[fx.Node] = field(default_factory=list[fx.Node])


class _Search:
    """Follow the layout of the channels back, as long as nobody else reads what is followed."""

    def __init__(self, network: Network, norm: Operation, rank: int) -> None:
        self.network = network
        self.norm = norm
        self.rank = rank
        self.width = width(norm.module)
        self.reached: dict[str, _Reached] = {}
        self.through: dict[str, None] = {}

    def run(self) -> Chain | Obstacle:
        """Return the chain or the obstacle."""
        start = Layout(tuple(range(self.width)), 1, self.rank)
        for node in self.network.calls(self.norm.path):
            obstacle = self._back(first_argument(node), node, start)
            if obstacle is not None:
                return obstacle
        network = self.network
        for path, reached in self.reached.items():
            if len(reached.nodes) != len(network.calls(path)):
                return Obstacle(words("{} is called elsewhere, too", network.called(path)))
        steps = tuple(Step(path, reached.layout.channels) for path, reached in self.reached.items())
        return Chain(self.norm.path, self.width, "left", steps, tuple(reversed(self.through)))

    def _back(self, node: object, reader: fx.Node, layout: Layout) -> Obstacle | None:
        """Follow the layout from ``reader`` to the output of ``node``, which it reads."""
        network = self.network
        if not isinstance(node, fx.Node) or node.op not in ("call_module", "call_function", "call_method"):
            return Obstacle("no linear layer comes before it")
        if any(other is not reader for other in network.readers(node)):
            return Obstacle(words("{} before it has other consumers, too", network.name(node)))
        operation = network.operations.get(node)
        if operation is not None and is_linear(operation.module):
            return self._take(node, operation, layout)
        if operation is not None and is_norm(operation.module) and operation.path not in network.identities:
            return self._take(node, operation, layout)
        parts = concatenated(node)
        if parts is not None:
            return self._apart(node, parts, layout)
        if operation is not None and is_norm(operation.module):
            return self._back(node.args[0], node, layout)
        found = find_through(node, operation.module if operation else None)
        if found is None:
            return Obstacle(words("{} before it is not linear", network.name(node)))
        through, arguments = found
        before = through.backward(layout, arguments)
        if isinstance(before, str):
            return Obstacle(before)
        self.through[through.name] = None
        return self._back(first_argument(node), node, before)

    def _apart(self, node: fx.Node, joined: tuple[list[fx.Node], int], layout: Layout) -> Obstacle | None:
        parts, dim = joined
        if position(dim, layout.rank) != layout.axis or layout.axis != 1:
            return Obstacle("a concatenation along another dimension than the channels")
        if len(set(parts)) != len(parts):
            return Obstacle("a tensor is concatenated with itself")
        start = 0
        for part in parts:
            size = self.network.width(part, layout.rank)
            if size is None:
                return Obstacle(words(UNKNOWN_WIDTH, self.network.name(part)))
            obstacle = self._back(part, node, layout.holding(layout.channels[start : start + size]))
            if obstacle is not None:
                return obstacle
            start += size
        self.through["concatenation"] = None
        return None

    def _take(self, node: fx.Node, operation: Operation, layout: Layout) -> Obstacle | None:
        if operation.path == self.norm.path:
            return Obstacle("it feeds itself")
        obstacle = self.network.why_not_into(operation)
        if obstacle is not None:
            return obstacle
        reason = why_not_put_out(operation, layout)
        if reason is not None:
            return Obstacle(reason)
        reached = self.reached.setdefault(operation.path, _Reached(layout))
        if reached.layout != layout:
            return Obstacle(words("{} is called in different ways", name_of(operation)))
        reached.nodes.append(node)
        return None
