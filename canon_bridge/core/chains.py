"""Where the affine map of each normalization layer can go, found on the data flow of the whole model.

Floor 7: imports ``explicit`` and the tables below it. Nothing here writes to a model or reads parameter values.
"""

from dataclasses import dataclass, field, replace

from torch import fx, nn

from canon_bridge.core.activation import is_activation
from canon_bridge.core.affine import NORMS
from canon_bridge.core.explicit import Explicit, Operation
from canon_bridge.core.linear import LINEAR, in_channels, is_linear, out_channels, why_not_foldable
from canon_bridge.core.through import find_through


@dataclass(frozen=True)
class Target:
    """One linear layer that takes the map in, and the activation (path) that the map meets on the way, if any."""

    linear: str
    activation: str | None = None


@dataclass(frozen=True)
class Chain:
    """A normalization layer and all the linear layers that together can take its affine map.

    Attributes
    ----------
    norm : str
        Path of the normalization layer.
    direction : {"left", "right"}
        Whether the linear layer stands before it or the linear layers stand behind it.
    targets : tuple of Target
        One for "left", one or more for "right".
    through : tuple of str
        What lies in between, in order, by name.
    rank : int or None
        The number of dimensions of the input that the merge holds for, where the norm's type does not guarantee it.
    """

    norm: str
    direction: str
    targets: tuple[Target, ...]
    through: tuple[str, ...]
    rank: int | None = None

    @property
    def kind(self) -> str:
        """``"left"``, ``"right"``, ``"activation"`` (one on the way to all targets) or ``"mixed"``."""
        if self.direction == "left":
            return "left"
        activations = {target.activation for target in self.targets}
        if activations == {None}:
            return "right"
        return "activation" if len(activations) == 1 else "mixed"


@dataclass(frozen=True)
class Obstacle:
    """Why a chain does not exist."""

    reason: str


@dataclass(frozen=True)
class _State:
    """What has happened to the map between the norm and the present node."""

    rank: int | None  # of the tensor, None as long as it is the norm's and that accepts several
    activation: str | None = None
    flattened: bool = False


@dataclass
class _Found:
    targets: list[Target] = field(default_factory=list[Target])
    through: list[str] = field(default_factory=list[str])
    rank: int | None = None


