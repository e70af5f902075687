"""Canonization as a step before Captum's own classes: sums that Captum knows, and inputs of one's own per module."""

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

import torch
from captum.attr import DeepLift
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn

from canon_bridge.captum.rules import Norm, Pass, SignalTakesAll
from canon_bridge.core import (
    Add,
    Backend,
    BatchNorm,
    Canonization,
    Clipped,
    Divide,
    Edits,
    ElementWise,
    ExampleInputs,
    LeftoverOption,
    LinearMap,
    Multiply,
    Normaliser,
    OfRank,
    Options,
    Placed,
    Prefer,
    Product,
    Selected,
    Subtract,
    UncoveredOperationWarning,
    bind_forward,
    pool_sign,
    stand_in,
)

# Captum looks rules up by exact type, and knows none of the modules that canonization puts in: they bring their own.
_RULES: Final[Mapping[type[nn.Module], Callable[[], PropagationRule]]] = {
    LinearMap: Norm,
    Add: Norm,
    Subtract: Norm,
    Multiply: SignalTakesAll,
    Divide: SignalTakesAll,
    Product: SignalTakesAll,
    Selected: Norm,  # which is exact for what only moves elements
    Placed: Norm,
    ElementWise: Pass,
    Normaliser: Pass,
    BatchNorm: Pass,
    OfRank: Pass,
}


@cache
def _with_rule(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the type with a ``rule``, a new one after Captum has deleted it, as it does after each call."""

    def get(self: nn.Module) -> PropagationRule:
        return vars(self).setdefault("_rule", _RULES[kind]())

    def put(self: nn.Module, rule: PropagationRule) -> None:
        vars(self)["_rule"] = rule

    def delete(self: nn.Module) -> None:
        vars(self).pop("_rule", None)

    return type(kind.__name__, (kind,), {"rule": property(get, put, delete)})


def _ruled(module: nn.Module) -> nn.Module:
    """Return the module that Captum's own LRP knows a rule for."""
    added = _addition(module)
    if added is not module or type(module) not in _RULES:
        return added
    twin = stand_in(module)
    twin.__class__ = _with_rule(type(module))
    return twin


def _own_inputs(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    # Captum hooks input tensors, one hook a tensor: a tensor that feeds two modules would mix up their relevance.
    if _has_overlapping_windows(module) and compares_with_reference(module):
        if args:
            _warn_of_reference(module, args[0])
        return args
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in args)


def compares_with_reference(module: nn.Module) -> bool:
    """Return whether a hook on the module is one of Captum's DeepLift, or of a class made from it."""
    hooks = vars(module)["_forward_hooks"].values()
    return any(isinstance(getattr(hook, "__self__", None), DeepLift) for hook in hooks)


def _has_overlapping_windows(module: nn.Module) -> bool:
    # DeepLift's rule for max pools keeps one of the windows that share a winner. On the tensor that an activation has
    # put out, Captum calls it too late to count, and the gradient stands: complete where the reference is constant.
    if not isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d):
        return False
    sizes = (torch.atleast_1d(torch.tensor(size)) for size in (module.kernel_size, module.stride))
    kernel, stride = torch.broadcast_tensors(*sizes)
    return bool((kernel > stride).any())


def _warn_of_reference(module: Any, input: Tensor) -> None:
    """Warn where the reference, the second half of a batch of DeepLift's, is not constant in each window."""
    reference = input.detach()[len(input) // 2 :]
    if module.return_indices or len(input) % 2 or not reference.numel():
        return
    with torch.no_grad():
        highest, lowest = (type(module).forward(module, values) for values in (reference, -reference))
        spread, size = float((highest + lowest).max()), float(reference.abs().max())
    if spread > 100 * torch.finfo(input.dtype).eps * size:
        warnings.warn(
            f"{module} has windows that overlap, and the reference varies inside them: DeepLift is not complete here. "
            "Use a reference that is constant in each channel of the input, or a pool whose stride is its kernel_size.",
            UncoveredOperationWarning,
            stacklevel=2,
        )


# DeepLift's rule for max pools computes the maximum anew, from what its hooks have seen of the module. So where a pool
# takes the minimum of some channels, the signs that make it one are outside of those hooks.
_LAST: Final = -1  # the key of a hook; torch counts from 0


def _is_seen_as_maximum(module: nn.Module) -> bool:
    return _LAST in vars(module)["_forward_hooks"] and compares_with_reference(module)


def _prepare(edits: Edits, module: nn.Module) -> None:
    _sign_outside(edits, module)
    if not vars(module)["_modules"]:
        edits.add_pre_hook(module, _own_inputs)


def _sign_outside(edits: Edits, module: nn.Module) -> None:
    """Have a pooling that has absorbed a map compute the maximum for DeepLift, between signs that it does not see."""
    if "pool_sign" not in vars(module)["_buffers"] or _has_overlapping_windows(module):
        return
    signed = vars(module)["forward"].func
    if signed is not _pool:
        bind_forward(edits, module, _pool, signed)
    if _LAST not in vars(module)["_forward_hooks"]:  # by another block
        edits.set(module, "_forward_hooks", _LAST, _sign_output)
        edits.add_pre_hook(module, _sign_input)


def _pool(module: nn.Module, signed: Callable[..., Tensor], input: Tensor, *sizes: Any) -> Tensor:
    pool = type(module).forward if _is_seen_as_maximum(module) else signed
    return pool(module, input, *sizes)


def _sign_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not _is_seen_as_maximum(module):
        return None
    vars(module)["_forward_hooks"].move_to_end(_LAST)  # after those that have been registered since
    return (_signed(module, args[0]), *args[1:])


def _sign_output(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
    return _signed(module, output) if _is_seen_as_maximum(module) else None


def _signed(module: nn.Module, value: Tensor) -> Tensor:
    sign = pool_sign(module, value)
    return value if sign is None else value * sign


def _addition(module: nn.Module) -> nn.Module:
    is_sum = type(module) is Add and module.signal is None  # Captum knows sums of two tensors alone
    return Addition_Module().train(module.training) if is_sum else module


def _is_of_captum(hook: object) -> bool:
    """Return whether Captum has put a hook on a module: one of its own, or of a rule of ours."""
    of_rule = isinstance(getattr(hook, "__self__", None), PropagationRule)
    return of_rule or str(getattr(hook, "__module__", "")).startswith("captum.")


# What our own LRP needs, and what Captum's classes need besides; they leave these attributes on modules.
BACKEND = Backend(_addition, has_rules=True)
PREPROCESSING = Backend(
    _ruled,
    _prepare,
    ("rule", "activations", "activation", "input", "output"),
    leaves_hook=_is_of_captum,
    compares_with_reference=compares_with_reference,
)


def canonize(
    model: nn.Module,
    *,
    prefer: Prefer = "left",
    clipped: Clipped = "absorb",
    leftover: LeftoverOption = "linear",
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

    Warns
    -----
    UncoveredOperationWarning
        Where DeepLift is not complete: at a max pooling with windows that overlap, if the reference varies in them.

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
