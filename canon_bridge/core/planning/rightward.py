"""From a normalization layer to the layers behind it.

Floor 14: imports ``network`` and the tables below it.
"""

import heapq
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from torch import fx

from canon_bridge.core.activations import find_absorber, wanted_rank
from canon_bridge.core.channels.layout import Layout, position
from canon_bridge.core.channels.parts import concatenated, divided, selected
from canon_bridge.core.channels.through import find_through
from canon_bridge.core.layers.linear import is_linear, why_not_before
from canon_bridge.core.norms import is_norm, norm_type, width
from canon_bridge.core.planning.chains import Chain, Obstacle, Step, Words, words
from canon_bridge.core.planning.fitting import name_of, why_not_taken
from canon_bridge.core.planning.network import UNKNOWN_WIDTH, Network, first_argument
from canon_bridge.core.tracing.explicit import Operation

_NOT_LINEAR = "{} behind it is not linear"


def find_right(network: Network, norm: Operation) -> Chain | Obstacle:
    """Return the chain from a normalization layer to all layers behind it, or what stands in the way.

    Parameters
    ----------
    network : Network
        The flow.
    norm : Operation
        The normalization layer; if it is called several times, the chain holds for every call.
    """
    return of_any_rank(network, norm, lambda rank: _Search(network, norm, rank).run())


def of_any_rank(network: Network, norm: Operation, search: Callable[[int], Chain | Obstacle]) -> Chain | Obstacle:
    """Return the chain of a layer whose type accepts several numbers of dimensions, and for which of them it holds."""
    ranks = norm_type(norm.module).ranks
    known = [network.rank(call.all_input_nodes[0]) for call in network.calls(norm.path)]
    certain = [rank for rank in ranks if rank in known]
    found = [(search(rank), rank) for rank in (certain if all(rank in ranks for rank in known) else ranks)]
    chains = [(chain, rank) for chain, rank in found if isinstance(chain, Chain)]
    for chain, rank in found:
        if isinstance(chain, Obstacle) and (rank in certain or not chains):
            return chain
    first = chains[0][0]
    if any(chain != first for chain, _ in chains):
        return Obstacle("how many dimensions its input has is not known, and the chain depends on it")
    holds = tuple(rank for _, rank in chains)
    return first if holds == ranks else replace(first, ranks=holds)


class _Blocked(Exception):  # noqa: N818 - not an error, it ends the search
    def __init__(self, reason: str, *names: str) -> None:
        self.obstacle = Obstacle(words(reason, *names) if names else reason)


@dataclass
class _Reached:
    """A module that the map arrives at: how, and at which of its calls."""

    layout: Layout
    step: Step
    first: int  # number of the first channel behind it, if it absorbs
    nodes: list[fx.Node] = field(default_factory=list[fx.Node])


