"""New forwards for containers, in which every operation that rules must see, and every call, has a module of its own.

What gets a module, how it is made, and the forward that calls it. Nothing here writes to a model.
"""

import functools
import inspect
import numbers
import operator
import types
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from canon_bridge.core import explicit
from canon_bridge.core.explicit import MakeModule, Slot
from canon_bridge.core.facts import Aliases, call, carries, entry_of, has_data, is_tensor, values_read
from canon_bridge.core.norms import children_after
from canon_bridge.core.operations import (
    PLACED,
    WANTS_MODULE,
    Kind,
    Operation,
    bound_of,
    out_of_place,
    places_of,
    setitem_,
)
from canon_bridge.core.restore import finder
from canon_bridge.core.source import write_forward
from canon_bridge.core.trace.flow import CONSTANTS, Flow, Site, TracingError, is_proxy, pattern
from canon_bridge.core.trace.preserve import names_read
from canon_bridge.core.trace.trace import trace_locally
from canon_bridge.core.written import Written


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """What a node of the flow calls once the model is explicit.

    Attributes
    ----------
    path : str
        Name of the module in the canonical model.
    module : nn.Module
        The module; for what is made on entry, one like it.
    is_made : bool
        Whether it is made on entry, for a function or for a further call of a module.
    holds_tensors : bool
        Whether the tensors that a function is given become those of the module.
    """

    path: str
    module: nn.Module
    is_made: bool = False
    holds_tensors: bool = False


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A new forward for one container, and the children that it calls in addition.

    Attributes
    ----------
    path, original : str
        The container, in the canonical model and in the model as it is.
    function : callable
        ``forward(self, ...)``, to be bound to the container.
    children : tuple of (str, callable)
        Name of each new child module, and what makes it, given the container.
    constants : dict
        Tensors that forward creates, by attribute name.
    """

    path: str
    original: str
    function: Written
    children: tuple[tuple[str, MakeModule], ...]
    constants: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class ExplicitFlow:
    """A flow in which every operation that rules must see, and every call of a module, has a module.

    Attributes
    ----------
    flow : Flow
        The flow.
    operations : dict
        The module that each node calls.
    aliases : Aliases
        Which nodes share memory.
    rewrites : tuple of Rewrite
        The new forwards, those of containers before those of what is in them.
    failures : dict
        Why a node has no module of its own, or shares one with other calls.
    relied_on : frozenset of fx.Node
        Calls in place whose result is read by the former name in a forward that has to stay as it is.
    """

    flow: Flow
    operations: dict[fx.Node, ModuleCall]
    aliases: Aliases
    rewrites: tuple[Rewrite, ...]
    failures: dict[fx.Node, str]
    relied_on: frozenset[fx.Node]


@dataclass(frozen=True, eq=False)
class _Wanted:
    """One call site that needs a module of its own.

    ``arguments`` makes of the call, as the container alone writes it, the arguments that the module gets.
    """

    site: Site
    name: str
    make: MakeModule
    module: nn.Module
    arguments: Callable[[fx.Node], tuple[Any, ...]] | None
    holds_tensors: bool = False


def make_explicit(model: nn.Module, flow: Flow, rewrite: bool = True) -> ExplicitFlow:
    """Find the operations and calls that need a module of their own, and write forwards that call it.

    Parameters
    ----------
    model : nn.Module
        The traced model; it is not changed.
    flow : Flow
        Its data flow.
    rewrite : bool
        If False, no new modules: only modules that are there already are operations.
    """
    survey = _Survey(model, flow)
    rewrites: list[Rewrite] = []
    for owner in flow.owners if rewrite else ():
        if survey.resolved(owner) != owner:
            continue
        if children_after(model.get_submodule(survey.original(owner))):
            survey.give_up(owner, "it is a norm that calls other modules")  # not a forward that could be written anew
            continue
        if survey.is_called_otherwise(owner):
            survey.give_up(owner, "it is called with different structures, and the calls cannot be told apart")
            continue
        wanted, overwritten_later = survey.wanted(owner), survey.overwritten_later(owner)
        # Where the course depends on values, the new forward checks that it is the course that the flow holds for.
        if not (wanted or overwritten_later or survey.relies(owner) or owner in flow.decided):
            continue
        try:
            container = model.get_submodule(survey.original(owner))
            called = survey.called_by(owner)
            rewrites.append(_write_forward(container, owner, flow, wanted, overwritten_later, called))
        except TracingError as error:
            survey.give_up(owner, str(error))
        else:
            survey.made.update({entry.site: entry for entry in wanted})
            survey.written.add(owner)
    if rewrite and flow.expected and not any(new.path == "" for new in rewrites):
        rewrites.append(guard_forward(model, flow))
    if not rewrite:
        survey.give_up_all()
    operations = survey.operations()
    relied_on = frozenset(node for node in flow.reread if not survey.is_written_for(node))
    return ExplicitFlow(flow, operations, survey.aliases, tuple(rewrites), survey.failures, relied_on)


class _Survey:
    """All calls of a flow, by the forward that writes them, and which of them need a module of their own."""

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        self.model, self.flow = model, flow
        self.failures: dict[fx.Node, str] = {}
        self.made: dict[Site, _Wanted] = {}
        self.written: set[str] = set()  # the containers that have a new forward
        find = finder(model)
        self.modules = {node: find(str(node.target)) for node in flow.sites if node.op == "call_module"}
        self.aliases = Aliases(flow.graph, self.modules)
        self.nodes: dict[str, list[fx.Node]] = defaultdict(list)
        for node, site in flow.sites.items():
            self.nodes[site.owner].append(node)
        self._further_calls: dict[str, list[tuple[Site, str]]] = defaultdict(list)
        for site, place in flow.stand_ins.items():
            self._further_calls[site.owner].append((site, place))
        self._called: dict[str, list[fx.Node]] = defaultdict(list)
        for node, place in flow.places.items():
            self._called[place].append(node)
        self._shared: dict[str, str] = {}  # stand-ins that cannot be, and what is called in their place

    def original(self, place: str) -> str:
        """Return the path of the module that is called at a place, in the model as it is."""
        return self.flow.originals.get(place, place)

    def resolved(self, place: str) -> str:
        """Return the place of the module that is called in the end."""
        parts = place.split(".")
        for end in range(1, len(parts) + 1):
            head = ".".join(parts[:end])
            if head in self._shared:
                return self.resolved(".".join([self._shared[head], *parts[end:]]))
        return place

    def is_called_otherwise(self, owner: str) -> bool:
        """Return whether a call that shares a container, as there is no stand-in for it, passes another structure."""
        inputs = self.flow.inputs
        places = [place for place in self._shared if place in inputs and self.resolved(place) == owner]
        return any(pattern(inputs[place]) != pattern(inputs[owner]) for place in places)

    def wanted(self, owner: str) -> list[_Wanted]:
        """Return the calls of one forward that need a module of their own."""
        container = self.model.get_submodule(self.original(owner))
        entries = [self._further_call(site, place) for site, place in self._further_calls[owner]]
        for node in self.nodes[owner]:
            if node.op != "call_module":
                taken = {entry.name for entry in entries}
                entries += self._function(node, self.flow.sites[node], container, taken)
        return entries

    def called_by(self, owner: str) -> set[Site]:
        """Return the calls of modules in one forward."""
        leaves = {self.flow.sites[node] for node in self.nodes[owner] if node.op == "call_module"}
        return leaves | self._containers_called[owner]

    @functools.cached_property
    def _containers_called(self) -> dict[str, set[Site]]:
        found: dict[str, set[Site]] = defaultdict(set)
        for site in self.flow.returns:
            found[site.owner].add(site)
        return found

    def relies(self, owner: str) -> bool:
        """Return whether a forward calls a module in place and reads its input as overwritten, which it alone does."""
        return any(
            node.op == "call_module" and self._may_be_out_of_place(node)
            for node in self.nodes[owner]
            if node in self.flow.reread
        )

    def is_written_for(self, node: fx.Node) -> bool:
        """Return whether a new forward hands the result of a call in place to all who read the overwritten tensor."""
        return self.flow.sites[node].owner in self.written and not self._read_elsewhere(node)

    def _read_elsewhere(self, node: fx.Node) -> set[str]:
        """Return the forwards, but the one of a call in place, that have the overwritten tensor from elsewhere.

        What has been made in the same forward, others have from its hands: it gives them the result.
        """
        owner = self.flow.sites[node].owner
        target = self.aliases.overwritten(node)
        origins = frozenset[fx.Node]() if target is None else self.aliases.origins(target)
        makers = {self.flow.sites[origin].owner if origin in self.flow.sites else "" for origin in origins}
        is_own = all(not owner or maker == owner or maker.startswith(f"{owner}.") for maker in makers)
        return set() if is_own else self.flow.reread.get(node, set()) - {owner}

    def overwritten_later(self, owner: str) -> list[Site]:
        """Return the calls of modules in one forward whose result something overwrites that has to stay in place.

        Rules hold on to the result of a module, which has to be another tensor then.
        """
        origins = self._overwritten_origins
        sites = (self.flow.sites[node] for node in self.nodes[owner] if node in origins and _becomes_module(node))
        return list(sites)

    @functools.cached_property
    def _overwritten_origins(self) -> set[fx.Node]:
        origins: set[fx.Node] = set()
        for node in self.flow.sites:
            target = self.aliases.overwritten(node)
            entry = entry_of(node)
            stays = node.op == "call_module" or entry is None or not _wants_module(node, entry)
            if target is not None and (not self._may_be_out_of_place(node) or (stays and node.op != "call_module")):
                origins |= self.aliases.origins(target)
        return origins

    def give_up(self, owner: str, reason: str) -> None:
        """Note that a forward cannot be written anew: its functions stay, and further calls are of the same modules.

        Raise ``TracingError`` where it takes its course by what is not known: nothing would check that it is this one.
        """
        if any(known() is None for known in self.flow.checks.get(owner, ())):
            raise TracingError(
                f"{reason} What the forward of {owner or 'the model'} computes depends on values or sizes of its "
                "input, or on how it is run, and only a new forward would notice where it is something else."
            )
        places = tuple(place for _, place in self._further_calls[owner])
        self._shared.update({place: self.original(place) for place in places})
        for node, place in self.flow.places.items():
            if place.startswith(tuple(f"{path}." for path in places)) or place in places:
                self.failures[node] = reason
        for node in self.nodes[owner]:
            entry = entry_of(node)
            if node.op != "call_module" and entry is not None and _wants_module(node, entry):
                self.failures.setdefault(node, reason)

    def give_up_all(self) -> None:
        """Note that no forward is written anew."""
        for owner in self.flow.owners:
            self.give_up(owner, "functions stay functions here")

    def operations(self) -> dict[fx.Node, ModuleCall]:
        """Return what each node calls."""
        operations: dict[fx.Node, ModuleCall] = {}
        for node, site in self.flow.sites.items():
            owner = self.resolved(site.owner)
            entry = self.made.get(Site(owner, site.what, site.occurrence))
            if entry is not None:
                path = f"{owner}.{entry.name}" if owner else entry.name
                module = self.modules.get(node, entry.module)
                operations[node] = ModuleCall(path, module, True, entry.holds_tensors)
            elif node.op == "call_module":
                operations[node] = ModuleCall(self.resolved(self.flow.places[node]), self.modules[node])
        return operations

    def _function(self, node: fx.Node, site: Site, container: nn.Module, taken: set[str]) -> list[_Wanted]:
        """Return what is wanted for a call of a function: one module, or none."""
        entry = entry_of(node)
        if entry is None or not _wants_module(node, entry):
            return []
        if not self._may_be_out_of_place(node):
            self.failures[node] = "it overwrites a tensor that is read under another name"
            return []
        try:
            made = _make(node, entry, self.model, self.modules.get)
        except ValueError as error:
            if entry.kind is not Kind.SELECTION:
                self.failures[node] = str(error)
            return []

        def make(container: nn.Module) -> nn.Module:
            return made.make().train(container.training)

        name = _free_name(container, made.name, taken)
        return [_Wanted(site, name, make, made.make(), made.arguments, made.holds_tensors)]

    def _further_call(self, site: Site, place: str) -> _Wanted:
        module = self.model.get_submodule(self.original(place))
        calls = self._called[place]  # none of a container, whose flag is for its own forward to read
        in_place = any(not self._may_be_out_of_place(node) for node in calls)

        def make(container: nn.Module) -> nn.Module:
            twin = explicit.stand_in(module)
            if calls and getattr(twin, "inplace", False) is True:
                vars(twin)["inplace"] = in_place
            return twin

        return _Wanted(site, place.rpartition(".")[2], make, module, None)

    def _may_be_out_of_place(self, node: fx.Node) -> bool:
        """Return whether a new forward can hand the result to all who read the overwritten tensor later.

        It can if they are in the same forward and do not read it by the name of a part of it, or of what it is part of.
        """
        owner = self.flow.sites[node].owner
        target = self.aliases.overwritten(node)
        memory = frozenset[fx.Node]() if target is None else self.aliases.origins(target)
        # A container that is traced alone does not know that two of its arguments are one tensor.
        if sum(bool(self.aliases.origins(name) & memory) for name in nodes_in(self.flow.inputs.get(owner, ()))) > 1:
            return False
        late = (reader for reader, _ in self.aliases.read_after(node))
        return not self._read_elsewhere(node) and all(_writes_back(reader, node, target) for reader in late)


def _becomes_module(node: fx.Node) -> bool:
    entry = entry_of(node)
    return node.op == "call_module" or (entry is not None and _wants_module(node, entry))


def _writes_back(reader: fx.Node, node: fx.Node, part: fx.Node | None) -> bool:
    """Return whether a node writes a result back to the part that it was computed from, as ``x[i] += y`` does."""
    if reader.target is not setitem_ or part is None or part.target is not operator.getitem:
        return False
    return reader.args[2] is node and reader.args[:2] == part.args[:2]


def _wants_module(node: fx.Node, entry: Operation) -> bool:
    """Return whether a call of a function is to become a call of a module."""
    if not is_tensor(node) and not (carries(node) and entry.kind in WANTS_MODULE):
        return False
    if entry.kind is Kind.SUM and not is_tensor(node):  # joined tuples
        return False
    if entry.kind in WANTS_MODULE or entry.kind in (Kind.LINEAR_LAYER, Kind.NORM) or entry.make is not None:
        return True
    return _source(node, entry) is not None


@dataclass(frozen=True, eq=False)
class _Made:
    """How a call becomes a module: what it is called, its maker, and what it gets of the call."""

    name: str
    make: MakeModule
    arguments: Callable[[fx.Node], tuple[Any, ...]]
    holds_tensors: bool = False


def _make(node: fx.Node, entry: Operation, root: nn.Module, module_of: "ModuleOf") -> _Made:
    """Return how the call becomes a module; raise ``ValueError`` where it has no module form, with the reason."""
    if entry.make is not None:
        try:
            return _of_torch(node, entry, root)
        except ValueError as error:
            is_pool = entry.name in _POOLS and isinstance(error, _ComputedError)
            if entry.kind not in WANTS_MODULE and entry.kind is not Kind.LINEAR_LAYER and not is_pool:
                raise
    if entry.name in ("add", "sub", "rsub", "mul", "div"):
        return _arithmetic(node, entry, module_of)
    flags = _data_flags(node, entry)
    count = sum(flags)
    if any(carries(leaf) and not is_tensor(leaf) for leaf in _occurrences(node)):
        raise ValueError("an argument is several tensors")
    kind, more = _POOLS.get(entry.name) or _GENERIC.get(entry.kind, explicit.Product), dict[str, Any]()
    if entry.kind in (Kind.PRODUCT, Kind.LINEAR_LAYER):
        if entry.name == "glu":
            return _gated(node)
        kind, more = _product(node, entry, flags, module_of)
    elif (source := _source(node, entry)) is not None:
        kind, more = explicit.Placed, {"source": source}
    elif count != 1 and entry.kind is not Kind.LINEAR:
        raise ValueError(f"it has {count} inputs with data, and is known for one")
    function, (args, kwargs) = out_of_place(node), _template(node, flags)
    make = functools.partial(kind, function, args, kwargs, count, **more)
    return _Made(entry.name, make, lambda call: _slots(call, flags))


_GENERIC: Final = {
    Kind.ELEMENTWISE: explicit.ElementWise,
    Kind.LINEAR: explicit.LinearMap,
    Kind.NORMALISER: explicit.Normaliser,
}
# By the name of the operation: those that absorb a map, whatever their size is computed from.
_POOLS: Final = {
    f"{kind}max_pool{spatial}d": getattr(explicit, f"MaxPool{spatial}d")
    for kind in ("", "adaptive_")
    for spatial in (1, 2, 3)
}
_APART: Final = (int, slice, types.EllipsisType, types.NoneType)  # indices that say each place once
_IGNORED: Final = frozenset({"input", "other", "self", "inplace", "out"})  # what a module out of place has no use for


class _ComputedError(ValueError):
    """An argument that a module of torch has to be made with is computed in forward."""


def _of_torch(node: fx.Node, entry: Operation, root: nn.Module) -> _Made:
    """Return the module of torch for a call, with the tensors of the model that it is given."""
    first = _operands(node, 1)
    if len(first) != 1 or not is_tensor(first[0]):
        raise ValueError("its first argument carries no data")
    # With the tensors of the moment in which it is called; a plan keeps no model alive.
    make = functools.partial(_build, node, entry, weakref.ref(root))
    make()
    return _Made(entry.name, make, lambda call: _operands(call, 1), bool(entry.tensors))


def _build(node: fx.Node, entry: Operation, reference: weakref.ref[nn.Module]) -> nn.Module:
    root = reference()
    assert entry.make is not None
    assert root is not None
    keywords = {name: value for name, value in node.kwargs.items() if name not in _IGNORED}
    try:
        arguments = dict(inspect.signature(entry.make).bind(*node.args[1:], **keywords).arguments)
        for name in entry.tensors:
            if nodes_in(arguments.get(name)):
                arguments[name] = _constant(arguments[name], root)
        if nodes_in(arguments) and arguments.get("return_indices") is not True:
            raise _ComputedError("an argument is computed in forward")
        return entry.make(**arguments).eval()
    except (TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"its arguments have no module form ({error})") from error


def _arithmetic(node: fx.Node, entry: Operation, module_of: "ModuleOf") -> _Made:
    """Return the module of a sum, difference, product or quotient."""
    values = _operands(node, 2)
    alpha = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
    if len(values) != 2 or alpha != 1 or node.kwargs.get("rounding_mode") is not None:
        if entry.kind is not Kind.SUM:
            raise ValueError("it is rounded, or has other arguments than two")
        flags = tuple(map(is_tensor, _occurrences(node)))
        make = functools.partial(explicit.LinearMap, out_of_place(node), *_template(node, flags), sum(flags))
        return _Made(entry.name, make, lambda call: _slots(call, flags))
    if not all(map(_may_be_operand, values)):
        raise ValueError("an operand is no tensor and no number")
    kind, name = {
        "add": (explicit.Add, "add"),
        "sub": (explicit.Subtract, "subtract"),
        "rsub": (explicit.Subtract, "subtract"),
        "mul": (explicit.Multiply, "multiply"),
        "div": (explicit.Divide, "divide"),
    }[entry.name]
    turned = entry.name == "rsub"
    signal = _signal(values[::-1] if turned else values, name, module_of)
    return _Made(
        name,
        functools.partial(kind, signal),
        lambda call: _operands(call, 2)[::-1] if turned else _operands(call, 2),
    )


def _gated(node: fx.Node) -> _Made:
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", -1)
    if type(dim) is not int:
        raise ValueError("its dimension is computed in forward")
    return _Made("glu", functools.partial(explicit.Gated, dim), lambda call: _operands(call, 1))


_WITH_TERM: Final = frozenset(["addmm", "addmv", "addbmm", "baddbmm", "addr", "addcmul", "addcdiv"])


def _product(
    node: fx.Node, entry: Operation, flags: tuple[bool, ...], module_of: "ModuleOf"
) -> tuple[type[explicit.Explicit], dict[str, Any]]:
    """Return the module for a product of values of which one or several carry data."""
    count = sum(flags)
    if entry.name in _WITH_TERM:
        is_divisor = entry.name == "addcdiv" and flags[2:3] == (True,)
        if flags[1:3] == (True, True) or is_divisor:
            raise ValueError("it has several factors with data besides a term")
        return explicit.LinearMap, {}
    if count == 1 or entry.data:
        return explicit.LinearMap, {}
    leaves = [leaf for leaf, flag in zip(_occurrences(node), flags, strict=True) if flag]
    certainties = [_certainty(leaf, module_of) for leaf in leaves]
    least = min(certainties)
    signal = certainties.index(least) if certainties.count(least) == 1 else None
    return explicit.Product, {"signal": signal}


def _source(node: fx.Node, entry: Operation) -> int | None:
    """Return which of the values with data, in the order of their slots, is put where several may meet, or None."""
    if entry.kind is not Kind.MOVEMENT or entry.name not in PLACED:
        return None
    if entry.name == "setitem":
        index = node.args[1]
        if all(isinstance(part, _APART) for part in (index if isinstance(index, tuple) else (index,))):
            return None
    pairs = zip(_places(node, entry), _data_flags(node, entry), strict=True)
    places = [place for place, flag in pairs if flag]
    return places.index(entry.data[-1]) if entry.data[-1] in places else None


def _occurrences(node: fx.Node) -> list[fx.Node]:
    """Return all nodes among the arguments of a call, in order, each as often as it is written."""
    return nodes_in((node.args, _keywords(node)))


def _keywords(node: fx.Node) -> dict[str, Any]:
    """Return the arguments by keyword of a call that overwrites nothing."""
    return {name: value for name, value in node.kwargs.items() if name not in ("out", "inplace")}


def _data_flags(node: fx.Node, entry: Operation) -> tuple[bool, ...]:
    """Return of all nodes among the arguments of a call, in order, which are tensors that relevance goes to."""
    flags = tuple(map(is_tensor, _occurrences(node)))
    places = _places(node, entry) if entry.data else []
    if not any(flag and place == entry.data[0] for flag, place in zip(flags, places, strict=False)):
        return flags
    return tuple(flag and place in entry.data for flag, place in zip(flags, places, strict=True))


def data_of(node: fx.Node, entry: Operation) -> tuple[list[fx.Node], list[fx.Node]]:
    """Return the nodes that are those arguments of a call that relevance goes to, by the table, and all others."""
    pairs = list(zip(_occurrences(node), _places(node, entry), strict=True))
    chosen = [leaf for leaf, place in pairs if place in entry.data]
    return chosen, [leaf for leaf, place in pairs if place not in entry.data]


def _places(node: fx.Node, entry: Operation) -> list[int]:
    """Return for all nodes among the arguments of a call, in order, which argument they are in, -1 if unknown."""
    names = places_of(entry.name)
    is_method = node.op == "call_method" and entry.name == "where"  # of the first of the two, not of the condition
    order = (1, 0, 2) if is_method else range(len(node.args))
    pairs = [
        *zip(order, node.args, strict=False),
        *((names.get(name, -1), value) for name, value in _keywords(node).items()),
    ]
    return [place for place, value in pairs for _ in nodes_in(value)]


def nodes_in(structure: Any) -> list[fx.Node]:
    """Return the nodes in nested arguments, in order; of proxies those that they stand for."""
    if isinstance(structure, fx.Node):
        return [structure]
    if is_proxy(structure):
        return [structure.node]
    if isinstance(structure, slice):
        structure = (structure.start, structure.stop, structure.step)
    elif isinstance(structure, dict):
        structure = tuple(structure.values())
    return [node for part in structure for node in nodes_in(part)] if isinstance(structure, tuple | list) else []


def _template(node: fx.Node, flags: tuple[bool, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with slots for its nodes: first for those with a flag, then for the others."""
    order = sorted(range(len(flags)), key=lambda index: not flags[index])
    slots = iter([Slot(order.index(index)) for index in range(len(flags))])
    return _plain(node.args, slots), _plain(_keywords(node), slots)


