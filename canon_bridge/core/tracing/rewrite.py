"""A new forward for one container, which calls a child module where the user's forward calls a function.

Floor 10: imports ``trace``, ``arguments`` and ``lifts``. Nothing here writes to a model; ``canonization`` applies it.
"""

import functools
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from canon_bridge.core.modules.layers import configure
from canon_bridge.core.tracing.arguments import fits
from canon_bridge.core.tracing.data import works_in_place
from canon_bridge.core.tracing.errors import TracingError
from canon_bridge.core.tracing.flow import Flow, Site
from canon_bridge.core.tracing.lifts import computed_sizes, find_lift, operands
from canon_bridge.core.tracing.trace import trace_locally


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


def write_forward(
    container: nn.Module, path: str, flow: Flow, names: dict[Site, str], makers: dict[str, Callable[[], nn.Module]]
) -> Rewrite:
    """Write a forward for a container that calls the child ``names[site]`` at each of the sites.

    Parameters
    ----------
    container : nn.Module
        The module whose forward contains the sites.
    path : str
        Its name in the model.
    flow : Flow
        The flow of the whole model.
    names : dict
        The name of the new child for each site.
    makers : dict
        What makes each child.

    Raises
    ------
    TracingError
        If the container's forward cannot be traced alone.
    """
    local = trace_locally(container, path, flow)
    node_at = {site: node for node, site in local.sites.items()}
    order = {node: index for index, node in enumerate(local.graph.nodes)}
    for site, name in names.items():
        node = node_at.get(site)
        if node is None:
            raise TracingError(f"the forward of {path or 'the model'} takes another course when traced alone")
        module = container.get_submodule(str(node.target)) if node.op == "call_module" else None
        overwritten = node.all_input_nodes[0] if works_in_place(node, module) else None
        call = _retarget(local.graph, node, name)
        order[call] = order[node]
        if overwritten is not None:
            # What reads the overwritten tensor later reads the result.
            for user in [u for u in overwritten.users if order[u] > order[call]]:
                user.replace_input_with(overwritten, call)
        if call is not node:
            node.replace_all_uses_with(call)
            local.graph.erase_node(node)
    for node in reversed(local.graph.nodes):  # tensors that modules hold now need not be there any more
        if node.op == "get_attr" and not node.users:
            local.graph.erase_node(node)
    function = _expecting(_compile(local.graph, path), local.expected, inspect.signature(container.forward), path)
    if _reads_mode(container):
        function = _in_mode(function, container.training, path)
    return Rewrite(path, function, tuple(makers.items()), dict(local.constants))


def guard_forward(model: nn.Module, flow: Flow) -> Rewrite:
    """Return a rewrite of the root that runs its own forward and refuses arguments that the flow does not hold for."""
    own = model.forward
    function = getattr(own, "__func__", None) or type(model).forward
    return Rewrite("", _expecting(function, flow.expected, inspect.signature(own), ""), (), {})


def _retarget(graph: fx.Graph, node: fx.Node, name: str) -> fx.Node:
    lift = find_lift(node)
    if lift is None:  # a module: the same arguments go to its twin
        node.target = name
        return node
    with graph.inserting_before(node):
        sizes = computed_sizes(node, lift)
        if sizes:
            graph.call_function(configure, (graph.create_node("get_attr", name),), sizes)
        return graph.call_module(name, operands(node, lift))


def _compile(graph: fx.Graph, path: str) -> Callable[..., Any]:
    code = graph.python_code("self")
    namespace: dict[str, Any] = {**code.globals, "__name__": __name__}
    exec(compile(code.src, f"<canon_bridge: forward of {path or 'the model'}>", "exec"), namespace)
    function = namespace["forward"]
    assert isinstance(function, types.FunctionType)
    # What pickle says that it cannot find.
    function.__qualname__ = f"the forward that canonization wrote for {path or 'the model'}; save its state_dict()"
    return function


def _expecting(
    function: Callable[..., Any], expected: dict[str, Any], signature: inspect.Signature, path: str
) -> Callable[..., Any]:
    """Return the forward with a check that its arguments are such as it was written for."""
    if not expected:
        return function

    @functools.wraps(function)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, wanted in expected.items():
            if not fits(bound.arguments[name], wanted):
                raise ValueError(
                    f"{path or 'the model'} was called with another {name} than it was canonized for ({wanted!r}); "
                    "pass example_inputs with all the arguments that you will use."
                )
        return function(self, *args, **kwargs)

    return forward


def _reads_mode(container: nn.Module) -> bool:
    """Return whether the forward of a container names ``training``, which a new forward holds as a constant."""
    code = getattr(inspect.unwrap(container.forward), "__code__", None)
    return code is not None and "training" in code.co_names


def _in_mode(function: Callable[..., Any], mode: bool, path: str) -> Callable[..., Any]:
    """Return the forward with a check that its module is in the mode that it was written for."""

    @functools.wraps(function)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.training != mode:
            raise ValueError(
                f"{path or 'the model'} is in {'training' if self.training else 'evaluation'} mode now, and its "
                "forward asks for that: it was canonized in the other one. Change the mode outside the block."
            )
        return function(self, *args, **kwargs)

    return forward