class _Search:
    """Push the layout of the channels through the flow, in the order of the flow, until layers take it."""

    def __init__(self, network: Network, norm: Operation, rank: int) -> None:
        self.network = network
        self.norm = norm
        self.rank = rank
        self.width = width(norm.module)
        self.numbers = self.width  # of channels of all maps so far
        self.layouts: dict[fx.Node, Layout | list[Layout]] = {}
        self.reached: dict[str, _Reached] = {}
        self.through: dict[str, None] = {}

    def run(self) -> Chain | Obstacle:
        """Return the chain or the obstacle."""
        try:
            for node in self._nodes_behind():
                self._visit(node)
            for path, reached in self.reached.items():
                if len(reached.nodes) != len(self.network.calls(path)):
                    return Obstacle(words("{} is called elsewhere, too", self.network.called(path)))
        except _Blocked as blocked:
            return blocked.obstacle
        steps = tuple(reached.step for reached in self.reached.values())
        return Chain(self.norm.path, self.width, "right", steps, tuple(self.through))

    def _nodes_behind(self) -> Iterator[fx.Node]:
        """Yield in order every node that reads something the map has come to."""
        start = Layout(tuple(range(self.width)), 1, self.rank)
        waiting: list[tuple[int, fx.Node]] = []
        seen: set[fx.Node] = set()
        calls = self.network.calls(self.norm.path)
        self.layouts.update(dict.fromkeys(calls, start))
        for call in calls:
            self._enqueue(call, waiting, seen)
        while waiting:
            node = heapq.heappop(waiting)[1]
            yield node
            if node in self.layouts:
                self._enqueue(node, waiting, seen)

    def _enqueue(self, node: fx.Node, waiting: list[tuple[int, fx.Node]], seen: set[fx.Node]) -> None:
        readers = self.network.readers(node)
        if not readers:
            raise _Blocked("nothing reads its output")
        for reader in readers:
            if reader not in seen:
                seen.add(reader)
                heapq.heappush(waiting, (self.network.order[reader], reader))

    def _visit(self, node: fx.Node) -> None:
        network = self.network
        if network.is_overwritten_behind(node):
            raise _Blocked("{} overwrites a tensor that is read again later", network.name(node))
        if concatenated(node) is not None:
            self.layouts[node] = self._joined(node)
            self.through["concatenation"] = None
            return
        source = first_argument(node)
        if not isinstance(source, fx.Node) or source not in self.layouts or _reads_more(node, source):
            raise _Blocked(_NOT_LINEAR, network.name(node))
        whole = self.layouts[source]
        picked = selected(node, whole)
        if picked is not None:
            self.layouts[node] = _or_block(picked)
            return
        if isinstance(whole, list):
            raise _Blocked(_NOT_LINEAR, network.name(node))
        parts = divided(node, whole)
        if isinstance(parts, str):
            raise _Blocked(parts)
        if parts is not None:
            self.layouts[node] = parts
            self.through["division"] = None
            return
        self._meet(node, network.operations.get(node), whole)

    def _meet(self, node: fx.Node, operation: Operation | None, layout: Layout) -> None:
        """Let the map arrive at an operation: it takes it, absorbs it or lets it pass."""
        if operation is not None and is_linear(operation.module):
            self._take(node, operation, layout)
            return
        if operation is not None and operation.path == self.norm.path:
            raise _Blocked("it feeds itself")
        if operation is not None and is_norm(operation.module) and operation.path not in self.network.identities:
            self._take(node, operation, layout)
            return
        if operation is not None and find_absorber(operation.module) is not None:
            self.layouts[node] = self._absorb(node, operation, layout)
            return
        found = find_through(node, operation.module if operation else None)
        if found is None and operation is not None and is_norm(operation.module):
            self.layouts[node] = layout  # an identity
            return
        if found is None:
            raise _Blocked(_NOT_LINEAR, self.network.name(node))
        through, arguments = found
        self.layouts[node] = _or_block(through.forward(layout, arguments))
        self.through[through.name] = None

    def _joined(self, node: fx.Node) -> Layout:
        joined = concatenated(node)
        assert joined is not None
        parts, dim = joined
        layouts = [self.layouts.get(part) for part in parts]
        known = [layout for layout in layouts if isinstance(layout, Layout)]
        if len(known) != sum(layout is not None for layout in layouts) or any(layout.repeats for layout in known):
            raise _Blocked("a concatenation of repeated channels")
        first = known[0]
        if any((layout.axis, layout.rank) != (first.axis, first.rank) for layout in known):
            raise _Blocked("a concatenation of tensors that hold channels on different axes")
        if position(dim, first.rank) != first.axis or first.axis != 1:
            raise _Blocked("a concatenation along another dimension than the channels")
        channels: tuple[int, ...] = ()
        for part, layout in zip(parts, layouts, strict=True):
            size = self.network.width(part, first.rank) if layout is None else None
            if layout is None and size is None:
                raise _Blocked(UNKNOWN_WIDTH, self.network.name(part))
            channels += layout.channels if isinstance(layout, Layout) else (-1,) * (size or 0)
        return Layout(channels, 1, first.rank, point=all(layout.point for layout in known))

    def _take(self, node: fx.Node, operation: Operation, layout: Layout) -> None:
        obstacle = self.network.why_not_into(operation)
        reason = obstacle.reason if obstacle else why_not_taken(operation, layout)
        if reason is None and is_linear(operation.module) and (against := why_not_before(operation.module)):
            reason = words("{}: {}", name_of(operation), Words(against, re.sub(r"\d+", "n", against)))
        if reason is not None:
            raise _Blocked(reason)
        self._arrive(node, operation, layout, absorbs=False)

    def _absorb(self, node: fx.Node, operation: Operation, layout: Layout) -> Layout:
        module = operation.module
        several = any(parameter.numel() > 1 for parameter in module.parameters())
        if layout.axis != 1 or (layout.repeats and several) or wanted_rank(module) not in (None, layout.rank):
            raise _Blocked("{} acts on another dimension than the channels", name_of(operation))
        first = self._arrive(node, operation, layout, absorbs=True).first
        kind = type(module).__name__
        self.through[Words(f"{kind} {operation.path}", kind)] = None
        return layout.holding(tuple(range(first, first + len(layout.channels))))

    def _arrive(self, node: fx.Node, operation: Operation, layout: Layout, absorbs: bool) -> _Reached:
        layout = replace(layout, point=False)  # how long the other dimensions are does not matter here
        reached = self.reached.get(operation.path)
        if reached is None:
            reached = _Reached(layout, Step(operation.path, layout.channels, absorbs), self.numbers)
            self.reached[operation.path] = reached
            self.numbers += len(layout.channels) if absorbs else 0
        elif reached.layout != layout:
            raise _Blocked("{} is called in different ways", name_of(operation))
        reached.nodes.append(node)
        return reached


def _reads_more(node: fx.Node, source: fx.Node) -> bool:
    """Return whether a node reads data besides that of its first argument."""
    return any(other is not source and other.meta.get("has_data", True) for other in node.all_input_nodes)


def _or_block(found: Layout | str) -> Layout:
    if isinstance(found, str):
        raise _Blocked(found)
    return found