def _plain(structure: Any, slots: Iterator[Slot]) -> Any:
    if isinstance(structure, fx.Node):
        return next(slots)
    if isinstance(structure, tuple):
        return tuple(_plain(item, slots) for item in structure)
    if isinstance(structure, list):
        return [_plain(item, slots) for item in structure]
    if isinstance(structure, dict):
        return {key: _plain(item, slots) for key, item in structure.items()}
    if isinstance(structure, slice):
        return slice(*(_plain(part, slots) for part in (structure.start, structure.stop, structure.step)))
    return structure


def _slots(call: fx.Node, flags: tuple[bool, ...]) -> tuple[Any, ...]:
    """Return the nodes of a call in the order of their slots."""
    leaves = _occurrences(call)
    if len(leaves) != len(flags):
        raise TracingError("a call has other arguments when its forward is traced alone")
    order = sorted(range(len(flags)), key=lambda index: not flags[index])
    return tuple(leaves[index] for index in order)


def _operands(node: fx.Node, count: int) -> tuple[Any, ...]:
    """Return the leading tensor arguments of the call, however they were passed."""
    by_keyword = [node.kwargs[k] for k in ("self", "input", "other") if k in node.kwargs]
    return (*node.args, *by_keyword)[:count]


def _may_be_operand(value: Any) -> bool:
    if isinstance(value, fx.Node):
        return is_tensor(value) or not carries(value)
    return isinstance(value, numbers.Real)


