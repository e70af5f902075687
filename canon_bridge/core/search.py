"""Where the affine map of a norm can go: the layers that take it, to the left and to the right, and which is taken.

Nothing here writes to a model or reads the values of its parameters.
"""

import functools
import heapq
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from canon_bridge.core.activations import find_absorber, wanted_rank
from canon_bridge.core.explicit import Explicit
from canon_bridge.core.facts import (
    UNKNOWN,
    Facts,
    call,
    channels_in,
    channels_out,
    entry_of,
    has_data,
    ranks_of,
    reads_values,
)
from canon_bridge.core.labels import OUTSIDE, Labels, Mixed, Positions, encode
from canon_bridge.core.layers.linear import is_linear, why_not_before, why_not_foldable
from canon_bridge.core.norms import is_norm, norm_type, width
from canon_bridge.core.operations import Kind
from canon_bridge.core.plan import Chain, Obstacle, Step, Words, words
from canon_bridge.core.rewrite import ExplicitFlow, ModuleCall, data_of

# What a map may pass, if running it on channel numbers shows that it does.
_PASSABLE = frozenset({Kind.MOVEMENT, Kind.LINEAR})
_NOT_LINEAR = "{} after it is not linear"
# Why a constant in a channel is no constant, or another one, behind an operation.
_COUNTS = "it counts the padding"
_DIVIDES = "it divides by another number than that of the elements in its window"
_PUTS_IN = "it puts in other numbers"
_MIXES = "it sums, scales or mixes channels"


