"""Operations that rules must see as modules: which there are, and what every call of a flow computes.

Floor 11: imports ``rewrite``, ``aliases``, ``lifts`` and ``layers``. Nothing here writes to a model.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.utils._pytree import tree_leaves

from canon_bridge.core.modules.layers import clone
from canon_bridge.core.norms import children_after
from canon_bridge.core.tracing.aliases import Aliases
from canon_bridge.core.tracing.arguments import is_proxy
from canon_bridge.core.tracing.errors import TracingError
from canon_bridge.core.tracing.flow import Flow, Site
from canon_bridge.core.tracing.gates import find_signal
from canon_bridge.core.tracing.lifts import build_module, find_lift
from canon_bridge.core.tracing.rewrite import Rewrite, guard_forward, write_forward


@dataclass(frozen=True, eq=False)
class Operation:
    """What a node of the flow computes once the model is explicit.

    Attributes
    ----------
    path : str
        Name of the module in the canonical model.
    module : nn.Module
        The module; for a functional call, one with the same arguments as will be built on entry.
    calls : int
        How often this very module is called in one forward of the model.
    """

    path: str
    module: nn.Module
    calls: int


@dataclass(frozen=True, eq=False)
class Explicit:
    """A flow in which every operation that rules must see has a module."""

    flow: Flow
    operations: dict[fx.Node, Operation]
    aliases: Aliases
    rewrites: tuple[Rewrite, ...]
    failures: tuple[tuple[str, str], ...]  # (container, why it keeps its functional operations)
    handed_on: frozenset[fx.Node]  # calls in place whose result, in a new forward, is what later readers read


@dataclass(frozen=True, eq=False)
class _Wanted:
    """One call site that needs a module of its own."""

    site: Site
    name: str
    make: Callable[[], nn.Module]
    module: nn.Module


def make_explicit(model: nn.Module, flow: Flow, rewrite: bool = True) -> Explicit:
    """Find the functional operations and shared stateless modules, and write forwards that call modules instead.

    Parameters
    ----------
    model : nn.Module
        The traced model; it is not changed.
    flow : Flow
        Its data flow.
    rewrite : bool
        If False, no new modules: only modules that are there already are operations.

    Returns
    -------
    Explicit
        With an :class:`Operation` for each module call and each functional operation that gets a module. A
        container that cannot be traced alone keeps its operations and is listed in ``failures``.
    """
    survey = _Survey(model, flow)
    rewrites: list[Rewrite] = []
    moved: dict[Site, _Wanted] = {}
    # Where the course depends on values, the new forward checks that it is the course that the chains were found on.
    decided: dict[str, list[_Wanted]] = {path: [] for path in sorted(flow.decided)}
    reread = survey.reread() if rewrite else {}
    handed_on: set[fx.Node] = set()
    by_container = {**decided, **{path: [] for path in reread}, **survey.wanted()} if rewrite else {}
    for path, entries in by_container.items():
        names = {entry.site: entry.name for entry in entries} | reread.get(path, {})
        makers = {entry.name: entry.make for entry in entries}
        try:
            rewrites.append(write_forward(model.get_submodule(path), path, flow, names, makers))
        except TracingError as error:
            survey.failures.append((path, str(error)))
        else:
            moved.update({entry.site: entry for entry in entries})
            handed_on.update(node for site in reread.get(path, ()) for node in survey.nodes_of[site])
    if rewrite and flow.expected and not any(new.path == "" for new in rewrites):
        rewrites.append(guard_forward(model, flow))
    return Explicit(
        flow, survey.operations(moved), survey.aliases, tuple(rewrites), tuple(survey.failures), frozenset(handed_on)
    )


class _Survey:
    """All call sites of a flow, and which of them need a module of their own."""

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        self.model = model
        self.sites = flow.sites
        self.failures: list[tuple[str, str]] = []
        self.nodes_of: dict[Site, list[fx.Node]] = defaultdict(list)
        self.calls_of: dict[nn.Module, list[Site]] = defaultdict(list)
        modules: dict[fx.Node, nn.Module] = {}
        for node, site in flow.sites.items():
            if node.op == "call_module":
                modules[node] = model.get_submodule(str(node.target))
                if site not in self.nodes_of:
                    self.calls_of[modules[node]].append(site)
            self.nodes_of[site].append(node)
        self.aliases = Aliases(flow.graph, modules)
        self._arguments = {path: _nodes_in(inputs) for path, inputs in flow.inputs.items()}

    def wanted(self) -> dict[str, list[_Wanted]]:
        """Return the call sites that need a module of their own, by container."""
        wanted: dict[str, list[_Wanted]] = {}
        for site, nodes in self.nodes_of.items():
            found = self._lifted(site, nodes) or self._second_call(site, nodes)
            if found is not None:
                base, make, module = found
                entries = wanted.setdefault(site.owner, [])
                taken = {entry.name for entry in entries}
                name = _free_name(self.model.get_submodule(site.owner), base, taken)
                entries.append(_Wanted(site, name, make, module))
        return wanted

    def reread(self) -> dict[str, dict[Site, str]]:
        """Return the calls of modules in place after which the old name is read again, by container, and the child."""
        found: dict[str, dict[Site, str]] = {}
        for site, nodes in self.nodes_of.items():
            module = self.aliases.modules.get(nodes[0])
            if module is None or not self.aliases.overwrites(nodes[0]) or site != self.calls_of[module][0]:
                continue
            if self.aliases.read_after(nodes[0]) and self._may_be_out_of_place(site, nodes):
                found.setdefault(site.owner, {})[site] = str(nodes[0].target).removeprefix(f"{site.owner}.")
        return found

    def operations(self, moved: dict[Site, _Wanted]) -> dict[fx.Node, Operation]:
        """Return what each node computes, given the call sites that got a module of their own."""
        operations: dict[fx.Node, Operation] = {}
        for site, nodes in self.nodes_of.items():
            entry = moved.get(site)
            for node in nodes:
                if entry is not None:
                    path = f"{site.owner}.{entry.name}" if site.owner else entry.name
                    operations[node] = Operation(path, entry.module, len(nodes))
                elif node.op == "call_module":
                    module = self.aliases.modules[node]
                    calls = sum(len(self.nodes_of[s]) for s in self.calls_of[module] if s not in moved)
                    operations[node] = Operation(str(node.target), module, calls)
        return operations

    def _lifted(self, site: Site, nodes: list[fx.Node]) -> tuple[str, Callable[[], nn.Module], nn.Module] | None:
        lift = find_lift(nodes[0])
        if lift is None:
            return None
        if not self._may_be_out_of_place(site, nodes):
            self.failures.append((site.owner, f"{lift.name}: it overwrites a tensor that is read under another name"))
            return None
        more = {"signal": find_signal(nodes, lift, self.aliases.modules.get)} if lift.operands == 2 else {}
        try:
            module = build_module(nodes[0], lift, self.model, **more)
        except ValueError as error:
            self.failures.append((site.owner, f"{lift.name}: {error}"))
            return None
        return lift.name, lambda: build_module(nodes[0], lift, self.model, **more), module

    def _second_call(self, site: Site, nodes: list[fx.Node]) -> tuple[str, Callable[[], nn.Module], nn.Module] | None:
        module = self.aliases.modules.get(nodes[0])
        if module is None or not _is_stateless(module) or site == self.calls_of[module][0]:
            return None
        if children_after(self.model.get_submodule(site.owner)):  # not a forward that could be written anew
            return None
        in_place = not self._may_be_out_of_place(site, nodes)

        def make() -> nn.Module:
            twin = clone(module)
            if hasattr(twin, "inplace"):
                vars(twin)["inplace"] = in_place and module.inplace
            return twin

        return str(nodes[0].target).rpartition(".")[2], make, module

    def _may_be_out_of_place(self, site: Site, nodes: list[fx.Node]) -> bool:
        """Return whether a new forward can hand the result to all who read the overwritten tensor later.

        It can if they read it by the very name that was overwritten, in the same forward, which knows it by no other.
        """
        arguments = self._arguments.get(site.owner, [])
        return all(
            name is node.all_input_nodes[0]
            and self._owner(reader) == site.owner
            and len(nodes) == 1
            and arguments.count(name) <= 1
            for node in nodes
            if self.aliases.overwrites(node)
            for reader, name in self.aliases.read_after(node)
        )

    def _owner(self, node: fx.Node) -> str:
        site = self.sites.get(node)
        return "" if site is None else site.owner  # only the output of the whole model has no site


def _is_stateless(module: nn.Module) -> bool:
    """Return whether a copy of the module at another call site computes the same for ever."""
    tables = (vars(module)[table] for table in ("_parameters", "_buffers", "_modules"))
    return type(module).__module__.startswith("torch.nn.modules") and not any(tables)


def _nodes_in(structure: Any) -> list[fx.Node]:
    """Return the nodes that the proxies in arguments stand for."""
    return [leaf.node for leaf in tree_leaves(structure) if is_proxy(leaf)]


def _free_name(owner: nn.Module, name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while hasattr(owner, candidate) or candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate
