"""What is known of the values of a traced model: data, memory, sizes. Unknown is a value of its own, and never assumed.

Sizes are found by running: every operation is computed on tensors without memory in three *worlds* that differ in all
sizes that are not known. What is the same in all of them is known; what cannot be computed in one of them is not.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from canon_bridge.core.layers.linear import in_channels, is_linear, linear_type, out_channels
from canon_bridge.core.norms import is_norm, norm_type, width
from canon_bridge.core.operations import (
    OF_COMPLEX_NUMBERS,
    OPERATIONS,
    STOPS,
    WANTS_MODULE,
    Kind,
    Operation,
    may_share,
    operation_of_call,
    operation_of_module,
    overwritten,
)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What makes real numbers of complex ones, and what makes complex ones of real ones.
_REAL: Final = _names(
    "irfft irfft2 irfftn hfft fft_irfft fft_irfft2 _fft_c2r istft real imag abs angle view_as_real is_complex isreal"
)
_COMPLEX: Final = {entry.name for entry in OPERATIONS.values() if entry.note == OF_COMPLEX_NUMBERS} - _REAL | {
    "view_as_complex"
}
UNKNOWN: Final[Any] = object()
WORLDS: Final = range(3)

# What reads no value of its arguments.
_READS_NOTHING: Final = frozenset({Kind.SIZE, Kind.CREATION})
# What has a result of the sizes of its one operand, or of two together.
_SAME_SIZES: Final = frozenset({Kind.ELEMENTWISE, Kind.NORMALISER})
_ARITHMETIC: Final = _names("add sub rsub mul div")
# Operations that return values and indices; those whose results are several tensors.
_PAIRS: Final = _names("topk sort kthvalue mode cummax cummin")
_SEVERAL: Final = _PAIRS | _names(
    """chunk split split_with_sizes tensor_split hsplit vsplit dsplit unbind unsafe_split unsafe_chunk
    unsafe_split_with_sizes aminmax meshgrid broadcast_tensors"""
)
_WITH_INDICES: Final = "_with_indices"
# What reads how a tensor lies in memory, which tensors without memory do not tell; its type; where it is.
_OF_MEMORY: Final = _names("is_contiguous stride storage_offset is_leaf grad_fn names")
_OF_TYPE: Final = _names("dtype is_floating_point is_complex is_quantized is_signed element_size itemsize nbytes")
_OF_DEVICE: Final = _names("device is_cuda get_device")
# What reads of all arguments but the first only the shape or the type.
_LENDS_SHAPE: Final = _names("reshape_as view_as expand_as type_as to")


def ranks_of(module: nn.Module) -> tuple[int, ...]:
    """Return how many dimensions the input of a layer or a norm may have; none for a layer on features: any will do."""
    if is_norm(module):
        return norm_type(module).ranks
    spatial = linear_type(module).spatial
    return (spatial + 2,) if spatial else ()


def channels_in(module: nn.Module) -> int:
    """Return how many channels a layer or a norm takes."""
    return width(module) if is_norm(module) else in_channels(module)


def channels_out(module: nn.Module) -> int:
    """Return how many channels a layer or a norm puts out."""
    return width(module) if is_norm(module) else out_channels(module)


def note_data(node: fx.Node, module: nn.Module | None) -> None:
    """Note on a new node what it is, whether values of the input reach it, and whether relevance can flow through it.

    ``meta["operation"]`` is its entry or None, ``meta["has_data"]`` is False for sizes and tensors of the model,
    ``meta["carries"]`` is False also for what has no gradient, such as a comparison. ``meta["is_complex"]`` is True for
    complex numbers, as far as operations tell.
    """
    entry = operation_of_module(module) if module is not None else operation_of_call(node)
    if entry is not None and entry.name == "getitem" and node.args[1:] == (1,) and returns_indices(node.args[0]):
        entry = OPERATIONS["argmax"]
    node.meta["operation"] = entry
    values = values_read(node)
    if any(value.meta.get("is_complex", False) for value in values):
        node.meta["is_complex"] = entry is None or entry.name not in _REAL
        if entry is not None and entry.kind in WANTS_MODULE:
            node.meta["operation"] = entry = replace(entry, kind=Kind.WITHOUT_RULE, note=OF_COMPLEX_NUMBERS)
    else:
        node.meta["is_complex"] = entry is not None and entry.name in _COMPLEX
    before = [name.meta.get("has_data", True) for name in values]
    carried = [name.meta.get("carries", True) for name in values]
    if node.op in ("placeholder", "get_attr"):
        node.meta["has_data"] = node.meta["carries"] = node.op == "placeholder"
        return
    node.meta["has_data"] = any(before) and (entry is None or entry.kind not in _READS_NOTHING)
    node.meta["carries"] = any(carried) and (entry is None or entry.kind not in STOPS)


def entry_of(value: object) -> Operation | None:
    """Return what a node is, as :func:`note_data` noted it; None if that is not known, and for what is no node."""
    return value.meta.get("operation") if isinstance(value, fx.Node) else None


def has_data(value: object) -> bool:
    """Return whether a value of the graph depends on values of the input."""
    return isinstance(value, fx.Node) and value.meta.get("has_data", True)


def carries(value: object) -> bool:
    """Return whether relevance can flow through a value of the graph."""
    return isinstance(value, fx.Node) and value.meta.get("carries", True)


def reads_values(node: fx.Node, tensor: fx.Node) -> bool:
    """Return whether a node reads values of a tensor, not only its shape or type."""
    if node.op == "output":
        return True
    entry = entry_of(node)
    if entry is not None and entry.kind in _READS_NOTHING:
        return False
    return tensor in values_read(node)


def values_read(node: fx.Node) -> list[fx.Node]:
    """Return the arguments of a call that it reads more of than their shape or type."""
    entry = entry_of(node)
    lends_shape = entry is not None and entry.name in _LENDS_SHAPE
    return node.all_input_nodes[:1] if lends_shape else node.all_input_nodes


def returns_indices(node: object) -> bool:
    """Return whether a call returns values and where they were."""
    entry = entry_of(node)
    if not isinstance(node, fx.Node) or entry is None:
        return False
    if entry.name in ("max", "min", "median", "nanmedian"):
        return "dim" in node.kwargs or any(isinstance(dim, int) for dim in node.args[1:2])
    is_asked = node.kwargs.get("return_indices") is True
    return is_asked or entry.name in _PAIRS or entry.name.endswith(_WITH_INDICES)


def is_tensor(value: object) -> bool:
    """Return whether a value of the graph is one tensor through which relevance can flow."""
    if not isinstance(value, fx.Node) or not carries(value):
        return False
    entry = entry_of(value)
    if entry is not None and entry.kind is Kind.SUM:  # joined tuples of tensors
        return not any(isinstance(a, list | tuple) or _is_several(a) for a in value.args)
    return not _is_several(value)


def _is_several(value: object) -> bool:
    entry = entry_of(value)
    if isinstance(value, fx.Node) and value.kwargs.get("return_indices") is True:
        return True
    return entry is not None and (entry.name in _SEVERAL or entry.name.endswith(_WITH_INDICES))


class Aliases:
    """The memory that the nodes of a graph share, and what they overwrite; ``modules`` are those that nodes call."""

    def __init__(self, graph: fx.Graph, modules: dict[fx.Node, nn.Module]) -> None:
        self.modules = modules
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        self._targets = {
            node: overwritten(node, modules.get(node)) for node in graph.nodes if node.op.startswith("call")
        }
        self._origins: dict[fx.Node, frozenset[fx.Node]] = {}
        self._readers: dict[fx.Node, list[tuple[fx.Node, fx.Node]]] = {}
        for node in graph.nodes:
            shared = {origin for base in self._bases(node) for origin in self._origins[base]}
            self._origins[node] = frozenset(shared or {node})
            for name in node.all_input_nodes:
                for origin in self._origins[name]:
                    self._readers.setdefault(origin, []).append((node, name))
        self._spread_data(graph)

    def _spread_data(self, graph: fx.Graph) -> None:
        """Note that data come to a tensor that carries none where they are written to other names of its memory."""
        dirty: set[fx.Node] = set()
        for node in graph.nodes:
            for mark in ("has_data", "carries"):
                if node.op.startswith("call") and not node.meta.get(mark, True) and self._reads(node, dirty, mark):
                    node.meta[mark] = True
            target = self.overwritten(node)
            if target is not None and carries(node) and not all(map(carries, self._origins[target])):
                dirty |= self._origins[target]

    def _reads(self, node: fx.Node, dirty: set[fx.Node], mark: str) -> bool:
        entry = entry_of(node)
        if entry is not None and entry.kind in (_READS_NOTHING if mark == "has_data" else STOPS):
            return False
        return any(name.meta.get(mark, True) or self._origins[name] & dirty for name in values_read(node))

    def overwritten(self, node: fx.Node) -> fx.Node | None:
        """Return the argument that the call overwrites, or None."""
        return self._targets.get(node)

    def origins(self, node: fx.Node) -> frozenset[fx.Node]:
        """Return the nodes whose memory the value of a node may be."""
        return self._origins[node]

    def read_after(self, node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
        """Return who reads values, after ``node`` has overwritten its argument, of that memory by a name from before.

        Each is a reader and the name (node) by which it reads.
        """
        target = self.overwritten(node)
        if target is None:
            return []
        now = self.order[node]
        found = (pair for origin in self._origins[target] for pair in self._readers.get(origin, []))
        late = [(r, name) for r, name in found if self.order[r] > now > self.order[name] and reads_values(r, name)]
        return list(dict.fromkeys(late))

    def _bases(self, node: fx.Node) -> list[fx.Node]:
        """Return the arguments whose memory the result may be."""
        if not node.op.startswith("call"):
            return []
        target = self.overwritten(node)
        entry = entry_of(node)
        if not may_share(entry, node):
            return [] if target is None else [target]
        first = [a for a in node.args[:1] if isinstance(a, fx.Node)]
        known = entry is not None and entry.kind is Kind.MOVEMENT and first
        return first if known else [name for name in node.all_input_nodes if name.op != "get_attr"]


class Facts:
    """The sizes of the values of one flow, as far as they are known.

    ``modules`` are those that nodes call or become; ``values`` are those of nodes on example inputs, where the flow was
    traced with values; ``root`` is the model; ``ranks`` are how many dimensions its arguments have, by name, if told.
    """

    def __init__(
        self,
        graph: fx.Graph,
        modules: dict[fx.Node, nn.Module],
        values: dict[fx.Node, Any],
        root: Any,
        ranks: Mapping[str, int] | None = None,
    ):
        self.modules, self.values, self.root, self._ranks = modules, values, root, ranks or {}
        self._nodes = iter(graph.nodes)
        self._found: dict[fx.Node, Any] = {}
        self._fresh = _primes()
        tensors: Any = root.parameters() if isinstance(root, nn.Module) else ()
        self._dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)

    def rank(self, node: object) -> int | None:
        """Return how many dimensions the output of a node has, the batch included, or None if that is not known."""
        shapes = self.shapes(node)
        return None if shapes is None else len(shapes[0])

    def size(self, node: object, axis: int) -> int | None:
        """Return how long an axis of the output of a node is, or None if that is not known."""
        shapes = self.shapes(node)
        if shapes is None or axis >= len(shapes[0]):
            return None
        sizes = {shape[axis] for shape in shapes}
        return sizes.pop() if len(sizes) == 1 else None

    def shapes(self, node: object) -> list[tuple[int, ...]] | None:
        """Return the shape of a tensor in each world, or None if it is not known."""
        found = self.of(node)
        return [tuple(tensor.shape) for tensor in found] if _are_tensors(found) else None

    def of(self, node: object) -> Any:
        """Return what a node computes in each world (a tensor on the meta device, a size, a tuple), or UNKNOWN."""
        if not isinstance(node, fx.Node):
            return [node] * len(WORLDS)
        while node not in self._found:
            following = next(self._nodes)
            self._found[following] = self._compute(following)
        return self._found[node]

    def _compute(self, node: fx.Node) -> Any:
        if node in self.values:
            return self._like(self.values[node])
        found = self._by_kind(node)
        if found is UNKNOWN:
            found = self._for_readers(node)
        is_told = found is UNKNOWN and node.op == "placeholder" and node.target in self._ranks
        return self._of_rank(self._ranks[str(node.target)]) if is_told else found

    def _by_kind(self, node: fx.Node) -> Any:
        if node.op in ("placeholder", "output"):
            return UNKNOWN
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        module, entry = self.modules.get(node), entry_of(node)
        first = self.of(node.args[0]) if node.args else UNKNOWN
        if module is not None and is_linear(module):
            return self._after_layer(module, first)
        if module is not None and is_norm(module):
            return first if _are_tensors(first) else self._tensors(width(module), ranks_of(module))
        # A number is never overwritten, whatever the operator is called.
        is_in_place = (first is UNKNOWN or _are_tensors(first)) and overwritten(node, module) is not None
        if entry is None or entry.kind is Kind.WITHOUT_RULE or is_in_place:
            return first if entry is not None and is_in_place else UNKNOWN
        if entry.kind in _SAME_SIZES:
            return first if _are_tensors(first) else UNKNOWN
        if entry.name in _ARITHMETIC or entry.name in ("maximum", "minimum"):
            operands = [self.of(value) for value in node.args[:2]]
            return self._broadcast(operands) if any(map(_are_tensors, operands)) else self._run(node, module)
        if node.op == "call_module" and (any(True for _ in module.parameters()) if module is not None else True):
            return UNKNOWN
        if entry.name in _OF_MEMORY or (entry.name in (*_OF_TYPE, *_OF_DEVICE) and self._home is None):
            return UNKNOWN
        return self._run(node, module)

    @functools.cached_property
    def _home(self) -> torch.device | None:
        """The device of the model, whose type and device are taken for those of its input; None if it has several."""
        tensors: list[Tensor] = [*self.root.parameters(), *self.root.buffers()]
        kinds = {(tensor.dtype, tensor.device) for tensor in tensors if tensor.is_floating_point()}
        return next(iter(kinds))[1] if len(kinds) == 1 else None

    def _run(self, node: fx.Node, module: nn.Module | None) -> Any:
        results: list[Any] = []
        name = getattr(entry_of(node), "name", "")
        where = self._home if name in _OF_DEVICE else None
        for world in WORLDS:
            try:
                args, kwargs = map_arg((node.args, node.kwargs), lambda value, w=world: _in(self.of(value), w, where))
                # Tensors that forward makes need no memory either, wherever it wants them.
                kwargs = {**kwargs, "device": "meta"} if "device" in kwargs else kwargs
                args = tuple("meta" if isinstance(a, torch.device) and name == "to" else a for a in args)
                with torch.no_grad(), torch.device("meta"):
                    results.append(call(node, module, args, kwargs))
            except Exception:  # whatever an operation raises on sizes that it cannot have
                return self._after_pool(node)
        return results if len({_structure(result) for result in results}) == 1 else UNKNOWN

    def _broadcast(self, operands: list[Any]) -> Any:
        """Return the shape of two operands together: an unknown size is the other's, if that is known and not one."""
        tensors = [found for found in operands if _are_tensors(found)]
        if any(found is UNKNOWN for found in operands):
            return UNKNOWN
        rank = max(found[0].dim() for found in tensors)
        padded = [[(1,) * (rank - tensor.dim()) + tuple(tensor.shape) for tensor in found] for found in tensors]
        sizes: list[tuple[int, ...]] = []
        for axis in range(rank):
            found = {tuple(shape[axis] for shape in shapes) for shapes in padded} - {(1,) * len(WORLDS)}
            known = [size for size in found if len(set(size)) == 1]
            sizes.append(known[0] if known else found.pop() if len(found) == 1 else self._new() if found else (1, 1, 1))
        return [self._meta(tuple(size[w] for size in sizes)) for w in WORLDS]

    def _after_pool(self, node: fx.Node) -> Any:
        """Return what a pool puts out whose window is larger than the sizes here: other sizes, the same channels."""
        entry, first = entry_of(node), self.of(node.args[0]) if node.args else UNKNOWN
        if entry is None or "pool" not in entry.name or not _are_tensors(first) or first[0].dim() < 3:
            return UNKNOWN
        wide = [self._new() for _ in range(first[0].dim() - 2)]
        return [self._meta((*tensor.shape[:2], *(size[w] for size in wide))) for w, tensor in enumerate(first)]

    def _after_layer(self, module: nn.Module, first: Any) -> Any:
        ranks, channels = ranks_of(module), out_channels(module)
        if not _are_tensors(first):
            return self._tensors(channels, ranks)
        if not ranks:
            return [self._meta((*tensor.shape[:-1], channels)) for tensor in first]
        if first[0].dim() not in ranks:
            return UNKNOWN
        wide = [self._new() for _ in range(first[0].dim() - 2)]
        return [self._meta((tensor.shape[0], channels, *(size[w] for size in wide))) for w, tensor in enumerate(first)]

    def _for_readers(self, node: fx.Node) -> Any:
        """Return what a value must be for the layers that read it, or a function of it that has the same sizes."""
        waiting, seen = [node], set[fx.Node]()
        while waiting:
            value = waiting.pop()
            seen.add(value)
            for reader in value.users:
                module = self.modules.get(reader) if reader.args[:1] == (value,) else None
                if module is not None and (is_linear(module) or is_norm(module)) and ranks_of(module):
                    return self._tensors(channels_in(module), ranks_of(module))
                if reader not in seen and _keeps_sizes(reader):
                    waiting.append(reader)
        return UNKNOWN

    def _tensors(self, channels: int, ranks: tuple[int, ...]) -> Any:
        if len(ranks) != 1:
            return UNKNOWN
        sizes = [self._new() for _ in range(ranks[0] - 1)]
        return [self._meta((sizes[0][w], channels, *(size[w] for size in sizes[1:]))) for w in WORLDS]

    def _of_rank(self, rank: int) -> Any:
        sizes = [self._new() for _ in range(rank)]
        return [self._meta(tuple(size[w] for size in sizes)) for w in WORLDS]

    def _like(self, value: Any) -> Any:
        """Return what is known from a value on example inputs: its dimensions and its channels, not how large it is."""
        if not isinstance(value, Tensor) or value.dim() < 2:
            return UNKNOWN
        sizes = [self._new() if axis != 1 else (length,) * 3 for axis, length in enumerate(value.shape)]
        return [self._meta(tuple(size[w] for size in sizes)) for w in WORLDS]

    def _attribute(self, name: str) -> Any:
        value = self.root
        for part in name.split("."):
            value = getattr(value, part, None)
        return [value.detach().to("meta")] * len(WORLDS) if isinstance(value, Tensor) else UNKNOWN

    def _meta(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device="meta")

    def _new(self) -> tuple[int, ...]:
        return 1, next(self._fresh), next(self._fresh)


