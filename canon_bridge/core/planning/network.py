"""The explicit flow as the searches for chains see it: who reads what, and which modules can take a map.

Floor 13: imports ``explicit`` and the tables below it. Nothing here writes to a model or reads parameter values.
"""

from typing import Final

from torch import fx, nn

from canon_bridge.core.activations import find_absorber, wanted_rank
from canon_bridge.core.channels.parts import concatenated, reads_shape_alone
from canon_bridge.core.channels.through import find_through
from canon_bridge.core.layers.linear import in_channels, is_linear, linear_type, out_channels, why_not_foldable
from canon_bridge.core.modules.arithmetic import Arithmetic
from canon_bridge.core.norms import is_norm, norm_type, width
from canon_bridge.core.planning.chains import Obstacle, Words, words
from canon_bridge.core.planning.fitting import name_of
from canon_bridge.core.registry import TypeKey, find_entry
from canon_bridge.core.tracing.explicit import Explicit, Operation

UNKNOWN_WIDTH = "how many channels {} adds to a concatenation is not known"

# Layers that no map passes, but whose output has the shape of the input.
_KEEP_SHAPE: Final[dict[TypeKey, bool]] = {
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm), True),
    **dict.fromkeys((nn.LocalResponseNorm, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin), True),
}


def first_argument(node: fx.Node) -> object:
    """Return the first argument of a call, or None where all are given by name."""
    return node.args[0] if node.args else None


def _with_data(node: fx.Node) -> list[fx.Node]:
    return [value for value in node.args[:2] if isinstance(value, fx.Node) and value.meta.get("has_data", True)]


