"""Carry out a plan: all writes to a model, in their order. Nothing is checked here; :class:`Canonization` does that."""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge.core.activations import Compares, compares_with_baselines, find_absorber
from canon_bridge.core.affine import Affine
from canon_bridge.core.explicit import EXPANSIONS, Selected
from canon_bridge.core.forwards import bind_forward, forward_slots
from canon_bridge.core.hooks import watch_hooks
from canon_bridge.core.layers.linear import fold_after, fold_before, make_plain
from canon_bridge.core.layers.parameters import make_live
from canon_bridge.core.norms import (
    SHAPES,
    NormType,
    as_convolution,
    children_after,
    compose,
    is_norm,
    norm_map,
    norm_type,
    take,
)
from canon_bridge.core.options import Backend
from canon_bridge.core.plan import Chain, Merge, Plan, Untangled
from canon_bridge.core.precision import Loss, losses
from canon_bridge.core.registry import find_entry
from canon_bridge.core.restore import Edits, finder, follow_mode, paths

Find = Callable[[str], nn.Module]


def carry_out(edits: Edits, model: nn.Module, plan: Plan, backend: Backend) -> list[Loss]:
    """Make a model canonical, in place, and return what precision the merges lose.

    The undo of the journal makes the model itself again. The model is in the state that the plan was made for, but for
    its values, which are read anew.
    """
    _make_explicit(edits, model, plan)
    find = finder(model)  # what is found stays found where a norm, which may be a part of another, is replaced
    for path in plan.out_of_place:
        edits.set(find(path), "__dict__", "inplace", False)
    for path in plan.plain:
        make_plain(edits, find(path))
    lost = losses(model, plan)
    _merge_all(edits, model, plan, find, backend.compares_with_reference or compares_with_baselines)
    watch_hooks(edits, model, plan, backend.has_rules)
    _adapt(edits, model, backend)
    return lost


def _make_explicit(edits: Edits, model: nn.Module, plan: Plan) -> None:
    for rewrite in plan.rewrites:
        container = model.get_submodule(rewrite.path)
        for name, make in rewrite.children:
            edits.set(container, "_modules", name, make(container))
    for rewrite in plan.rewrites:  # only now: stand-ins take over the forward of what they stand for
        container = model.get_submodule(rewrite.path)
        for name, tensor in rewrite.constants.items():
            edits.set_buffer(container, name, tensor.clone())  # it moves with the model
        bind_forward(edits, container, rewrite.function)
    for path in plan.expanded:
        former = model.get_submodule(path)
        make = find_entry(EXPANSIONS, former)
        assert make is not None  # the plan has asked
        replace_child(edits, model, former, make(former).train(former.training))


def _merge_all(edits: Edits, model: nn.Module, plan: Plan, find: Find, compares: Compares) -> None:
    copies: dict[str, list[Affine]] = {}  # by the path of a layer, the map of each norm that gets a copy of it
    for entry in plan.entries:
        if isinstance(entry, Merge):
            merge(edits, find, entry.chain, plan.options.clipped == "absorb", compares)
        elif isinstance(entry, Untangled):
            affine = norm_map(find(entry.norm))
            for step in entry.copies:
                copies.setdefault(step.module, []).append(affine.select(step.channels))
    for path, affines in copies.items():
        fold_after(edits, find(path), *affines)
    for leftover in plan.leftovers:
        norm = find(leftover.norm)
        _put_in_place(edits, model, norm, linear=per_channel_linear(norm))
    for entry in plan.untangled:
        norm = find(entry.norm)
        rest = per_channel_linear(norm, entry.rest) if entry.rest else None
        _put_in_place(edits, model, norm, selected=Selected(entry.index, entry.rest, entry.ranks, rest).eval())
    for norm in [find(entry.norm) for entry in plan.merges]:
        if children_after(norm):
            _put_in_place(edits, model, norm)


def _adapt(edits: Edits, model: nn.Module, backend: Backend) -> None:
    # Where another canonization is in force, its explicit modules are not those of this framework.
    for module in paths(model):
        adapted = backend.adapt(module)
        if adapted is not module:
            _stand_in(edits, model, module, adapted.train(module.training))
    modules = list(paths(model))
    for module in modules:
        backend.prepare(edits, module)
    if backend.differentiable:
        make_live(edits, modules)