def _constant(node: fx.Node, root: nn.Module) -> Any:
    """Return the value of a node that is computed from tensors of the model alone."""
    if node.op == "placeholder" or node.op == "call_module" or has_data(node):
        raise ValueError("a tensor is computed from the input")
    if node.op == "get_attr":
        try:
            return operator.attrgetter(str(node.target))(root)
        except AttributeError as error:
            raise ValueError("a tensor is made in forward") from error
    args, kwargs = map_arg((node.args, node.kwargs), lambda before: _constant(before, root))
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


# Gates: what scales a signal, because it is bounded. It stays one after these, where no other data join it.

ModuleOf = Callable[[fx.Node], nn.Module | None]
_POINTWISE: Final = frozenset({Kind.SUM, Kind.PRODUCT, Kind.ELEMENTWISE})
_KEEPS: Final = _POINTWISE | {Kind.MOVEMENT, Kind.SELECTION, Kind.LINEAR, Kind.NORMALISER}


def _signal(values: tuple[Any, ...], name: str, module_of: ModuleOf) -> int | None:
    """Return which of two operands carries the signal, or None; see :class:`Arithmetic`."""
    with_data = [index for index, value in enumerate(values) if is_tensor(value)]
    if len(with_data) == 1:
        return with_data[0]
    if name == "divide":
        return 0
    if name != "multiply":
        return None
    left, right = (_certainty(value, module_of) for value in values)
    return None if left == right else int(left > right)