class Network:
    """The flow of one model.

    Attributes
    ----------
    operations : dict
        What each node computes, where that is a module (or becomes one).
    read_elsewhere : frozenset of str
        Modules whose parameters or buffers some forward reads by itself: they have to keep their values.
    identities : set of str
        Normalization layers that are the identity, or will be when their merge is carried out.
    untouchable : set of str
        Normalization layers that stay as they are.
    """

    def __init__(self, explicit: Explicit) -> None:
        self.operations = explicit.operations
        self.aliases = explicit.aliases
        self.values = explicit.flow.values
        self.handed_on = explicit.handed_on
        self.order = explicit.aliases.order
        # A function that becomes a module has the tensors for itself from then on.
        reads = [
            str(node.target).rpartition(".")[0]
            for node in explicit.flow.graph.nodes
            if node.op == "get_attr" and not all(self._holds(user) for user in node.users)
        ]
        self.read_elsewhere = frozenset(reads)
        self.identities: set[str] = set()
        self.untouchable: set[str] = set()
        self.norms = frozenset(o.path for o in self.operations.values() if is_norm(o.module))
        self._paths: dict[str, list[fx.Node]] = {}
        for node in sorted(self.operations, key=self.order.__getitem__):
            self._paths.setdefault(self.operations[node].path, []).append(node)
        self._widths: dict[tuple[fx.Node, int], int | None] = {}
        for node in explicit.flow.graph.nodes:
            node.meta["batch"] = self._batch(node)

    def in_order(self) -> list[Operation]:
        """Return the operations in the order of the data flow, each module once."""
        first = {nodes[0]: path for path, nodes in self._paths.items()}
        return [self.operations[node] for node in sorted(first, key=self.order.__getitem__)]

    def in_place_modules(self) -> tuple[str, ...]:
        """Return the paths of modules that work in place and compute the same out of place.

        A module stays in place where something reads the overwritten tensor later: it relies on the result.
        """
        needed: dict[str, bool] = {}
        for node, operation in self.operations.items():
            own = operation.path == node.target  # a clone for another call site is made the right way
            if own and self.aliases.overwrites(node):
                relies = bool(self.aliases.read_after(node)) and node not in self.handed_on
                needed[operation.path] = needed.get(operation.path, False) or relies
        return tuple(path for path, is_needed in needed.items() if not is_needed)

    def calls(self, path: str) -> list[fx.Node]:
        """Return all calls of the module at a path."""
        return self._paths[path]

    def is_called(self, path: str) -> bool:
        """Return whether the module at a path is one operation of the flow."""
        return path in self._paths

    def called(self, path: str) -> Words:
        """Return the path of a module that is called, or its type."""
        return name_of(self.operations[self._paths[path][0]])

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Return who reads the data of a node, not only its size, in order."""
        readers = [user for user in node.users if user.op == "output" or user.meta.get("has_data", True)]
        readers = [reader for reader in readers if not reads_shape_alone(reader, node)]
        return sorted(readers, key=self.order.__getitem__)

    def is_overwritten_behind(self, node: fx.Node) -> bool:
        """Return whether the call overwrites memory that is read again under its former name."""
        return self.aliases.overwrites(node) and bool(self.aliases.read_after(node))

    def name(self, node: fx.Node) -> str:
        """Return what to call a node in a reason."""
        operation = self.operations.get(node)
        if operation is not None:
            kind = type(operation.module).__name__
            return Words(f"{operation.path} ({kind})", kind)
        if node.op == "output":
            return "the output of the model"
        if node.op == "placeholder":
            return "the input of the model"
        return str(getattr(node.target, "__name__", node.target))

    def why_not_into(self, operation: Operation) -> Obstacle | None:
        """Return why no map can be folded into a linear or normalization layer, or None if it can."""
        if operation.path in self.read_elsewhere:
            return Obstacle(words("a forward reads the parameters of {} by itself", name_of(operation)))
        if is_norm(operation.module):
            return (
                Obstacle(words("{} stays as it is", name_of(operation))) if operation.path in self.untouchable else None
            )
        reason = why_not_foldable(operation.module)
        return None if reason is None else Obstacle(words("{}: {}", name_of(operation), reason))

    def width(self, node: object, rank: int) -> int | None:
        """Return how many channels (length of axis 1) the output of a node has, or None if that is not known.

        Parameters
        ----------
        node : object
            The node.
        rank : int
            How many dimensions the output has.
        """
        if not isinstance(node, fx.Node):
            return None
        if (node, rank) not in self._widths:
            self._widths[node, rank] = self._width(node, rank)
        return self._widths[node, rank]

    def _width(self, node: fx.Node, rank: int) -> int | None:
        value = self.values.get(node)
        if value is not None:
            return value.shape[1] if hasattr(value, "shape") and value.dim() > 1 else None
        operation = self.operations.get(node)
        module = operation.module if operation else None
        if module is not None and is_linear(module):
            puts_out_channels = linear_type(module).spatial or rank == 2
            return out_channels(module) if puts_out_channels else self.width(first_argument(node), rank)
        if module is not None and is_norm(module):
            return width(module)
        if self._keeps_width(node, module):
            return self.width(first_argument(node), rank)
        parts = concatenated(node)
        if parts is not None and parts[1] == 1:
            widths = [self.width(part, rank) for part in parts[0]]
            return None if None in widths else sum(width for width in widths if width)
        if isinstance(module, Arithmetic):  # one of the two may have a single channel for all
            widths = [self.width(operand, rank) for operand in _with_data(node)]
            return None if None in widths or not widths else max(width for width in widths if width)
        return self._width_for_readers(node)

    def _keeps_width(self, node: fx.Node, module: nn.Module | None) -> bool:
        through = find_through(node, module)
        if through is not None and through[0].keeps_width:
            return True
        return module is not None and bool(find_absorber(module) or find_entry(_KEEP_SHAPE, module))

    def _holds(self, node: fx.Node) -> bool:
        """Return whether the tensors that a call is given become those of its module."""
        operation = self.operations.get(node)
        return operation is not None and not isinstance(operation.module, Arithmetic)

    def _batch(self, node: fx.Node) -> fx.Node:
        """Return the node at which the first dimension, as the output of ``node`` has it, comes up."""
        operation = self.operations.get(node)
        module = operation.module if operation else None
        parts = concatenated(node)
        before: list[object] = []
        if parts is not None and parts[1] != 0:
            before = [*parts[0]]
        elif isinstance(module, Arithmetic):
            before = [*_with_data(node)]
        elif (module is not None and (is_linear(module) or is_norm(module))) or self._keeps_width(node, module):
            before = [first_argument(node)]
        origins = {one.meta["batch"] if isinstance(one, fx.Node) else None for one in before}
        (origin,) = origins if len(origins) == 1 else (None,)
        return node if origin is None else origin

    def rank(self, node: object) -> int | None:
        """Return how many dimensions the output of a node has, the batch included, or None if that is not known."""
        if not isinstance(node, fx.Node):
            return None
        value = self.values.get(node)
        if value is not None:
            return value.dim() if hasattr(value, "dim") else None
        operation = self.operations.get(node)
        module = operation.module if operation else None
        if module is not None and is_linear(module):
            spatial = linear_type(module).spatial
            return spatial + 2 if spatial else self.rank(first_argument(node))
        if module is not None and is_norm(module) and len(norm_type(module).ranks) == 1:
            return norm_type(module).ranks[0]
        found = None if module is None else wanted_rank(module)
        if found is not None:
            return found
        through = find_through(node, module)
        if through is not None and through[0].rank is not None:
            return through[0].rank
        parts = concatenated(node)
        if (through is not None and through[0].keeps_width) or (module is not None and self._keeps_rank(module)):
            return self.rank(first_argument(node))
        return None if parts is None else self.rank(parts[0][0])

    @staticmethod
    def _keeps_rank(module: nn.Module) -> bool:
        return is_norm(module) or find_absorber(module) is not None or isinstance(module, Arithmetic)

    def _width_for_readers(self, node: fx.Node) -> int | None:
        for reader in self.readers(node):
            operation = self.operations.get(reader)
            if operation is None or reader.args[:1] != (node,):
                continue
            if is_linear(operation.module) and linear_type(operation.module).spatial:
                return in_channels(operation.module)
            if is_norm(operation.module):
                return width(operation.module)
        return None
