"""Canonization as a step before Captum's own classes: sums that Captum knows, and inputs of one's own per module."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import EpsilonRule
from torch import Tensor, nn

from canon_bridge.core.canonization import Canonization
from canon_bridge.core.modules.arithmetic import Add
from canon_bridge.core.modules.layers import Mean
from canon_bridge.core.planning.options import Backend, Clipped, ExampleInputs, Leftover, Options, Prefer

# Captum looks rules up by exact type: a mean over space has the rule of the average pools.
SUPPORTED_LAYERS_WITH_RULES.setdefault(Mean, EpsilonRule)


def _own_inputs(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    # Captum hooks input tensors, one hook a tensor: a tensor that feeds two modules would mix up their relevance.
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in args)


def _addition(add: Add) -> nn.Module:
    return Addition_Module() if add.signal is None else add  # Captum knows sums of two tensors alone


# What our own LRP needs, and what Captum's classes need besides; they leave these attributes on modules.
MODULES: Final[Mapping[type[nn.Module], Callable[[Any], nn.Module]]] = {Add: _addition}
BACKEND = Backend(MODULES)
PREPROCESSING = Backend(MODULES, _own_inputs, ("rule", "activations", "activation"))


def canonize(
    model: nn.Module,
    *,
    prefer: Prefer = "left",
    clipped: Clipped = "absorb",
    leftover: Leftover = "linear",
    example_inputs: ExampleInputs | None = None,
) -> Canonization:
    """Make a model canonical for Captum's own classes, for the length of a ``with`` block.

    As :func:`canon_bridge.canonize`, and besides: sums become ``Addition_Module``, every module without children
    gets input tensors of its own, and what Captum leaves on modules is gone after the block.

    Parameters
    ----------
    model, prefer, clipped, leftover, example_inputs
        See :func:`canon_bridge.canonize`.

    Returns
    -------
    Canonization
        A context manager, with ``.plan``, ``.apply()`` and ``.undo()``.

    Raises
    ------
    TypeError, ValueError, TracingError
        As :func:`canon_bridge.canonize`.

    Notes
    -----
    Captum's default rule on an identity BatchNorm is epsilon; its ``Alpha1_Beta0_Rule`` and ``GammaRule`` are made
    for inputs that are not negative, and thresholded ReLUs put out negative values. :class:`canon_bridge.captum.LRP`
    has rules for either sign.

    Examples
    --------
    >>> with canonize(model):
    ...     relevance = captum.attr.LRP(model).attribute(x, target=3)
    """
    return Canonization(model, Options(prefer, clipped, leftover, example_inputs), PREPROCESSING)
