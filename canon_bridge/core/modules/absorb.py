"""Activations and pools that absorb the affine map before them, by type.

Floor 5: imports ``activation``, ``pooling`` and ``psi``. A new one is one entry of ``ABSORBERS``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from canon_bridge.core.affine import Affine
from canon_bridge.core.modules.activation import absorb_into_relu, stop_at_clipped
from canon_bridge.core.modules.pooling import absorb_into_max_pool
from canon_bridge.core.modules.psi import absorb_into_activation, pass_share
from canon_bridge.core.registry import Registry, TypeKey, find_entry
from canon_bridge.core.undo.edits import Edits

# From the journal, the module, the map before it and whether relevance at clipped units stops, to the map behind it.
Absorb = Callable[[Edits, nn.Module, Affine, bool], Affine]

_leaky = partial(absorb_into_activation, is_linear_by_pieces=True)

ACTIVATIONS: Final = Registry[Absorb](
    {
        nn.ReLU: absorb_into_relu,
        **dict.fromkeys((nn.LeakyReLU, nn.PReLU, nn.RReLU, "timm.layers.activations.PReLU"), _leaky),
        **dict.fromkeys(
            (
                nn.CELU,
                nn.ELU,
                nn.GELU,
                nn.Hardshrink,
                nn.Hardsigmoid,
                nn.Hardswish,
                nn.Hardtanh,
                nn.LogSigmoid,
                nn.Mish,
                nn.SELU,
                nn.SiLU,
                nn.Sigmoid,
                nn.Softplus,
                nn.Softshrink,
                nn.Softsign,
                nn.Tanh,
                nn.Tanhshrink,
                nn.Threshold,
                *(
                    f"timm.layers.activations{home}.{name}"
                    for home, names in (
                        ("", "Swish Mish Sigmoid Tanh HardSwish HardSigmoid HardMish GELU GELUTanh QuickGELU"),
                        ("_me", "SwishMe MishMe HardSwishMe HardSigmoidMe HardMishMe"),
                    )
                    for name in names.split()
                ),
            ),
            absorb_into_activation,
        ),
    }
)

# With the number of dimensions of a batch: with one less the pools take the first one for channels.
MAX_POOLS: Final = Registry[int](
    {
        nn.MaxPool1d: 3,
        nn.MaxPool2d: 4,
        nn.MaxPool3d: 5,
        nn.AdaptiveMaxPool1d: 3,
        nn.AdaptiveMaxPool2d: 4,
        nn.AdaptiveMaxPool3d: 5,
        "timm.layers.pool2d_same.MaxPool2dSame": 4,
    }
)

ABSORBERS: Final[Mapping[TypeKey, Absorb]] = {**ACTIVATIONS, **dict.fromkeys(MAX_POOLS, absorb_into_max_pool)}

_STOPS: Final = (stop_at_clipped, pass_share)


def find_absorber(module: nn.Module, *, again: bool = False) -> Absorb | None:
    """Return the entry of ``ABSORBERS`` for a module that computes what its type computes, or None.

    With ``again`` also for a module that may have absorbed a map before.
    """
    if (not again and "forward" in vars(module)) or getattr(module, "return_indices", False):
        return None
    return find_entry(ABSORBERS, module)


def is_relu(module: nn.Module) -> bool:
    """Return whether the module becomes the thresholded ReLU of Hui & Binder."""
    return find_absorber(module) is absorb_into_relu


def wanted_rank(module: nn.Module) -> int | None:
    """Return how many dimensions the input of an absorber must have, or None for an activation, where any will do."""
    return find_entry(MAX_POOLS, module)


def stopped_at(module: nn.Module, input: Tensor, relevance: Tensor) -> Tensor:
    """Return which part of the relevance stops in front of an activation that has absorbed a map.

    Parameters
    ----------
    module : nn.Module
        The activation; where it has absorbed nothing, or passes everything, nothing stops.
    input : Tensor
        Its input.
    relevance : Tensor
        What a rule hands down, in the shape of the input.
    """
    hooks = [h for h in vars(module)["_forward_pre_hooks"].values() if getattr(h, "func", h) in _STOPS]
    if not hooks:
        return torch.zeros_like(relevance)
    with torch.enable_grad():
        leaf = passed = input.detach().requires_grad_()
        for hook in hooks:
            (passed,) = hook(module, (passed,)) or (passed,)
        (handed_down,) = torch.autograd.grad(passed, leaf, relevance)
    return relevance - handed_down
