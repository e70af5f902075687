"""Layers that several norms read: one copy of the layer for each norm, into which that norm is merged to the left.

The copies of a layer lie side by side in its output channels. What lies between the layer and its norms treats each
channel alike, so it takes more of them, and each norm selects its own. Nothing here writes to a model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx

from canon_bridge.core.facts import has_data
from canon_bridge.core.labels import OUTSIDE, Labels, Positions
from canon_bridge.core.layers.linear import is_linear, linear_type, out_channels
from canon_bridge.core.norms import is_norm, norm_type
from canon_bridge.core.plan import Obstacle, Step, Untangled
from canon_bridge.core.rewrite import ModuleCall
from canon_bridge.core.search import Blocked, Network, Search

# Whether the channels of a layer keep apart is found in all worlds; where the copies lie, in the smaller ones.
_WORLDS = (0, 1, 2)


@dataclass(frozen=True)
class _Before:
    """What the input of a norm is made of.

    Attributes
    ----------
    layers : list of fx.Node
        The layers that are copied for it.
    others : list of fx.Node
        What else is joined with them.
    between : list of fx.Node
        What lies between these and the norm.
    """

    layers: list[fx.Node] = field(default_factory=list[fx.Node])
    others: list[fx.Node] = field(default_factory=list[fx.Node])
    between: list[fx.Node] = field(default_factory=list[fx.Node])


class Untangling:
    """The layers of one flow that are copied for the norms that read them.

    Parameters
    ----------
    network : Network
        The flow.
    with_rest : bool
        Whether channels of a norm that come from no such layer may become an explicit linear layer.
    """

    def __init__(self, network: Network, with_rest: bool) -> None:
        self._network, self._with_rest = network, with_rest
        self._found: dict[fx.Node, Untangled] | None = None
        self._reasons: dict[fx.Node, str] = {}

    def find(self, norm: ModuleCall) -> Untangled | Obstacle:
        """Return how a norm is merged into copies, or what stands in the way.

        What is found for one norm holds for all: it is decided for the whole flow when the first one asks.
        """
        calls = self._network.calls(norm.path)
        if self._found is None:
            self._found = self._settle()
        if len(calls) == 1 and calls[0] in self._found:
            return self._found[calls[0]]
        reason = self._reasons.get(calls[0]) if calls else None
        return Obstacle(reason or "no linear layer before it can be copied")

    def _settle(self) -> dict[fx.Node, Untangled]:
        """Decide which layers are copied: those of which all readers are norms that can select their copy."""
        network = self._network
        norms = {node: rank for node in network.operations if (rank := self._rank(node)) is not None}
        layers = [node for node in network.operations if self._may_be_copied(node)]
        while True:
            readers = {layer: found for layer in layers if (found := self._norms_after(layer, norms))}
            found: dict[fx.Node, Untangled] = {}
            failed = False
            for node in sorted({norm for several in readers.values() for norm in several}, key=network.order.__getitem__):
                try:
                    found[node] = _Selection(network, node, norms[node], readers, self._with_rest).result()
                except Blocked as blocked:
                    self._reasons[node] = blocked.reason
                    del norms[node]
                    failed = True
            if not failed:
                return found

    def _rank(self, node: fx.Node) -> int | None:
        """Return how many dimensions the input of a norm has that may select; None for any other node."""
        network, operation = self._network, self._network.operations[node]
        if not is_norm(operation.module) or len(network.calls(operation.path)) != 1:
            return None
        if operation.path in network.identities | network.untouchable or operation.path in network.read_elsewhere:
            return None
        ranks = norm_type(operation.module).ranks
        return ranks[0] if len(ranks) == 1 else network.facts.rank(node.args[0] if node.args else None)

    def _may_be_copied(self, node: fx.Node) -> bool:
        network, operation = self._network, self._network.operations[node]
        if not is_linear(operation.module) or len(network.calls(operation.path)) != 1:
            return False
        return network.why_not_into(operation) is None

    def _norms_after(self, layer: fx.Node, norms: Mapping[fx.Node, int]) -> tuple[fx.Node, ...]:
        """Return the norms that read a layer, in order; none if anything else does."""
        network = self._network
        found: set[fx.Node] = set()
        seen, waiting = {layer}, [layer]
        while waiting:
            node = waiting.pop()
            readers = network.readers(node)
            if not readers or len(readers) != len(node.users):  # nobody, or somebody who asks for a size
                return ()
            for reader in readers:
                if reader in norms and reader.args[0] is node:
                    found.add(reader)
                elif not network.is_passable(reader) or network.aliases.overwritten(reader) is not None:
                    return ()
                elif reader not in seen:
                    seen.add(reader)
                    waiting.append(reader)
        return tuple(sorted(found, key=network.order.__getitem__))


class _Selection(Search):
    """Where the copies for one norm lie in its input, once there is a copy for each."""

    def __init__(
        self,
        network: Network,
        node: fx.Node,
        rank: int,
        readers: Mapping[fx.Node, tuple[fx.Node, ...]],
        with_rest: bool,
    ) -> None:
        super().__init__(network, network.operations[node], rank, into_norms=False)
        self.node, self.readers, self.with_rest = node, readers, with_rest
        self.before = _Before()
        self._known: dict[fx.Node, bool] = {}

    def result(self) -> Untangled:
        """Return it; raise :class:`Blocked` where it cannot be told."""
        source = self.node.args[0]
        assert isinstance(source, fx.Node)
        self._reaches(source)
        before = self.before
        before.between.sort(key=self.network.order.__getitem__)
        if before.others and not self.with_rest:
            raise Blocked("{} before it is not linear", self.network.name(before.others[0]))
        single = self._positions(source, lambda layer: 1)
        several = single
        if any(len(self.readers[layer]) > 1 for layer in before.layers):
            several = self._positions(source, lambda layer: len(self.readers[layer]))
        return self._untangled(single, {number: place for place, number in enumerate(several)})

    def _untangled(self, single: Sequence[tuple[int, int, int]], places: Mapping[tuple[int, int, int], int]) -> Untangled:
        layers = self.before.layers
        copies = [self.readers[layer].index(self.node) for layer in layers]
        steps = [[OUTSIDE] * self._width_of(layer) for layer in layers]
        index: list[int] = []
        rest: list[int] = []
        for channel, (source, _, number) in enumerate(single):
            if source < len(layers):
                steps[source][number] = channel
            else:
                rest.append(channel)
            key = (source, copies[source] if source < len(layers) else 0, number)
            if key not in places:
                raise Blocked("a channel of its copy of {} does not come to it", self.network.name(layers[source]))
            index.append(places[key])
        if len(single) != self.width:
            raise Blocked("{} channels come to it, it has {}", str(len(single)), str(self.width))
        named = [self.network.operations[layer].path for layer in layers]
        return Untangled(
            self.norm.path,
            tuple(Step(path, tuple(channels)) for path, channels in zip(named, steps, strict=True)),
            tuple(index),
            tuple(rest),
            tuple(self.through),
            (self.rank,),
        )

    def _reaches(self, node: fx.Node) -> bool:
        """Return whether a value is made of layers that are copied, and note what it is made of."""
        if node not in self._known:
            self._known[node] = self._note(node)
        return self._known[node]

    def _note(self, node: fx.Node) -> bool:
        if node in self.readers:
            self.before.layers.append(node)
            return True
        if not self.network.is_passable(node):
            return False
        inputs = [name for name in node.all_input_nodes if has_data(name)]
        reached = [self._reaches(name) for name in inputs]
        if not any(reached):
            return False
        self.before.between.append(node)
        others = [name for name, is_reached in zip(inputs, reached, strict=True) if not is_reached]
        self.before.others.extend(name for name in others if name not in self.before.others)
        return True

    def _positions(self, source: fx.Node, copies: Callable[[fx.Node], int]) -> list[tuple[int, int, int]]:
        """Return what lies at each channel of the input: the number of the source, of the copy, and of the channel."""
        meaning: list[tuple[int, int, int]] = []
        is_single = all(copies(layer) == 1 for layer in self.before.layers)
        self.labels = {}
        for place, node in enumerate([*self.before.layers, *self.before.others]):
            numbers = list(self._channels(node, place, copies(node) if node in self.readers else 1))
            first = len(meaning)
            meaning += numbers
            self.labels[node] = self._start(range(first, len(meaning)), *self._axis_and_rank(node), is_single)
        for node in self.before.between:
            self.pass_through(node)
            joined = [name for name in node.all_input_nodes if name in self.labels]
            positions = self.labels[node].along(1) if len(joined) == 1 else None
            rank = self.labels[node].dimensions()
            if positions is not None and rank is not None and not positions.repeats:
                # What is joined with it elsewhere starts with the same sizes, whatever a pool made of these.
                self.labels[node] = self._start(positions.channels, 1, rank, is_single)
        labels = self.labels[source]
        positions = labels.along(1) if labels.dimensions() == self.rank else None
        if positions is None:
            raise self.misplaced(source, self.norm)
        return [meaning[number] for number in self._distinct(positions)]

    def _start(self, numbers: Sequence[int], axis: int, rank: int, is_single: bool) -> Labels:
        labels = Labels.start(numbers, axis, rank)
        return labels if is_single else labels.in_worlds(_WORLDS)

    def _channels(self, node: fx.Node, place: int, copies: int) -> Iterator[tuple[int, int, int]]:
        """Yield the copy and the number of each output channel: the copies of a group stand together."""
        channels = self._width_of(node)
        groups = int(getattr(self.network.operations[node].module, "groups", 1)) if node in self.readers else 1
        size = channels // groups
        for group in range(groups):
            for copy in range(copies):
                yield from ((place, copy, group * size + channel) for channel in range(size))

    def _distinct(self, positions: Positions) -> tuple[int, ...]:
        numbers = positions.channels
        if positions.repeats or len(set(numbers)) != len(numbers) or OUTSIDE in numbers:
            raise Blocked("a channel of {} comes to several of its own", self.network.name(self.before.layers[0]))
        return numbers

    def _width_of(self, node: fx.Node) -> int:
        if node in self.readers:
            return out_channels(self.network.operations[node].module)
        size = self.network.facts.size(node, 1)
        if size is None:
            raise Blocked("how many channels {} has is not known", self.network.name(node))
        return size

    def _axis_and_rank(self, node: fx.Node) -> tuple[int, int]:
        """Return where the channels of a source lie, and how many dimensions it has."""
        spatial = linear_type(self.network.operations[node].module).spatial if node in self.readers else 0
        rank = spatial + 2 if spatial else self.network.facts.rank(node) or self.rank
        return rank - 1 if node in self.readers and not spatial else 1, rank