def _certainty(node: fx.Node, module_of: ModuleOf) -> int:
    """Return how sure it is that the node is a gate; zero if nothing speaks for it.

    What is computed from several values is one if all of them are. It is found once for a node, and noted there.
    """
    waiting = [node]
    while waiting:
        last = waiting[-1]
        kind, chain = _kind(last), _pointwise(last)
        before = [value for value in values_read(chain[-1] if chain else last) if carries(value)]
        if kind not in _KEEPS or kind is Kind.NORMALISER or not all(_kind(value) in _KEEPS for value in before):
            before = list[fx.Node]()
        unknown = [value for value in before if "certainty" not in value.meta]
        waiting += unknown
        if not unknown:
            waiting.pop()
            # As one function: 1 / (1 + exp(-x)) is bounded, and its exp is not.
            bound = _bound([last] if kind is Kind.NORMALISER else chain, module_of)
            bound = 0 if kind is Kind.NORMALISER and bound != 2 else bound  # shares, as those of a softmax
            last.meta["certainty"] = max(bound, min((value.meta["certainty"] for value in before), default=0))
    return node.meta["certainty"]


def _kind(node: fx.Node) -> Kind | None:
    entry = entry_of(node)
    return None if entry is None else entry.kind


def _pointwise(node: fx.Node) -> list[fx.Node]:
    """Return a call and those before it, back to the first one, as far as each is pointwise and of one value."""
    chain: list[fx.Node] = []
    while len(node.all_input_nodes) == 1 and _kind(node) in _POINTWISE:
        chain.append(node)
        (node,) = node.all_input_nodes
    return chain