class Network:
    """The flow of one model as the searches see it: who reads what, and which modules can take a map.

    Attributes
    ----------
    operations : dict
        What each node computes, where that is a module (or becomes one).
    read_elsewhere : frozenset of str
        Modules whose parameters or buffers some forward reads, or sets, by itself: they have to keep their values.
    identities : set of str
        Norms that are the identity, or will be when their merge is carried out.
    untouchable : set of str
        Norms that stay as they are.
    facts, on_example : Facts
        What is known of all inputs, and what is known of those that are like the example inputs.
    """

    def __init__(self, explicit: ExplicitFlow, model: nn.Module, arguments: tuple[Any, ...] | None = None) -> None:
        graph = explicit.flow.graph
        self.operations = explicit.operations
        self.aliases = explicit.aliases
        self.relied_on = explicit.relied_on
        self.order = explicit.aliases.order
        modules = {node: operation.module for node, operation in self.operations.items()}
        self.facts = self.on_example = Facts(graph, modules, explicit.flow.values, model)
        if arguments is not None:
            named = inspect.signature(model.forward).bind(*arguments).arguments
            ranks = {name: value.dim() for name, value in named.items() if isinstance(value, Tensor)}
            self.on_example = Facts(graph, modules, explicit.flow.values, model, ranks)
        # A function that becomes a layer has the tensors for itself from then on.
        reads = [
            str(node.target).rpartition(".")[0]
            for node in graph.nodes
            if node.op == "get_attr" and not all(self._holds(user) for user in node.users)
        ]
        self.read_elsewhere = frozenset(reads) | explicit.flow.altered
        self.identities: set[str] = set()
        self.untouchable: set[str] = set()
        self._paths: dict[str, list[fx.Node]] = {}
        for node in self.ordered(self.operations):
            self._paths.setdefault(self.operations[node].path, []).append(node)

    def ordered(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """Return nodes in the order of the data flow."""
        return sorted(nodes, key=self.order.__getitem__)

    def in_order(self) -> list[ModuleCall]:
        """Return the operations in the order of the data flow, each module once."""
        return [self.operations[nodes[0]] for nodes in self._paths.values()]

    def in_place_modules(self) -> tuple[str, ...]:
        """Return the paths of modules that work in place and compute the same out of place.

        A module stays in place where something reads the overwritten tensor later: it relies on the result.
        """
        needed: dict[str, bool] = {}
        for node, operation in self.operations.items():
            if operation.is_made or self.aliases.overwritten(node) is None:
                continue  # what is made for a call site is made the right way
            relies = bool(self.aliases.read_after(node)) or node in self.relied_on
            needed[operation.path] = needed.get(operation.path, False) or relies
        return tuple(path for path, is_needed in needed.items() if not is_needed)

    def calls(self, path: str) -> list[fx.Node]:
        """Return all calls of the module at a path; none if it is no operation of the flow."""
        return self._paths.get(path, [])

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Return who reads values of a node, not only its size, in order."""
        return self.ordered(user for user in node.users if reads_values(user, node))

    def name(self, node: fx.Node) -> str:
        """Return what to call a node in a reason."""
        operation, entry = self.operations.get(node), entry_of(node)
        if operation is not None:
            kind = type(operation.module).__name__
            if isinstance(operation.module, Explicit) and entry is not None:  # a type that the user does not know
                kind = entry.name.lstrip("_")
            is_said = operation.path.rpartition(".")[2] == kind
            return Words(operation.path if is_said else f"{operation.path} ({kind})", kind)
        named = {"output": "the output of the model", "placeholder": "the input of the model"}
        return named.get(node.op) or str(getattr(node.target, "__name__", node.target))

    def is_passable(self, node: fx.Node) -> bool:
        """Return whether a map may pass an operation, if running it on channel numbers shows that it does."""
        entry, operation = entry_of(node), self.operations.get(node)
        if operation is not None and node.op == "call_module" and "forward" in vars(operation.module):
            return False
        return entry is not None and entry.kind in _PASSABLE

    def why_not_into(self, operation: ModuleCall) -> str | None:
        """Return why no map can be folded into a linear layer or a norm, or None if it can."""
        if operation.path in self.read_elsewhere:
            return words("a forward reads the parameters of {} by itself", name_of(operation))
        if is_norm(operation.module):
            return words("{} stays as it is", name_of(operation)) if operation.path in self.untouchable else None
        reason = why_not_foldable(operation.module)
        return None if reason is None else words("{}: {}", name_of(operation), reason)

    def _holds(self, node: fx.Node) -> bool:
        """Return whether the tensors that a call is given become those of its module."""
        operation = self.operations.get(node)
        return operation is not None and operation.holds_tensors


def name_of(operation: ModuleCall) -> Words:
    """Return the path of a module, or its type."""
    return Words(operation.path, type(operation.module).__name__)


def counted(first: int, second: int) -> tuple[Words, Words]:
    """Return two numbers of channels as words."""
    return Words(str(first), "n"), Words(str(second), "m")


def find_right(network: Network, norm: ModuleCall, *, into_norms: bool = True) -> Chain | Obstacle:
    """Return the chain from a norm, for every call of it, to all layers after it, or what stands in the way.

    ``into_norms`` says whether other norms may take the map, too.
    """
    return _of_any_rank(network, norm, lambda rank: _Right(network, norm, rank, into_norms).run())


def find_left(network: Network, norm: ModuleCall, *, into_norms: bool = True) -> Chain | Obstacle:
    """Return the chain from a norm, for every call of it, to the layers before it, as :func:`find_right` does."""
    return _of_any_rank(network, norm, lambda rank: _Left(network, norm, rank, into_norms).run())


def _of_any_rank(network: Network, norm: ModuleCall, search: Callable[[int], Chain | Obstacle]) -> Chain | Obstacle:
    """Return the chain of a norm whose type accepts several numbers of dimensions, and for which of them it holds.

    Where that is not known, but example inputs were given, it is the chain for what is like them.
    """
    ranks = norm_type(norm.module).ranks
    calls = network.calls(norm.path) if len(ranks) > 1 else []
    known = [network.facts.rank(call.args[0]) for call in calls] or [*ranks]
    told = [network.on_example.rank(call.args[0]) for call in calls] or known
    searched = [rank for rank in ranks if rank in known or not all(rank in ranks for rank in known)]
    found = {rank: search(rank) for rank in searched}
    chains = {rank: chain for rank, chain in found.items() if isinstance(chain, Chain)}
    for rank, chain in found.items():
        if isinstance(chain, Obstacle) and (rank in told or not chains):
            return chain
    decisive = [chains[rank] for rank in chains if rank in told or not all(rank in ranks for rank in told)]
    if any(chain != decisive[0] for chain in decisive):
        return Obstacle("how many dimensions its input has is not known, and the chain depends on it")
    holds = tuple(rank for rank, chain in chains.items() if chain == decisive[0])
    return decisive[0] if holds == ranks else replace(decisive[0], ranks=holds)


class Blocked(Exception):  # noqa: N818 - not an error, it ends the search
    """Raise where there is no chain; ``reason`` says why, in words with braces for the ``names``."""

    def __init__(self, reason: str, *names: str) -> None:
        self.reason = words(reason, *names) if names else reason


@dataclass
class _Reached:
    """A module that the map arrives at: how, and at which of its calls."""

    step: Step
    repeats: bool
    first: int = 0  # number of the first channel after it, if it absorbs
    nodes: list[fx.Node] = field(default_factory=list[fx.Node])


class Search:
    """What the searches share: channel numbers on their way through operations that a map may pass."""

    def __init__(self, network: Network, norm: ModuleCall, rank: int, into_norms: bool) -> None:
        self.network, self.norm, self.rank, self.into_norms = network, norm, rank, into_norms
        self.width = width(norm.module)
        self.labels: dict[fx.Node, Labels] = {}
        self.reached: dict[str, _Reached] = {}
        self.through: dict[str, None] = {}

    def run(self) -> Chain | Obstacle:
        """Return the chain or the obstacle."""
        try:
            chain = self._find()
            for path, reached in self.reached.items():
                if len(reached.nodes) != len(self.network.calls(path)):
                    raise Blocked("{} is called elsewhere, too", name_of(self.network.operations[reached.nodes[0]]))
        except Blocked as blocked:
            return Obstacle(blocked.reason)
        return chain

    def _find(self) -> Chain:
        raise NotImplementedError

    def _is_norm(self, operation: ModuleCall | None) -> bool:
        """Return whether an operation is a norm that is not the identity."""
        return operation is not None and is_norm(operation.module) and operation.path not in self.network.identities

    def pass_through(self, node: fx.Node) -> None:
        """Run an operation on the channel numbers."""
        sources = [name for name in node.all_input_nodes if name in self.labels]
        entry, operation = entry_of(node), self.network.operations.get(node)
        assert entry is not None
        if node.op != "call_module" and entry.data and not self.labels.keys().isdisjoint(data_of(node, entry)[1]):
            raise Blocked("{}: a weight, a gate or an index of it has channels of the norm", self.network.name(node))
        module = operation.module if operation is not None and node.op == "call_module" else None

        def run(world: int) -> Any:
            local, is_join = _World(self, world, sources[0], node), entry.name == "cat"
            args, kwargs = map_arg((node.args, node.kwargs), lambda name: local.value(name, is_join))
            return call(node, module, args, kwargs)

        try:
            self.labels[node] = self.labels[sources[0]].moved(run)
        except Mixed as mixed:
            raise Blocked("{}: {}", self.network.name(node), str(mixed)) from mixed
        self.through[entry.name] = None

    def _arrive(self, node: fx.Node, operation: ModuleCall, positions: Positions, first: int | None = None) -> _Reached:
        """Note that the map arrives at a module; ``first`` numbers the first channel after one that absorbs."""
        step = Step(operation.path, positions.channels, first is not None)
        reached = self.reached.setdefault(operation.path, _Reached(step, positions.repeats, first or 0))
        if (reached.step, reached.repeats) != (step, positions.repeats):
            raise Blocked("{} is called in different ways", name_of(operation))
        reached.nodes.append(node)
        return reached

    def misplaced(self, source: fx.Node, reader: ModuleCall) -> Blocked:
        """Return why the channels are not where a reader wants them: by what changed them, if it is not the reader."""
        before, waiting = set[fx.Node](), [source]
        while waiting:
            node = waiting.pop()
            if node in self.labels and node not in before:
                before.add(node)
                waiting += node.all_input_nodes
        for node in self.network.ordered(before):
            sources = [self.labels[name] for name in node.all_input_nodes if name in self.labels]
            entry, was_passed = entry_of(node), bool(sources) and self.network.is_passable(node)
            kept = self.labels[node].kept(sources) if was_passed else 1
            if kept < 1 and entry is not None:
                is_pool = entry.name.startswith("avg_pool")
                why = _MIXES if entry.kind is not Kind.MOVEMENT else _PUTS_IN
                why = (_COUNTS if kept else _DIVIDES) if is_pool else why
                return Blocked("{} does not keep constants: {}", self.network.name(node), why)
        return Blocked("{} acts on another dimension than the channels", name_of(reader))

    def _check(self, operation: ModuleCall) -> None:
        reason = self.network.why_not_into(operation)
        if reason is not None:
            raise Blocked(reason)


class _World:
    """Values of nodes for an operation that reads them, in one world of the channel numbers, which has its sizes."""

    def __init__(self, search: Search, world: int, source: fx.Node, reader: fx.Node) -> None:
        self.search, self.world, self.source, self.reader = search, world, source, reader
        self.facts = search.network.facts

    @functools.cached_property
    def sizes(self) -> dict[tuple[int, ...], int]:
        """The sizes of this world for those that are not known, as far as the numbered tensors tell."""
        sizes: dict[tuple[int, ...], int] = {}
        for node, labels in self.search.labels.items():
            shapes = self.facts.shapes(node)
            value = labels.value(self.world) if shapes else None
            if shapes and isinstance(value, Tensor) and value.dim() == len(shapes[0]):
                sizes.update(zip(zip(*shapes, strict=True), value.shape, strict=True))
        return sizes

    def value(self, node: fx.Node, is_joined: bool = False) -> Any:
        """Return what an argument is here; what is joined with others has their sizes but along one axis."""
        if node in self.search.labels:
            return self.search.labels[node].value(self.world)
        if node.op == "get_attr":
            raise Mixed("it depends on a tensor of the model")
        if not has_data(node) and node.op != "placeholder" and entry_of(node) is not None:
            if (number := self._number(node)) is not None:
                return number
            args, kwargs = map_arg((node.args, node.kwargs), self._size_of)
            return call(node, None, args, kwargs)
        return self._outside(node, is_joined)

    def _number(self, node: fx.Node) -> int | None:
        """Return a size that is known by itself, though others of the same tensor need not be; else None."""
        worlds = self.facts.of(node)
        sizes = tuple(worlds) if worlds is not UNKNOWN and all(type(size) is int for size in worlds) else ()
        return self._local(sizes) if len(set(sizes)) == 1 or sizes in self.sizes else None

    def _size_of(self, node: fx.Node) -> Any:
        return self.value(node) if node.op != "get_attr" else self._outside(node, False)

    def _outside(self, node: fx.Node, is_joined: bool) -> Tensor:
        """Return a tensor of the right shape, all of it outside the channels of the norm."""
        shapes = self.facts.shapes(node)
        if is_joined:
            shape = self._beside(node, shapes)
        elif shapes is None:
            raise Mixed(f"the shape of {self.search.network.name(node)} is not known")
        else:
            shape = [self._local(size) for size in zip(*shapes, strict=True)]
        return encode((OUTSIDE,)).expand(shape)

    def _beside(self, node: fx.Node, shapes: Any) -> list[int]:
        """Return the shape of a tensor that is joined with another: the same but along one axis, which is known."""
        like, reader = self.search.labels[self.source].value(self.world), self.reader
        dim: Any = reader.args[1] if len(reader.args) > 1 else reader.kwargs.get("dim", reader.kwargs.get("axis", 0))
        if type(dim) is not int:
            raise Mixed("it joins along a computed dimension")
        size = None if shapes is None or len(shapes[0]) != like.dim() else self.facts.size(node, dim % like.dim())
        if size is None:
            raise Mixed(f"how many channels {self.search.network.name(node)} adds is not known")
        shape = list(like.shape)
        shape[dim] = size
        return shape

    def _local(self, size: tuple[int, ...]) -> int:
        if len(set(size)) == 1:
            return size[0]
        if size not in self.sizes:
            raise Mixed("it depends on a size that is not known")
        return self.sizes[size]


class _Right(Search):
    """Push the channel numbers through the flow, in the order of the flow, until layers take them."""

    def _find(self) -> Chain:
        self.numbers = self.width  # of channels of all maps so far
        for node in self._nodes_after():
            self._visit(node)
        steps = tuple(reached.step for reached in self.reached.values())
        return Chain(self.norm.path, self.width, "right", steps, tuple(self.through))

    def _nodes_after(self) -> Iterator[fx.Node]:
        """Yield in order every node that reads something the map has come to."""
        waiting: list[tuple[int, fx.Node]] = []
        seen: set[fx.Node] = set()
        for node in self.network.calls(self.norm.path):
            self.labels[node] = Labels.start(range(self.width), 1, self.rank)
            self._enqueue(node, waiting, seen)
        while waiting:
            node = heapq.heappop(waiting)[1]
            yield node
            if node in self.labels:
                self._enqueue(node, waiting, seen)

    def _enqueue(self, node: fx.Node, waiting: list[tuple[int, fx.Node]], seen: set[fx.Node]) -> None:
        readers = self.network.readers(node)
        if not readers:
            raise Blocked("nothing reads its output")
        for reader in readers:
            if reader not in seen:
                seen.add(reader)
                heapq.heappush(waiting, (self.network.order[reader], reader))

    def _visit(self, node: fx.Node) -> None:
        network, operation = self.network, self.network.operations.get(node)
        is_read = bool(network.aliases.read_after(node)) or node in network.relied_on
        if network.aliases.overwritten(node) is not None and is_read:
            raise Blocked("{} overwrites a tensor that is read again later", network.name(node))
        source: Any = node.args[0] if node.args else None
        others = [name for name in node.all_input_nodes if name is not source and has_data(name)]
        is_alone = isinstance(source, fx.Node) and source in self.labels and not others
        if operation is not None and operation.path == self.norm.path:
            raise Blocked("it feeds itself")
        if is_alone and operation is not None and (is_linear(operation.module) or self._is_norm(operation)):
            self._take(node, operation, self.labels[source])
        elif is_alone and operation is not None and find_absorber(operation.module) is not None:
            self._absorb(node, operation, self.labels[source])
        elif is_alone and operation is not None and is_norm(operation.module):
            self.labels[node] = self.labels[source]  # an identity
        elif self.network.is_passable(node):
            self.pass_through(node)
        else:
            raise Blocked(_NOT_LINEAR, network.name(node))

    def _take(self, node: fx.Node, operation: ModuleCall, labels: Labels) -> None:
        if is_norm(operation.module) and not self.into_norms:
            raise Blocked("{} after it is a norm", name_of(operation))
        self._check(operation)
        reason = None if is_norm(operation.module) else why_not_before(operation.module)
        if reason is not None:
            raise Blocked("{}: {}", name_of(operation), reason)
        rank, ranks, takes = labels.dimensions(), ranks_of(operation.module), channels_in(operation.module)
        fits = rank in ranks if ranks else rank is not None
        positions = labels.along(1 if ranks else -1) if fits else None
        if positions is None:
            raise self.misplaced(node.all_input_nodes[0], operation)
        if not positions.fits(takes):
            counts = counted(takes, len(positions.channels))
            raise Blocked("{} takes {} channels, it has {}", name_of(operation), *counts)
        self._arrive(node, operation, positions)

    def _absorb(self, node: fx.Node, operation: ModuleCall, labels: Labels) -> None:
        module = operation.module
        several = any(parameter.numel() > 1 for parameter in module.parameters())
        rank = wanted_rank(module)  # of a pool; an activation takes any
        positions = labels.along(1) if rank in (None, labels.dimensions()) else None
        if positions is None or (positions.repeats and several):
            raise self.misplaced(node.all_input_nodes[0], operation)
        known = operation.path in self.reached
        first = self._arrive(node, operation, positions, self.numbers).first
        self.numbers += 0 if known else len(positions.channels)

        def pool(world: int, value: Tensor) -> Any:
            local, source = _World(self, world, node.all_input_nodes[0], node), node.args[0]
            args, kwargs = map_arg(
                (node.args, node.kwargs), lambda name: value if name is source else local.value(name)
            )
            pooled = call(node, module if node.op == "call_module" else None, args, kwargs)
            if not pooled.isfinite().all():  # a window of padding alone
                raise Mixed("its sizes are too small")
            return pooled

        try:
            self.labels[node] = labels.renumbered(first, positions, None if rank is None else pool)
        except Mixed as mixed:
            if rank is None or positions.repeats:
                raise Blocked("{}: {}", name_of(operation), str(mixed)) from mixed
            # Of a size that is not known, but a pool of each channel whatever that is.
            self.labels[node] = Labels.start(range(first, first + len(positions.channels)), 1, rank)
        kind = type(module).__name__
        self.through[Words(f"{kind} {operation.path}", kind)] = None


class _Left(Search):
    """Follow the flow back to the layers before, as long as nobody else reads it, and number their channels on the way.

    Whether what lies between keeps the channels apart is then found by running it, from the layers to the norm.
    """

    def _find(self) -> Chain:
        for node in self.network.calls(self.norm.path):
            self.producers: dict[fx.Node, ModuleCall] = {}
            self.between: list[fx.Node] = []
            self._back(node.args[0] if node.args else None, node)
            self.between = self.network.ordered(self.between)
            place = {channel: index for index, channel in enumerate(self._channels_at(node))}
            count = 0
            for producer, operation in self.producers.items():
                numbers = range(count, count := count + channels_out(operation.module))
                channels = tuple(place.get(number, OUTSIDE) for number in numbers)
                self._arrive(producer, operation, Positions(channels))
        steps = tuple(reached.step for reached in self.reached.values())
        return Chain(self.norm.path, self.width, "left", steps, tuple(self.through))

    def _back(self, node: object, reader: fx.Node) -> None:
        network = self.network
        if not isinstance(node, fx.Node) or node.op not in ("call_module", "call_function", "call_method"):
            raise Blocked("no linear layer comes before it")
        if node in self.producers or node in self.between:
            return
        operation = network.operations.get(node)
        if any(other is not reader for other in network.readers(node)):
            raise Blocked("{} before it has other consumers, too", network.name(node))
        if operation is not None and (is_linear(operation.module) or self._is_norm(operation)):
            if is_norm(operation.module) and not self.into_norms:
                raise Blocked("{} before it is a norm", name_of(operation))
            if operation.path == self.norm.path:
                raise Blocked("it feeds itself")
            self._check(operation)
            self.producers[node] = operation
            return
        is_identity = operation is not None and is_norm(operation.module)
        if not is_identity and not self.network.is_passable(node):
            raise Blocked("{} before it is not linear", network.name(node))
        for name in node.all_input_nodes:
            if has_data(name):
                self._back(name, node)
        self.between.append(node)

    def _channels_at(self, node: fx.Node) -> tuple[int, ...]:
        """Return which channel of the layers, counted through all of them, lies where at the norm.

        Where it is not known how many dimensions the output of a layer has, what holds for all numbers with which the
        norm gets as many as it takes.
        """
        known = all(self._dimensions(producer, operation) for producer, operation in self.producers.items())
        found: set[tuple[int, ...]] = set()
        blocked: Blocked | None = None
        for assumed in (0,) if known else (2, 3, 4, 5):
            try:
                self._number(assumed)
                for inner in self.between:
                    self._forward(inner)
                found.add(self._read(node))
            except Blocked as error:
                blocked = error
        if len(found) == 1:
            return found.pop()
        last = next(iter(self.producers.values()))
        raise blocked or Blocked("how many dimensions the output of {} has is not known", name_of(last))

    def _number(self, assumed: int) -> None:
        """Give the channels of the layers numbers, counted through all of them."""
        self.labels, count = {}, 0
        for node, operation in self.producers.items():
            rank = self._dimensions(node, operation) or assumed
            numbers = range(count, count := count + channels_out(operation.module))
            self.labels[node] = Labels.start(numbers, 1 if ranks_of(operation.module) else rank - 1, rank)

    def _dimensions(self, node: fx.Node, operation: ModuleCall) -> int | None:
        """Return how many dimensions the output of a layer has, or None if that is not known."""
        ranks = ranks_of(operation.module)
        if len(ranks) == 1:
            return ranks[0]
        is_next = any(user in self.network.calls(self.norm.path) for user in node.users)
        return self.rank if is_next else self.network.facts.rank(node)

    def _forward(self, node: fx.Node) -> None:
        operation = self.network.operations.get(node)
        if operation is not None and is_norm(operation.module):  # an identity
            (source,) = [name for name in node.all_input_nodes if name in self.labels]
            self.labels[node] = self.labels[source]
        else:
            self.pass_through(node)

    def _read(self, node: fx.Node) -> tuple[int, ...]:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        labels = self.labels[source]
        positions = labels.along(1) if labels.dimensions() == self.rank else None
        last = next(iter(self.producers.values()))
        if positions is None:
            raise self.misplaced(source, last)
        if positions.repeats or len(set(positions.channels)) != len(positions.channels):
            raise Blocked("a channel of {} comes to several of the norm", name_of(last))
        if len(positions.channels) != self.width or OUTSIDE in positions.channels:
            counts = counted(len(positions.channels), self.width)
            raise Blocked("{} puts out {} channels, it wants {}", name_of(last), *counts)
        return positions.channels
