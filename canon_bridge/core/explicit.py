"""Operations that rules must see as modules: which there are, and the forward of their container that calls them.

Floor 4: imports ``trace``, ``lifts`` and ``layers``. Nothing here writes to a model; a :class:`Rewrite` is applied
by ``canonize``.
"""

import types
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from canon_bridge.core.errors import TracingError
from canon_bridge.core.graph import Flow, Inputs, Site
from canon_bridge.core.layers import Add, clone
from canon_bridge.core.lifts import build_module, find_lift, operands, works_in_place
from canon_bridge.core.trace import trace_locally


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
class Rewrite:
    """A new forward for one container, and the children that it calls in addition.

    Attributes
    ----------
    path : str
        The container.
    function : callable
        ``forward(self, ...)``, to be bound to the container.
    children : tuple of (str, callable)
        Name and maker of each new child module.
    constants : dict
        Tensors that forward creates, by attribute name.
    """

    path: str
    function: Callable[..., Any]
    children: tuple[tuple[str, Callable[[], nn.Module]], ...]
    constants: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Explicit:
    """A flow in which every operation that rules must see has a module."""

    flow: Flow
    operations: dict[fx.Node, Operation]
    rewrites: tuple[Rewrite, ...]
    failures: tuple[tuple[str, str], ...]  # (container, why it keeps its functional operations)


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
    nodes_of: dict[Site, list[fx.Node]] = defaultdict(list)
    for node, site in flow.sites.items():
        nodes_of[site].append(node)
    calls_of = _calls_by_module(model, nodes_of)
    wanted, failures = _wanted(model, nodes_of, calls_of) if rewrite else ({}, [])
    rewrites: list[Rewrite] = []
    moved: dict[Site, _Wanted] = {}
    for path, entries in wanted.items():
        try:
            rewrites.append(_rewrite(model.get_submodule(path), path, entries, flow.inputs.get(path)))
            moved.update({entry.site: entry for entry in entries})
        except TracingError as error:
            failures.append((path, str(error)))
    operations: dict[fx.Node, Operation] = {}
    for site, nodes in nodes_of.items():
        entry = moved.get(site)
        for node in nodes:
            if entry is not None:
                path = f"{site.owner}.{entry.name}" if site.owner else entry.name
                operations[node] = Operation(path, entry.module, len(nodes))
            elif node.op == "call_module":
                module = model.get_submodule(str(node.target))
                calls = sum(len(nodes_of[s]) for s in calls_of[module] if s not in moved)
                operations[node] = Operation(str(node.target), module, calls)
    return Explicit(flow, operations, tuple(rewrites), tuple(failures))


def _calls_by_module(model: nn.Module, nodes_of: dict[Site, list[fx.Node]]) -> dict[nn.Module, list[Site]]:
    calls: dict[nn.Module, list[Site]] = defaultdict(list)
    for site, nodes in nodes_of.items():
        if nodes[0].op == "call_module":
            calls[model.get_submodule(str(nodes[0].target))].append(site)
    return calls


def _wanted(
    model: nn.Module, nodes_of: dict[Site, list[fx.Node]], calls_of: dict[nn.Module, list[Site]]
) -> tuple[dict[str, list[_Wanted]], list[tuple[str, str]]]:
    wanted: dict[str, list[_Wanted]] = defaultdict(list)
    failures: list[tuple[str, str]] = []
    taken: set[str] = set()

    def add(site: Site, name: str, make: Callable[[], nn.Module], module: nn.Module) -> None:
        owner = model.get_submodule(site.owner)
        free = _free_name(owner, name, {t.rpartition(".")[2] for t in taken if t.rpartition(".")[0] == site.owner})
        taken.add(f"{site.owner}.{free}")
        wanted[site.owner].append(_Wanted(site, free, make, module))

    for site, nodes in nodes_of.items():
        node, lift = nodes[0], find_lift(nodes[0])
        if lift is not None:
            try:
                module = build_module(node, lift)
            except ValueError as error:
                failures.append((site.owner, f"{lift.name}: {error}"))
                continue
            make = Add if isinstance(module, Add) else _maker(node, lift)
            add(site, lift.name, make, module)
        elif node.op == "call_module":
            module = model.get_submodule(str(node.target))
            if _is_stateless(module) and site != calls_of[module][0]:
                name = str(node.target).rpartition(".")[2]
                add(site, name, lambda module=module: _out_of_place(clone(module)), module)
    return wanted, failures


def _maker(node: fx.Node, lift: Any) -> Callable[[], nn.Module]:
    return lambda: build_module(node, lift)


def _out_of_place(module: nn.Module) -> nn.Module:
    if hasattr(module, "inplace"):
        vars(module)["inplace"] = False
    return module


def _is_stateless(module: nn.Module) -> bool:
    """Return whether a copy of the module at another call site computes the same for ever."""
    tables = (vars(module)[table] for table in ("_parameters", "_buffers", "_modules"))
    return type(module).__module__.startswith("torch.nn.modules") and not any(tables)


def _free_name(owner: nn.Module, name: str, taken: Iterable[str]) -> str:
    candidate, number = name, 1
    while hasattr(owner, candidate) or candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _rewrite(container: nn.Module, path: str, entries: list[_Wanted], inputs: Inputs | None) -> Rewrite:
    local = trace_locally(container, path, inputs)
    node_at = {site: node for node, site in local.sites.items()}
    order = {node: index for index, node in enumerate(local.graph.nodes)}
    for entry in entries:
        node = node_at.get(entry.site)
        if node is None:
            raise TracingError(f"the forward of {path or 'the model'} takes another course when traced alone")
        lift = find_lift(node)
        tensors = node.args[:1] if lift is None else operands(node, lift)
        with local.graph.inserting_before(node):
            call = local.graph.call_module(entry.name, tensors)
        order[call] = order[node]
        module = container.get_submodule(str(node.target)) if node.op == "call_module" else None
        if works_in_place(node, module) and isinstance(tensors[0], fx.Node):
            # What reads the overwritten tensor later reads the result.
            for user in [u for u in tensors[0].users if order[u] > order[node]]:
                user.replace_input_with(tensors[0], call)
        node.replace_all_uses_with(call)
        local.graph.erase_node(node)
    return Rewrite(path, _compile(local.graph, path), tuple((e.name, e.make) for e in entries), dict(local.constants))


def _compile(graph: fx.Graph, path: str) -> Callable[..., Any]:
    code = graph.python_code("self")
    namespace: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, f"<canon_bridge: forward of {path or 'the model'}>", "exec"), namespace)
    function = namespace["forward"]
    assert isinstance(function, types.FunctionType)
    return function