def _bound(chain: list[fx.Node], module_of: ModuleOf) -> int:
    """Return what :func:`bound_of` says of calls of one value each, the last one first."""

    def function(value: Tensor) -> Any:
        for step in reversed(chain):
            value = call(step, module_of(step), *map_arg((step.args, step.kwargs), lambda _, value=value: value))
        return value

    return bound_of(function) if chain and len(chain[-1].all_input_nodes) == 1 else 0


# The forward itself.


def _write_forward(
    container: nn.Module,
    path: str,
    flow: Flow,
    wanted: list[_Wanted],
    overwritten_later: list[Site],
    called: set[Site],
) -> Rewrite:
    """Write a forward for a container that calls a module at each of the sites; raise ``TracingError`` if it cannot."""
    local = trace_locally(container, path, flow)
    node_at = {site: node for node, site in local.sites.items()}
    entries = {entry.site: entry for entry in wanted}
    sites = (*entries, *(site for site in overwritten_later if site not in entries))
    if not called.union(sites) <= set(node_at):
        raise TracingError(f"the forward of {path or 'the model'} takes another course when traced alone")
    for site in sites:
        node = node_at[site]
        call = _retarget(local.graph, node, entries[site]) if site in entries else node
        if call is not node:
            node.replace_all_uses_with(call)
            local.graph.erase_node(node)
        if site in overwritten_later:
            with local.graph.inserting_after(call):
                copy = local.graph.call_method("clone", (call,))
            call.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)
    for node in reversed(local.graph.nodes):  # tensors that modules hold now need not be there any more
        if node.op == "get_attr" and not node.users:
            local.graph.erase_node(node)
    signature = inspect.signature(container.forward)
    arguments = {str(node.target).lstrip("*") for node in local.graph.nodes if node.op == "placeholder"}
    if not arguments <= set(signature.parameters):
        raise TracingError(f"the signature of the forward of {path or 'the model'} is not its own")
    function = Written(
        *write_forward(local.graph, signature),
        path,
        signature,
        tuple(local.written),
        local.expected,
        {name: value for name, value in _flags_read(container).items() if name not in local.written},
    )
    children = tuple((entry.name, entry.make) for entry in wanted)
    return Rewrite(path, flow.originals.get(path, path), function, children, dict(local.constants))


def guard_forward(model: nn.Module, flow: Flow) -> Rewrite:
    """Return a rewrite of the root that runs its own forward and refuses arguments that the flow does not hold for."""
    own = model.forward
    function = getattr(own, "__func__", None) or type(model).forward
    return Rewrite("", "", Written(function, {}, "", inspect.signature(own), expected=flow.expected), (), {})


def _retarget(graph: fx.Graph, node: fx.Node, entry: _Wanted) -> fx.Node:
    if entry.arguments is None:  # a module: the same arguments go to its stand-in
        node.target = entry.name
        return node
    with graph.inserting_before(node):
        return graph.call_module(entry.name, entry.arguments(node))


def _flags_read(container: nn.Module) -> dict[str, Any]:
    """Return the plain attributes that the forward of a container names, which a new forward holds as constants.

    Those of its class count, its mode does, and what is named by methods that forward names and functions inside of
    these.
    """
    named, waiting = set[str](), [getattr(inspect.unwrap(container.forward), "__code__", None)]
    while waiting:
        code = waiting.pop()
        for name in names_read(code) - named if isinstance(code, types.CodeType) else ():
            named.add(name)
            waiting.append(getattr(getattr(type(container), name, None), "__code__", None))
    own = {name: value for base in reversed(type(container).__mro__) for name, value in vars(base).items()}
    flags = {name: value for name, value in (own | vars(container)).items() if name in named}
    return {name: value for name, value in flags.items() if type(value) in CONSTANTS and value == value}  # no NaN


def _free_name(owner: nn.Module, name: str, taken: set[str]) -> str:
    name = name.lstrip("_")
    candidate, number = name, 1
    tables = vars(owner), *(vars(owner)[table] for table in ("_parameters", "_buffers", "_modules")), taken
    while hasattr(type(owner), candidate) or any(candidate in table for table in tables):
        number += 1
        candidate = f"{name}_{number}"
    return candidate