class ChainFinder:
    """Search the chains of one model."""

    def __init__(self, explicit: Explicit) -> None:
        self.operations = explicit.operations
        self.aliases = explicit.aliases
        # Modules whose parameters or buffers some forward reads by itself: they have to keep their values.
        self.read_elsewhere = frozenset(
            str(node.target).rpartition(".")[0] for node in explicit.flow.graph.nodes if node.op == "get_attr"
        )

    def in_place_modules(self) -> tuple[str, ...]:
        """Return the paths of modules that work in place and compute the same out of place.

        A module stays in place where something reads the overwritten tensor later: it relies on the result.
        """
        needed: dict[str, bool] = {}
        for node, operation in self.operations.items():
            own = operation.path == node.target  # a clone for another call site is made the right way
            if own and self.aliases.overwrites(node):
                needed[operation.path] = needed.get(operation.path, False) or bool(self.aliases.read_after(node))
        return tuple(path for path, is_needed in needed.items() if not is_needed)

    def left(self, node: fx.Node) -> Chain | Obstacle:
        """Return the chain from the norm at ``node`` to the linear layer before it, or what stands in the way."""
        norm = self.operations[node]
        if norm.calls > 1:
            return Obstacle(f"it is called {norm.calls} times")
        through: list[str] = []
        ranks = {NORMS[type(norm.module)].rank}
        current = node
        while True:
            before = current.args[0] if current.args else None
            if not isinstance(before, fx.Node) or before.op not in ("call_module", "call_function", "call_method"):
                return Obstacle("no linear layer comes before it")
            operation = self.operations.get(before)
            if len(before.users) > 1:
                return Obstacle(f"{self._name(before)} before it has other consumers, too")
            if operation is not None and is_linear(operation.module):
                return self._left_into(norm, operation, tuple(reversed(through)), ranks)
            found = find_through(before, operation.module if operation else None)
            if found is None or found[0].flattens:
                return Obstacle(f"{self._name(before)} before it is not linear")
            if found[1] is not None:
                return Obstacle(found[1])
            through.append(found[0].name)
            ranks.add(found[0].rank)
            current = before

    def _left_into(
        self, norm: Operation, linear: Operation, through: tuple[str, ...], ranks: set[int | None]
    ) -> Chain | Obstacle:
        obstacle = self._obstacle_in(linear)
        if obstacle is not None:
            return obstacle
        width = _width(norm.module)
        if out_channels(linear.module) != width:
            return Obstacle(f"{linear.path} puts out {out_channels(linear.module)} channels, it wants {width}")
        rank = LINEAR[type(linear.module)].spatial + 2
        if ranks - {None, rank}:
            return Obstacle(_wrong_dimension(linear))
        guaranteed = NORMS[type(norm.module)].rank is not None
        return Chain(norm.path, "left", (Target(linear.path),), through, None if guaranteed else rank)

    def right(self, node: fx.Node) -> Chain | Obstacle:
        """Return the chain from the norm at ``node`` to the linear layers behind it, or what stands in the way."""
        norm = self.operations[node]
        if norm.calls > 1:
            return Obstacle(f"it is called {norm.calls} times")
        found = _Found()
        state = _State(NORMS[type(norm.module)].rank)
        obstacle = self._push(node, state, _width(norm.module), found)
        if obstacle is not None:
            return obstacle
        return Chain(norm.path, "right", tuple(found.targets), tuple(dict.fromkeys(found.through)), found.rank)

    def _push(self, node: fx.Node, state: _State, width: int, found: _Found) -> Obstacle | None:
        """Follow the map from the output of ``node`` into every consumer; fill ``found``."""
        users = sorted(node.users, key=self.aliases.order.__getitem__)
        if not users:
            return Obstacle("nothing reads its output")
        for user in users:
            operation = self.operations.get(user)
            if self.aliases.overwrites(user) and self.aliases.read_after(user):
                return Obstacle(f"{self._name(user)} overwrites a tensor that is read again later")
            obstacle = self._into(user, node, operation, state, width, found)
            if obstacle is not None:
                return obstacle
        return None

    def _into(
        self,
        user: fx.Node,
        node: fx.Node,
        operation: Operation | None,
        state: _State,
        width: int,
        found: _Found,
    ) -> Obstacle | None:
        if user.args[:1] != (node,) or user.all_input_nodes.count(node) != 1:
            return Obstacle(f"{self._name(user)} behind it is not linear")
        if operation is not None and is_linear(operation.module):
            return self._right_into(operation, state, width, found)
        if operation is not None and is_activation(operation.module):
            if operation.calls > 1:
                return Obstacle(f"{operation.path} behind it is called {operation.calls} times")
            if state.activation is not None:
                return Obstacle(f"two activations follow it, {state.activation} and {operation.path}")
            name = f"{type(operation.module).__name__} {operation.path}"
            found.through.append(name)
            return self._push(user, replace(state, activation=operation.path), width, found)
        through = find_through(user, operation.module if operation else None)
        if through is None:
            return Obstacle(f"{self._name(user)} behind it is not linear")
        entry, obstacle = through
        if obstacle is not None:
            return Obstacle(obstacle)
        found.through.append(entry.name)
        if entry.flattens:
            return self._push(user, replace(state, rank=2, flattened=True), width, found)
        if entry.rank is not None and not _settle(state, entry.rank, found):
            return Obstacle(f"{self._name(user)} behind it acts on another dimension than the channels")
        return self._push(user, replace(state, rank=state.rank or entry.rank), width, found)

    def _right_into(self, linear: Operation, state: _State, width: int, found: _Found) -> Obstacle | None:
        obstacle = self._obstacle_in(linear)
        if obstacle is not None:
            return obstacle
        if not _settle(state, LINEAR[type(linear.module)].spatial + 2, found):
            return Obstacle(_wrong_dimension(linear))
        takes = in_channels(linear.module)
        if takes % width != 0 if state.flattened else takes != width:
            return Obstacle(f"{linear.path} takes {takes} channels, it has {width}")
        found.targets.append(Target(linear.path, state.activation))
        return None

    def _obstacle_in(self, linear: Operation) -> Obstacle | None:
        if linear.calls > 1:
            return Obstacle(f"{linear.path} is called {linear.calls} times")
        if linear.path in self.read_elsewhere:
            return Obstacle(f"a forward reads the parameters of {linear.path} by itself")
        reason = why_not_foldable(linear.module)
        return None if reason is None else Obstacle(f"{linear.path}: {reason}")

    def _name(self, node: fx.Node) -> str:
        operation = self.operations.get(node)
        if operation is not None:
            return f"{operation.path} ({type(operation.module).__name__})"
        if node.op == "output":
            return "the output of the model"
        return str(getattr(node.target, "__name__", node.target))


def _wrong_dimension(linear: Operation) -> str:
    where = "the last dimension, not on channels" if isinstance(linear.module, nn.Linear) else "other dimensions"
    return f"{linear.path} acts on {where}"


def _settle(state: _State, rank: int, found: _Found) -> bool:
    """Return whether the tensor can have this rank; where the norm's type leaves it open, settle it."""
    if state.rank is not None:
        return state.rank == rank
    found.rank = found.rank or rank
    return found.rank == rank


def _width(norm: nn.Module) -> int:
    return int(norm.num_features)  # pyright: ignore[reportArgumentType]
