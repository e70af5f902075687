"""Carry out a plan: all writes to a model, in their order.

Nothing is checked here; :class:`Canonization` does that.
"""

from torch import nn

from canon_bridge.core.explicit import EXPANSIONS
from canon_bridge.core.activations import Compares, compares_with_baselines
from canon_bridge.core.layers.linear import make_plain
from canon_bridge.core.layers.parameters import make_live
from canon_bridge.core.merge import expect_rank, make_linear, merge, replace_child, sequence_after, share_hooks
from canon_bridge.core.norms import children_after
from canon_bridge.core.planning.chains import Chain
from canon_bridge.core.planning.options import Backend
from canon_bridge.core.planning.plan import Plan
from canon_bridge.core.precision import imprecise
from canon_bridge.core.registry import find_entry
from canon_bridge.core.undo.edits import Edits
from canon_bridge.core.undo.forwards import bind_forward
from canon_bridge.core.undo.snapshot import drop_scratch


def carry_out(edits: Edits, model: nn.Module, plan: Plan, backend: Backend) -> dict[str, float]:
    """Make a model canonical, in place, and return the merges that lose precision, see :func:`imprecise`.

    Parameters
    ----------
    edits : Edits
        The journal; its undo makes the model itself again.
    model : nn.Module
        The model, in the state that the plan was made for.
    plan : Plan
        What is done; values are read anew.
    backend : Backend
        What the framework wants besides.
    """
    for rewrite in plan.rewrites:
        container = model.get_submodule(rewrite.path)
        for name, make in rewrite.children:
            edits.set(container, "_modules", name, make(container))
        for name, tensor in rewrite.constants.items():
            edits.set_buffer(container, name, tensor)  # it moves with the model
        bind_forward(edits, container, rewrite.function)
    for path in plan.expanded:
        former = model.get_submodule(path)
        make = find_entry(EXPANSIONS, former)
        assert make is not None  # the plan has asked
        replace_child(edits, model, former, make(former).train(former.training))
    for path in plan.out_of_place:
        edits.set(model.get_submodule(path), "__dict__", "inplace", False)
    for path in plan.plain:
        make_plain(edits, model.get_submodule(path))
    doubts = imprecise(model, plan)
    compares = backend.compares_with_reference or compares_with_baselines
    for entry in plan.merges:
        _merge(edits, model, entry.chain, plan.options.clipped == "absorb", compares)
    # All of them are looked up before the first is replaced, for one may be a part of another.
    for norm in [model.get_submodule(leftover.norm) for leftover in plan.leftovers]:
        make_linear(edits, model, norm)
    for norm in [model.get_submodule(entry.norm) for entry in plan.merges]:
        if children_after(norm):
            replace_child(edits, model, norm, sequence_after(norm))
    _adapt(edits, model, backend)
    return doubts


def _merge(edits: Edits, model: nn.Module, chain: Chain, clip_relevance: bool, compares: Compares) -> None:
    merge(edits, model.get_submodule, chain, clip_relevance, compares)
    if chain.ranks:
        norm = model.get_submodule(chain.norm)
        expect_rank(edits, norm, chain.ranks, f"{chain.norm} and {chain.targets[0]}")


def _adapt(edits: Edits, model: nn.Module, backend: Backend) -> None:
    # Where another canonization is in force, its explicit modules are not those of this framework.
    for module in list(model.modules()):
        adapted = backend.adapt(module)
        if adapted is not module:
            share_hooks(module, adapted.train(module.training))
            replace_child(edits, model, module, adapted)
    modules = list(model.modules())
    if backend.differentiable:
        make_live(edits, modules)
    if backend.leaf_hook is not None:
        for module in modules:
            if not vars(module)["_modules"]:
                edits.add_pre_hook(module, backend.leaf_hook)
    if backend.scratch:
        edits.on_undo(drop_scratch(modules, backend.scratch))
