"""Decide what becomes of each normalization layer; nothing is written to the model."""

from collections.abc import Iterator
from typing import Any, Final

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from canon_bridge.core.explicit import EXPANSIONS
from canon_bridge.core.garbage import without_collection
from canon_bridge.core.layers.linear import check_linear, computes_weight, is_linear, why_not_foldable
from canon_bridge.core.norms import check_norm, check_taught, is_identity, is_norm
from canon_bridge.core.options import Options, Scope
from canon_bridge.core.plan import Entry, Leftover, Merge, Obstacle, Plan, Refusal, Untangled, Words, words
from canon_bridge.core.registry import find_entry
from canon_bridge.core.rewrite import ModuleCall, make_explicit
from canon_bridge.core.search import Network, find_left, find_right, name_of
from canon_bridge.core.trace.flow import TracingError
from canon_bridge.core.trace.trace import trace
from canon_bridge.core.uncovered import find_around, find_uncovered
from canon_bridge.core.untangle import Untangling

IS_IDENTITY = "it is the identity already"
_READ = "a forward reads its tensors by itself"
# Which ways a norm may go, in the order in which they are tried; "untangled" leaves activations as they are.
_WAYS: Final = {"left": ("left", "right"), "right": ("right", "left"), "untangled": ("left", "copies", "right")}


@without_collection()
def make_plan(model: nn.Module, options: Options, scope: Scope, arguments: tuple[Any, ...] | None = None) -> Plan:
    """Decide what becomes of each BatchNorm of the model.

    The order of resolution: BatchNorms in the order of the data flow; for each, the preferred direction, then the
    other one, then what ``leftover`` says. A merge sees those before it as carried out.

    The model is traced with the example inputs of the options, else with the arguments if there are any. Raises
    ``TracingError`` if its data flow cannot be found, and ``ValueError`` if a BatchNorm is in training mode or has no
    running statistics.
    """
    for path, module in model.named_modules():
        if is_norm(module):
            check_norm(module, path or "the model")
            check_taught(module, path or "the model")
        elif is_linear(module):
            check_linear(module, path or "the model")
    arguments = arguments if options.arguments is None else options.arguments
    flow = trace(model, arguments)
    if any(original == "" != place for place, original in flow.originals.items()):
        raise TracingError(
            f"the forward of the model ({type(model).__name__}) calls the model itself, which no module in it can "
            "stand for; have it call `self.forward`, or canonize a model that holds it: nn.Sequential(model)."
        )
    explicit = make_explicit(model, flow, scope.explicit)
    planner = _Planner(Network(explicit, model, arguments), options, scope)
    entries = [*planner.entries(), *planner.others(model)]
    everything = scope.explicit
    return Plan(
        type(model).__name__,
        options,
        tuple(entries),
        explicit.rewrites,
        find_uncovered(explicit, planner.network.on_example, planner.staying) + find_around(model)
        if everything
        else (),
        planner.network.in_place_modules() if everything else (),
        planner.computed_weights() if everything else (),
        planner.expanded() if everything else (),
        dict(explicit.flow.originals),
    )


class _Planner:
    """The normalization layers of one flow, resolved one after the other."""

    def __init__(self, network: Network, options: Options, scope: Scope) -> None:
        self.network = network
        self.options = options
        self.scope = scope
        self.untangling = Untangling(self.network, with_rest=options.leftover == "linear")
        self.staying: dict[str, str] = {}  # why, of norms that compute something, whatever the options are
        self.norms = {operation.path: operation for operation in self.network.in_order() if is_norm(operation.module)}
        self.modules = {call.path: call.module for call in self.network.operations.values()}
        network.identities |= {path for path, norm in self.norms.items() if is_identity(norm.module)}
        if scope.kinds is not None:
            network.untouchable |= set(self.norms)

    def entries(self) -> Iterator[Entry]:
        """Yield what becomes of each layer, in the order of the data flow."""
        for path, norm in self.norms.items():
            entry = self._resolve(norm)
            if isinstance(entry, Merge):
                self.network.identities.add(path)
            elif isinstance(entry, Refusal | Untangled):
                self.network.untouchable.add(path)
            yield entry

    def others(self, model: nn.Module) -> Iterator[Entry]:
        """Yield the BatchNorms that are not in the flow, or of a type whose forward is not known."""
        for path, module in model.named_modules():
            if path in self.norms:
                continue
            holder = self._holder(path)
            if is_norm(module) and path in self.network.read_elsewhere:
                yield self._stays(path, _READ)
            elif is_norm(module) and holder is not None:
                yield Refusal(path, words("it is up to {}, whose forward is not followed", holder))
            elif is_norm(module):
                yield self._rest(path, "it is not called in forward")
            elif isinstance(module, _BatchNorm):
                yield self._stays(path, f"its forward may differ from a BatchNorm's ({type(module).__name__})")

    def _holder(self, path: str) -> str | None:
        """Return the module around a layer that is one operation of the flow, if there is one."""
        names = path.split(".")
        above = [".".join(names[:end]) for end in range(1, len(names))]
        calls = next((calls for holder in above if (calls := self.network.calls(holder))), None)
        return None if calls is None else name_of(self.network.operations[calls[0]])

    def expanded(self) -> tuple[str, ...]:
        """Return the modules that are several operations in one, which become modules of their own."""
        return tuple(path for path, module in self.modules.items() if find_entry(EXPANSIONS, module) is not None)

    def computed_weights(self) -> tuple[str, ...]:
        """Return the linear layers whose weight becomes a plain parameter."""
        linears = {path: module for path, module in self.modules.items() if is_linear(module)}
        return tuple(
            path for path, module in linears.items() if computes_weight(module) and why_not_foldable(module) is None
        )

    def _resolve(self, norm: ModuleCall) -> Entry:
        path = norm.path
        if path in self.network.identities:
            return Refusal(path, IS_IDENTITY)
        if path in self.network.read_elsewhere:
            return self._stays(path, _READ)
        obstacles: list[Words] = []
        for into_norms in (False, True):  # a linear layer on either side comes before another norm
            obstacles = []
            for way in _WAYS[self.options.prefer]:
                found = self._go(way, norm, into_norms)
                if isinstance(found, Obstacle):
                    obstacles.append(words(f"{way}: {{}}", found.reason))
                elif found is not None:
                    return found
        return self._rest(
            path, words("; ".join("{}" for _ in obstacles), *obstacles) or "such a merge was not asked for"
        )

    def _go(self, way: str, norm: ModuleCall, into_norms: bool) -> Merge | Untangled | Obstacle | None:
        """Return what becomes of a norm this way, or why it cannot go; None where this was not asked for."""
        if way == "copies":
            return self.untangling.find(norm)
        find = find_left if way == "left" else find_right
        chain = find(self.network, norm, into_norms=into_norms)
        if isinstance(chain, Obstacle):
            return chain
        if self.options.prefer == "untangled" and chain.absorbers:
            return Obstacle(words("{} would have to be changed", Words(chain.absorbers[0], "an activation")))
        return Merge(chain) if self.scope.kinds is None or chain.kind in self.scope.kinds else None

    def _stays(self, path: str, reason: str) -> Refusal:
        self.staying[path] = reason
        return Refusal(path, reason)

    def _rest(self, path: str, reason: str) -> Entry:
        """Return what becomes of a layer that nothing takes."""
        is_linear_wanted = self.options.leftover == "linear" and self.scope.kinds is None
        return (Leftover if is_linear_wanted else Refusal)(path, reason)