def _keeps_sizes(node: fx.Node) -> bool:
    """Return whether a call has one tensor among its arguments, and a result of the same sizes."""
    entry = entry_of(node)
    if entry is None or len(node.all_input_nodes) != 1:
        return False
    return entry.kind in _SAME_SIZES or entry.name in _ARITHMETIC


def call(node: fx.Node, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
    """Compute the call of a node on other values."""
    if node.op == "call_module":
        assert module is not None
        return type(module).forward(module, *args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function: Any = node.target
    return function(*args, **kwargs)


def _in(found: Any, world: int, device: torch.device | None) -> Any:
    if found is UNKNOWN:
        raise LookupError("not known")
    value = found[world]
    return value if device is None or not isinstance(value, Tensor) else value.new_empty(0, device=device)


def _are_tensors(found: Any) -> bool:
    return found is not UNKNOWN and isinstance(found[0], Tensor)


def _structure(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.dim()
    if isinstance(result, tuple | list):
        return tuple(_structure(item) for item in result)
    return type(result)


def _primes() -> Iterator[int]:
    """Yield prime numbers, so that no size is the sum, the product or the part of others by chance."""
    number = 101
    while True:
        if all(number % divisor for divisor in range(3, int(number**0.5) + 1, 2)):
            yield number
        number += 2