def merge(
    edits: Edits,
    find: Find,
    chain: Chain,
    clip_relevance: bool,
    compares: Compares = compares_with_baselines,
) -> None:
    """Merge a norm into the layers of its chain.

    Parameters
    ----------
    edits : Edits
        The journal.
    find : callable
        From a path to the module.
    chain : Chain
        Where the map goes.
    clip_relevance : bool
        Whether relevance at clipped units stops; see :func:`absorb_into_relu`.
    compares : callable, optional
        For which modules it does not, because a method compares with a reference input there.
    """
    affine = take(edits, find(chain.norm), chain.ranks, f"{chain.norm} and {chain.targets[0]}")
    for step in chain.steps:
        module, arriving = find(step.module), affine.select(step.channels)
        if step.absorbs:
            absorb = find_absorber(module, again=True)
            assert absorb is not None  # the plan has asked
            affine = affine.joined(absorb(edits, module, arriving, clip_relevance, compares))
        elif is_norm(module):
            compose(edits, module, arriving, comes_before=chain.direction == "right")
        elif chain.direction == "right":
            fold_before(edits, module, arriving)
        else:
            fold_after(edits, module, arriving)


def _put_in_place(edits: Edits, model: nn.Module, norm: nn.Module, **layer: nn.Module) -> None:
    """Put a layer (by its name there) in the place of a norm, with its hooks, before what the norm calls after itself.

    Everywhere in the model where the norm is registered.
    """
    after = {name: getattr(norm, name) for name in children_after(norm)}
    (new,) = [nn.Sequential(OrderedDict(layer | after)).eval()] if after else layer.values()
    _stand_in(edits, model, norm, new)


def per_channel_linear(norm: nn.Module, of: tuple[int, ...] | None = None) -> nn.Module:
    """Return the 1x1 depthwise convolution that computes what a norm computes, of some of its channels or of all."""
    weight, bias = as_convolution(norm, of)
    channels = bias.numel()
    layer = nn.Conv2d(channels, channels, 1, groups=channels, device="meta").eval()
    # What a forward may look up on the norm besides calling it.
    plain = {name: value for name, value in vars(norm).items() if type(value) in _PLAIN and name not in vars(layer)}
    vars(layer).update(plain)
    vars(layer)["_parameters"].update(weight=weight, bias=bias)
    vars(layer).update(forward_slots(layer, _per_channel_linear))
    vars(layer)["_stands_for"] = norm_type(norm)
    return layer


def _stand_in(edits: Edits, model: nn.Module, module: nn.Module, new: nn.Module) -> None:
    """Put ``new`` in the place of a module, with the same hooks as long as it is there."""
    vars(new).update({name: value for name, value in vars(module).items() if "hook" in name})
    replace_child(edits, model, module, new)


def replace_child(edits: Edits, model: nn.Module, child: nn.Module, new: nn.Module) -> None:
    """Put ``new`` in the place of ``child`` under every name that it has in the model.

    Where the user has called ``train()`` or ``eval()`` by the time of the undo, the child follows.
    """
    edits.on_undo(partial(follow_mode, child, new, new.training))
    for parent in paths(model):
        for name in [name for name, module in vars(parent)["_modules"].items() if module is child]:
            edits.set(parent, "_modules", name, new)


def _per_channel_linear(layer: nn.Module, input: Tensor) -> Tensor:
    # Any number of spatial dimensions, also none: (N, C, *spatial) as (N, C, positions, 1).
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    norm = cast("NormType", layer._stands_for)
    if input.dim() not in norm.ranks:  # the norm takes no other either, or finds its channels elsewhere
        wanted = " or ".join(SHAPES[rank] for rank in norm.ranks)
        raise ValueError(f"expected input of shape {wanted}, as the BatchNorm takes it, but got {tuple(input.shape)}.")
    if layer.training and not norm.frozen:
        raise ValueError(
            "a BatchNorm was put into training mode while the model was canonical: it is a linear layer here and "
            "cannot normalize by the batch; call model.eval(), or train the model outside the block."
        )
    if not input.numel():  # convolutions refuse an axis without elements
        shape = (-1, *(1,) * (input.dim() - 2))
        return input * weight.view(shape) + bias.view(shape)
    flat = input.reshape(*input.shape[:2], math.prod(input.shape[2:]), 1)
    # A norm takes half precision with statistics in float32, and so does what stands in for it.
    wide = flat if flat.dtype == weight.dtype else flat.to(torch.promote_types(flat.dtype, weight.dtype))
    output = F.conv2d(wide, weight, bias, groups=weight.shape[0]).view(input.shape)
    return output if wide.dtype == input.dtype else output.to(input.dtype)


_PLAIN: Final = (bool, int, float, str)
