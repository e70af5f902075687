"""Carry out one merge: read the affine map, fold it into the linear layers, make the norm the identity.

Floor 2: imports ``activation``, ``linear`` and below. Values are read anew at every call.
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge.core.activation import ACTIVATIONS
from canon_bridge.core.affine import NORMS, Affine
from canon_bridge.core.edits import Edits
from canon_bridge.core.linear import fold_after, fold_before


def merge_left(edits: Edits, linears: Iterable[nn.Module], norm: nn.Module) -> None:
    """Merge a norm into the linear layer before it (each of them, if several feed it); see :func:`fold_after`."""
    affine = _take(edits, norm)
    for linear in linears:
        fold_after(edits, linear, affine)


def merge_right(
    edits: Edits, targets: Mapping[nn.Module, nn.Module | None], norm: nn.Module, clip_relevance: bool
) -> None:
    """Merge a norm into all linear layers behind it; see :func:`fold_before`.

    Parameters
    ----------
    edits : Edits
        The journal.
    targets : mapping of nn.Module to (nn.Module or None)
        For each linear layer the activation between the norm and it, which becomes thresholded.
    norm : nn.Module
        The normalization layer.
    clip_relevance : bool
        See :func:`absorb_into_relu`.
    """
    affine = _take(edits, norm)
    behind: dict[nn.Module, Affine] = {}
    for linear, activation in targets.items():
        if activation is not None and activation not in behind:
            behind[activation] = ACTIVATIONS[type(activation)](edits, activation, affine, clip_relevance)
        fold_before(edits, linear, affine if activation is None else behind[activation])


def make_linear(edits: Edits, model: nn.Module, norm: nn.Module) -> None:
    """Put a per-channel linear layer, a 1x1 depthwise convolution, in the place of a norm that nothing can take.

    Everywhere in the model where the norm is registered.
    """
    affine = NORMS[type(norm)].read(norm)
    channels = affine.scale.numel()
    old = norm.running_mean
    assert isinstance(old, Tensor)
    layer = nn.Conv2d(channels, channels, 1, groups=channels, device="meta").eval()
    requires_grad = isinstance(norm.weight, Tensor) and norm.weight.requires_grad
    weight = affine.scale.to(old.dtype).view(-1, 1, 1, 1)
    vars(layer)["_parameters"]["weight"] = nn.Parameter(weight.detach().clone(), requires_grad)
    vars(layer)["_parameters"]["bias"] = nn.Parameter(affine.shift.detach().to(old.dtype), requires_grad)
    vars(layer)["forward"] = partial(_per_channel_linear, layer)
    replace_child(edits, model, norm, layer)


def replace_child(edits: Edits, model: nn.Module, child: nn.Module, new: nn.Module) -> None:
    """Put ``new`` in the place of ``child`` under every name that it has in the model."""
    for parent in list(model.modules()):
        for name in [name for name, module in vars(parent)["_modules"].items() if module is child]:
            edits.set(parent, "_modules", name, new)


def expect_rank(edits: Edits, norm: nn.Module, rank: int, paths: str) -> None:
    """Make a merged norm, whose type accepts several ranks, refuse input of another rank than the merge holds for."""
    edits.set(norm, "__dict__", "forward", partial(_of_rank, norm, rank, paths))


def _take(edits: Edits, norm: nn.Module) -> Affine:
    entry = NORMS[type(norm)]
    with torch.no_grad():
        affine = entry.read(norm)
        for (table, name), value in entry.identity(norm).items():
            edits.set(norm, table, name, value)
    return affine


def _per_channel_linear(layer: nn.Module, input: Tensor) -> Tensor:
    # Any number of spatial dimensions, also none: (N, C, *spatial) as (N, C, positions, 1).
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    flat = input.reshape(*input.shape[:2], math.prod(input.shape[2:]), 1)
    return F.conv2d(flat, weight, bias, groups=weight.shape[0]).view(input.shape)


_SHAPES = {2: "(N, C)", 3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}


def _of_rank(norm: nn.Module, rank: int, paths: str, input: Tensor) -> Tensor:
    if input.dim() != rank:
        raise ValueError(
            f"{paths} are merged for input of shape {_SHAPES[rank]}, but got {tuple(input.shape)}: here the layers "
            "count other channels. Add the batch dimension, or use a convolution with kernel size 1 where a Linear "
            "layer acts on the last dimension."
        )
    return type(norm).forward(norm, input)
