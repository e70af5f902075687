"""Which operations on the way from the input to the output have no rule, and what to say of them."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Final

from torch import fx, nn

from canon_bridge.core.alerts import UncoveredOperationWarning, alert
from canon_bridge.core.explicit import Arithmetic, Explicit
from canon_bridge.core.facts import Facts, carries, entry_of, has_data
from canon_bridge.core.forwards import bound_function
from canon_bridge.core.operations import PLACED, STOPS, WANTS_MODULE, Kind, keeps_to, operation_of_module
from canon_bridge.core.plan import Plan, Uncovered
from canon_bridge.core.rewrite import ExplicitFlow, data_of, nodes_in

_MEANS = "relevance follows its gradient here, which is no rule"
_TEACH = "Teach it with canon_bridge.register_operation, or write it with operations that have a rule"
_TEACH_MODULE = (
    "If it acts on each element by itself, teach it with canon_bridge.register_activation; else write it with "
    "operations that have a rule"
)
_UNMERGED = (
    "relevance passes it as if it added nothing. Teach what it is with canon_bridge.register_norm, or replace it; its "
    "tensors must be read by its own forward alone"
)
_BEFORE = (
    "what is before it gets a map that means nothing. Write it as a differentiable function, or explain a layer after "
    "it."
)
_NO_SUBCLASS = "Make it a module of a kind of its own (no subclass of a layer) that calls layers."
_TEACH_LAYER = "If it computes its weight, teach it with canon_bridge.register_layer. Else: "
_STEPS: Final = frozenset({"round", "sign", "sgn", "ceil", "floor", "trunc"})
# The kinds whose rule both frameworks give to subclasses, too.
_INHERITED: Final = frozenset({Kind.LINEAR_LAYER, Kind.NORM, Kind.ELEMENTWISE, Kind.LINEAR, Kind.SUM, Kind.SELECTION})
# What a model had better not end in, and why.
_LOGITS = "explain the logit before it (take it out of the model, or wrap the part up to the logits)"
_ENDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("softmax", "log_softmax", "_softmax", "_log_softmax", "softmin"),
        "the model ends in it: relevance of a probability is that of all classes at once, and nearly all of it is "
        f"gone; {_LOGITS}",
    ),
    **dict.fromkeys(
        ("sigmoid", "hardsigmoid", "expit", "logsigmoid", "log_sigmoid"),
        "the model ends in it: it does not have the sign of its logit, so that the signs of a whole map are turned "
        f"where the two differ, as below a probability of one half; {_LOGITS}",
    ),
}


def find_uncovered(explicit: ExplicitFlow, facts: Facts, staying: Mapping[str, str]) -> tuple[Uncovered, ...]:
    """Return the operations without a rule, in the order of the data flow.

    ``staying`` says by the path of a norm that is neither merged nor the identity why.
    """
    nodes = _on_the_way(explicit)
    reasons = (
        (
            node,
            _why_it_stays(explicit, node, staying) or _why(explicit, node) or _why_not_of_kind(explicit, facts, node),
        )
        for node in nodes
    )
    pairs = (*reasons, *_ends(explicit.flow.graph))
    return tuple(dict.fromkeys(_describe(explicit, node, reason) for node, reason in pairs if reason))


def find_around(model: nn.Module) -> tuple[Uncovered, ...]:
    """Return the ``__call__`` of a model that has one of its own, around that of torch."""
    call = type(model).__call__
    if call is nn.Module.__call__ or call.__module__.partition(".")[0] == "torch":
        return ()
    reason = (
        f"what it computes around the forward is not followed, and {_MEANS}. Move it into the forward, or canonize a "
        "model that holds this one: nn.Sequential(model)."
    )
    code = getattr(inspect.unwrap(call), "__code__", None)
    return (Uncovered("", "__call__", "" if code is None else f"{code.co_filename}:{code.co_firstlineno}", reason),)


def kind_for_rules(module: nn.Module) -> Kind | None:
    """Return what a module is to rules, which go by base classes: its kind, else that of the class it is made from."""
    if (entry := operation_of_module(module)) is not None:
        return entry.kind
    bases = type(module).__mro__[1 : type(module).__mro__.index(nn.Module)]
    modules = (base for base in bases if issubclass(base, nn.Module) and not inspect.isabstract(base))
    entries = (operation_of_module(object.__new__(base)) for base in modules)
    kinds = (entry.kind for entry in entries if entry is not None)
    return next((kind for kind in kinds if kind in _INHERITED), None)


def warn_uncovered(plan: Plan) -> None:
    """Give one warning that names all operations of a plan that no rule covers; to be called when a map is made."""
    if plan.uncovered:
        entries = "".join(f"\n- {entry}" for entry in plan.uncovered)
        alert(
            f"the map of {plan.model} is not right where no rule covers an operation:{entries}",
            UncoveredOperationWarning,
        )


def _on_the_way(explicit: ExplicitFlow) -> list[fx.Node]:
    """Return the calls through which relevance flows from the output to the input, or would have to flow."""
    graph = explicit.flow.graph
    reached: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if any(reader in reached for reader, _ in explicit.aliases.read_after(node)):
            # What it overwrites is read by another name. The gradient of a ReLU is its rule.
            reached.update(() if _is_relu(explicit, node) else [node])
        if node.op == "output":
            reached.update([node, *node.all_input_nodes])
        elif node in reached and not _stops(explicit, node):
            reached.update(_sources(explicit, node))
    return [node for node in graph.nodes if node in reached and node.op.startswith("call") and has_data(node)]


def _stops(explicit: ExplicitFlow, node: fx.Node) -> bool:
    entry = entry_of(node)
    return node in explicit.flow.without_gradient or (entry is not None and entry.kind in STOPS)


def _is_relu(explicit: ExplicitFlow, node: fx.Node) -> bool:
    """Return whether a call is one of a ReLU; other activations stand under the same entry."""
    entry, call = entry_of(node), explicit.operations.get(node)
    if node.op == "call_module":
        return call is not None and type(call.module) is nn.ReLU
    return entry is not None and entry.name == "relu"


def _sources(explicit: ExplicitFlow, node: fx.Node) -> list[fx.Node]:
    """Return the arguments of a call that its value is made of: no gates, indices and conditions."""
    entry, arguments = entry_of(node), nodes_in((node.args, node.kwargs))
    carrying = [argument for argument in arguments if carries(argument)]
    if entry is None:
        return carrying or arguments
    if entry.kind is Kind.PRODUCT:
        call = explicit.operations.get(node)
        signal = getattr(call.module, "signal", None) if call is not None else None
        if signal is None:
            return carrying or arguments
        # Of an arithmetic operation its two operands are counted, of others the values with data.
        operands = list(node.args) if isinstance(call and call.module, Arithmetic) else carrying
        return nodes_in(operands[signal : signal + 1]) or carrying
    return data_of(node, entry)[0] or carrying if entry.data else arguments


def _why_it_stays(explicit: ExplicitFlow, node: fx.Node, staying: Mapping[str, str]) -> str | None:
    """Return why a norm has no rule that stays as it is, or None."""
    call = explicit.operations.get(node)
    reason = staying.get(call.path) if call is not None else None
    return None if reason is None else f"it stays as it is: {reason}; {_UNMERGED}."


def _why(explicit: ExplicitFlow, node: fx.Node) -> str | None:
    """Return why an operation has no rule, or None if it has one."""
    entry, call = entry_of(node), explicit.operations.get(node)
    failure = explicit.failures.get(node)
    if node in explicit.flow.without_gradient:
        return f"gradients are switched off where it is called, so that no relevance passes it: {_BEFORE}"
    if not carries(node):
        return f"no relevance passes it: {_BEFORE}" if entry is None or entry.kind is Kind.NOT_DIFFERENTIABLE else None
    if entry is not None and entry.name in _STEPS:
        return f"it is constant but for its jumps, so that nothing before it explains its value: {_BEFORE}"
    if _stays_in_place(explicit, node):
        return (
            "it overwrites a tensor that is read by another name, so that it has to stay in place, and no rule can "
            f"stand on it; {_MEANS}. Write `inplace=False`, and read its result."
        )
    if entry is None and call is not None and kind_for_rules(call.module) is not None:
        if explicit.flow.sites[node] not in explicit.flow.returns:
            return None
        return (
            "it returns several values, and a rule is for a module that returns one tensor: frameworks end in an error "
            f"here. {_NO_SUBCLASS}"
        )
    if entry is None:
        return f"it is not known what it is; {_MEANS}. {_TEACH_MODULE if node.op == 'call_module' else _TEACH}."
    if entry.kind is Kind.WITHOUT_RULE:
        return f"{entry.note}; {_MEANS}. Replace it, or explain a layer after it."
    if node.op == "call_module":
        if failure is not None and call is not None and _keeps_tensors(call.module):
            return (
                f"it is called several times, and the calls cannot be told apart ({failure}); rules that keep the "
                "tensors of a module know those of the last call only. Give each call a module of its own."
            )
        return None
    wants = entry.kind in WANTS_MODULE or entry.kind in (Kind.LINEAR_LAYER, Kind.NORM)
    wants = wants or (entry.name in PLACED and failure is not None)
    if wants and call is None and not _is_joined(node, failure):
        if failure is not None and failure.endswith("."):  # it says what to do
            return f"it cannot be made a module, and {_MEANS}: {failure}"
        return f"it cannot be made a module ({failure or 'its arguments are not known'}); {_MEANS}. {_TEACH}."
    return None


def _why_not_of_kind(explicit: ExplicitFlow, facts: Facts, node: fx.Node) -> str | None:
    """Return why a module has no rule that rules take for the layer that its class is made from, or None."""
    call = explicit.operations.get(node)
    if call is None or (kind := kind_for_rules(call.module)) is None:
        return None
    if operation_of_module(call.module) is None:
        what = "it is a subclass of a layer"
    elif "forward" in vars(call.module) and bound_function(call.module) is None:
        what = "its forward is not that of its class"
    else:
        return None
    if len(node.args) != 1 or node.kwargs:
        return f"{what}, and rules call it with its first argument alone. {_NO_SUBCLASS}"
    if any(name != "parametrizations" for name, _ in call.module.named_children()):
        return f"{what}, and it holds modules of its own, on which rules stand, too. {_NO_SUBCLASS}"
    tried = (keeps_to(kind, call.module, sizes) for sizes in _trial_sizes(facts, node, call.module))
    if next((found for found in tried if found is not None), False):
        return None
    is_layer = kind is Kind.LINEAR_LAYER
    return (
        f"{what}, and running it did not show it to be what rules take it for "
        f"({kind.value}{', with parameters that rules may change' * is_layer}). {_TEACH_LAYER * is_layer}{_NO_SUBCLASS}"
    )


def _trial_sizes(facts: Facts, node: fx.Node, module: nn.Module) -> Iterator[list[int]]:
    """Yield sizes that the input of a module may have: small ones, which are quick, then larger for wide kernels."""
    shapes = facts.shapes(node.args[0])
    known = None if shapes is None else [axis[0] if len(set(axis)) == 1 else None for axis in zip(*shapes, strict=True)]
    channels = int(getattr(module, "in_channels", getattr(module, "in_features", 8)))
    for size in (6, 33, 129):
        if known is None:
            yield from ([2, channels, *[size] * spatial] for spatial in (2, 1, 0, 3))
        else:
            features = len(known) - 1 if hasattr(module, "in_features") else 1
            small = [min(axis or size, size if number else 2) for number, axis in enumerate(known)]
            yield [(axis or channels) if number == features else small[number] for number, axis in enumerate(known)]
    if known is not None and None not in known:
        yield [axis or 0 for axis in known]


def _stays_in_place(explicit: ExplicitFlow, node: fx.Node) -> bool:
    """Return whether a module works in place also in the canonical model; the gradient of a ReLU is its rule."""
    if node.op != "call_module" or node not in explicit.operations or _is_relu(explicit, node):
        return False
    if explicit.aliases.overwritten(node) is None:
        return False
    return node in explicit.relied_on or bool(explicit.aliases.read_after(node))


def _is_joined(node: fx.Node, failure: str | None) -> bool:
    """Return whether a sum is one of tuples, which joins them."""
    entry = entry_of(node)
    if entry is None or entry.kind is not Kind.SUM or failure is not None:
        return False
    return any(isinstance(argument, list | tuple) for argument in node.args) or not node.users


def _keeps_tensors(module: nn.Module) -> bool:
    return isinstance(module, Explicit) or any(True for _ in module.parameters())


def _ends(graph: fx.Graph) -> list[tuple[fx.Node, str]]:
    """Return the calls of ``_ENDS`` whose result, at most moved, is what the model returns, and what that means."""
    found: list[tuple[fx.Node, str]] = []
    (output,) = [node for node in graph.nodes if node.op == "output"]
    waiting = list(output.all_input_nodes)
    while waiting:
        node = waiting.pop()
        entry = entry_of(node)
        if entry is not None and entry.name in _ENDS:
            found.append((node, _ENDS[entry.name]))
        elif entry is not None and entry.kind is Kind.MOVEMENT:
            waiting += node.all_input_nodes
    return found


def _describe(explicit: ExplicitFlow, node: fx.Node, reason: str) -> Uncovered:
    site = explicit.flow.sites[node]
    file, line = node.meta.get("source", ("", 0))
    place = f"{file}:{line}" if file else ""
    entry, call = entry_of(node), explicit.operations.get(node)
    if node.op == "call_module" and call is not None:
        return Uncovered(call.path, type(call.module).__name__, place, reason)
    what = entry.name if entry is not None else str(getattr(node.target, "__name__", node.target))
    return Uncovered(site.owner, what, place, reason)
