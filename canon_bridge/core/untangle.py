"""Layers that several norms read: one copy of the layer for each norm, into which that norm is merged to the left.

The copies of a layer lie side by side in its output channels. What lies between the layer and its norms treats each
channel alike, so it takes more of them, and each norm selects its own. Nothing here writes to a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import fx

from canon_bridge.core.facts import has_data, ranks_of
from canon_bridge.core.labels import OUTSIDE, WORLDS, Labels, Positions
from canon_bridge.core.layers.linear import is_linear, out_channels
from canon_bridge.core.norms import is_norm, norm_type
from canon_bridge.core.plan import Obstacle, Step, Untangled
from canon_bridge.core.rewrite import ModuleCall
from canon_bridge.core.search import Blocked, Network, Search, counted

# Where values are joined, sizes do not matter: the smallest worlds will do.
_WORLDS = ((0, 1), (1, 2))


class Untangling:
    """The layers of one flow that are copied for the norms that read them.

    ``with_rest``: whether channels of a norm that come from no such layer may become an explicit linear layer.
    """

    def __init__(self, network: Network, with_rest: bool) -> None:
        self._network, self._with_rest = network, with_rest
        self._found: dict[fx.Node, Untangled] | None = None
        self._reasons: dict[fx.Node, str] = {}
        self._known: dict[tuple[fx.Node, int, int], Positions | None] = {}

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
        norms = {node: ranks for node in network.operations if (ranks := self._ranks(node)) is not None}
        calls = network.operations.items()
        layers = [node for node, call in calls if is_linear(call.module) and self._may_be_changed(call)]
        while True:
            readers = {layer: after for layer in layers if (after := self._norms_after(layer, norms))}
            found: dict[fx.Node, Untangled] = {}
            for node in network.ordered({norm for several in readers.values() for norm in several}):
                try:
                    found[node] = self._select(node, norms[node], readers)
                except Blocked as blocked:
                    self._reasons[node] = blocked.reason
                    del norms[node]
            if all(node in norms for several in readers.values() for node in several):
                return found

    def _select(
        self, node: fx.Node, ranks: tuple[int, ...], readers: Mapping[fx.Node, tuple[fx.Node, ...]]
    ) -> Untangled:
        """Return what becomes of a norm, for all numbers of dimensions with which it can."""
        found: list[Untangled] = []
        reason = Blocked("its input has another number of dimensions than it takes")
        for rank in ranks:
            try:
                selection = _Selection(self._network, node, rank, readers, self._known)
                found.append(selection.result(self._with_rest))
            except Blocked as blocked:
                reason = blocked
        if not found:
            raise reason
        holds = tuple(rank for entry in found for rank in entry.ranks)
        first, *others = (replace(entry, ranks=holds) for entry in found)
        if any(other != first for other in others):
            raise Blocked("how many dimensions its input has is not known, and the copies depend on it")
        return first

    def _ranks(self, node: fx.Node) -> tuple[int, ...] | None:
        """Return how many dimensions the input of a norm may have that can select; None for any other node."""
        network, operation = self._network, self._network.operations[node]
        is_some_map = is_norm(operation.module) and operation.path not in network.identities
        if not is_some_map or not self._may_be_changed(operation):
            return None
        ranks = norm_type(operation.module).ranks
        known = network.on_example.rank(node.args[0] if node.args else None) if len(ranks) > 1 else None
        return ranks if known is None else (known,)

    def _may_be_changed(self, operation: ModuleCall) -> bool:
        """Return whether a layer or a norm is called once and nothing else needs it as it is."""
        return len(self._network.calls(operation.path)) == 1 and self._network.why_not_into(operation) is None

    def _norms_after(self, layer: fx.Node, norms: Mapping[fx.Node, tuple[int, ...]]) -> tuple[fx.Node, ...]:
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
        return tuple(network.ordered(found))


class _Selection(Search):
    """Where the copies for one norm lie in its input, once there is a copy for each norm."""

    def __init__(
        self,
        network: Network,
        node: fx.Node,
        rank: int,
        readers: Mapping[fx.Node, tuple[fx.Node, ...]],
        known: dict[tuple[fx.Node, int, int], Positions | None],
    ) -> None:
        super().__init__(network, network.operations[node], rank, into_norms=False)
        self.node, self.readers, self.known = node, readers, known
        # What the input of the norm is made of: layers that are copied for it, what else is joined with them, and what
        # lies between these and the norm.
        self.layers: list[fx.Node] = []
        self.others: list[fx.Node] = []
        self.between: list[fx.Node] = []
        self._is_reached: dict[fx.Node, bool] = {}

    def result(self, with_rest: bool) -> Untangled:
        """Return it; raise :class:`Blocked` where it cannot be told, or not without a rest."""
        source = self.node.args[0]
        assert isinstance(source, fx.Node)
        self._reaches(source)
        self.between = self.network.ordered(self.between)
        if self.others and not with_rest:
            raise Blocked("{} before it is not linear", self.network.name(self.others[0]))
        single = self._numbers_at(source, dict.fromkeys(self.layers, 1))
        copies = {layer: len(self.readers[layer]) for layer in self.layers}
        several = single if set(copies.values()) == {1} else self._numbers_at(source, copies)
        if len(single) != self.width:
            raise Blocked("{} channels come to it, it has {}", *counted(len(single), self.width))
        return self._untangled(single, copies, {number: place for place, number in enumerate(several)})

    def _untangled(self, single: Sequence[int], copies: Mapping[fx.Node, int], places: Mapping[int, int]) -> Untangled:
        steps = {layer: [OUTSIDE] * self._channels(layer) for layer in self.layers}
        index = [OUTSIDE] * self.width
        rest: list[int] = []
        channel_of = {number: channel for channel, number in enumerate(single)}
        first = first_of_several = 0
        for source in (*self.layers, *self.others):
            channels, count = self._channels(source), copies.get(source, 1)
            copy = self.readers[source].index(self.node) if source in steps else 0
            size = channels // (self._groups(source) if source in steps else 1)
            for number in range(channels):
                channel = channel_of.get(first + number)
                if channel is None:
                    continue
                group, within = divmod(number, size)
                place = places.get(first_of_several + (group * count + copy) * size + within)
                if place is None:
                    raise Blocked("its copy of {} does not come to it", self.network.name(source))
                index[channel] = place
                if source in steps:
                    steps[source][number] = channel
                else:
                    rest.append(channel)
            first, first_of_several = first + channels, first_of_several + count * channels
        operations = self.network.operations
        return Untangled(
            self.norm.path,
            tuple(Step(operations[layer].path, tuple(channels)) for layer, channels in steps.items()),
            tuple(index),
            tuple(sorted(rest)),
            tuple(self.through),
            (self.rank,),
        )

    def _reaches(self, node: fx.Node) -> bool:
        """Return whether a value is made of layers that are copied, and note what it is made of."""
        if node not in self._is_reached:
            self._is_reached[node] = self._note(node)
        return self._is_reached[node]

    def _note(self, node: fx.Node) -> bool:
        if node in self.readers:
            self.layers.append(node)
            return True
        if not self.network.is_passable(node):
            return False
        inputs = [name for name in node.all_input_nodes if has_data(name)]
        reached = [self._reaches(name) for name in inputs]
        if not any(reached):
            return False
        self.between.append(node)
        others = [name for name, is_reached in zip(inputs, reached, strict=True) if not is_reached]
        self.others.extend(name for name in others if name not in self.others)
        return True

    def _numbers_at(self, source: fx.Node, copies: Mapping[fx.Node, int]) -> tuple[int, ...]:
        """Return what comes to the norm: channels are numbered through all copies of all sources."""
        first, second = _WORLDS
        try:
            return self._numbers_in(first, source, copies)
        except Blocked:
            return self._numbers_in(second, source, copies)

    def _numbers_in(self, worlds: tuple[int, ...], source: fx.Node, copies: Mapping[fx.Node, int]) -> tuple[int, ...]:
        started: dict[fx.Node, Labels] = {}
        first = 0
        for node in (*self.layers, *self.others):
            number = self._channels(node) * copies.get(node, 1)
            started[node] = Labels.start(range(first, first + number), *self._axis_and_rank(node))
            first += number
        for node in self.between:
            (before, *more) = [name for name in node.all_input_nodes if has_data(name)]
            is_alone = not more and before in started
            positions = self._alone(node, before, started[before]) if is_alone else None
            if positions is not None:
                # What is joined with it elsewhere has the same sizes, whatever a pool made of those here.
                numbers = [started[before].channels[number] for number in positions.channels]
                started[node] = Labels.start(numbers, 1, self.rank)
        self.labels = {node: labels.in_worlds(worlds) for node, labels in started.items()}
        for node in self.between:
            if node not in started:
                self.pass_through(node)
        labels = self.labels[source]
        positions = labels.along(1) if labels.dimensions() == self.rank else None
        if positions is None:
            raise self.misplaced(source, self.norm)
        found = positions.channels
        if positions.repeats or len(set(found)) != len(found) or OUTSIDE in found:
            raise Blocked("a channel of {} comes to several of its own", self.network.name(self.layers[0]))
        return found

    def _alone(self, node: fx.Node, before: fx.Node, labels: Labels) -> Positions | None:
        """Return where an operation on one value moves its channels, or None where that is not told by one axis."""
        key = node, len(labels.channels), self.rank
        if key not in self.known:
            self.labels = {before: Labels.start(range(key[1]), labels.axis, labels.rank).in_worlds(WORLDS)}
            self.pass_through(node)
            found = self.labels[node]
            positions = found.along(1) if found.dimensions() == self.rank else None
            self.known[key] = (
                None if positions is None or positions.repeats or OUTSIDE in positions.channels else positions
            )
        return self.known[key]

    def _channels(self, node: fx.Node) -> int:
        if node in self.readers:
            return out_channels(self.network.operations[node].module)
        size = self.network.facts.size(node, 1)
        if size is None:
            raise Blocked("how many channels {} has is not known", self.network.name(node))
        return size

    def _groups(self, layer: fx.Node) -> int:
        return int(getattr(self.network.operations[layer].module, "groups", 1))

    def _axis_and_rank(self, node: fx.Node) -> tuple[int, int]:
        """Return where the channels of a source lie, and how many dimensions it has."""
        is_layer = node in self.readers
        ranks = ranks_of(self.network.operations[node].module) if is_layer else ()
        rank = ranks[0] if ranks else self.network.facts.rank(node) or self.rank
        return rank - 1 if is_layer and not ranks else 1, rank
