"""What a rule is: a Captum ``PropagationRule`` that takes the place of a module in the autograd graph.

What arrives at the module's output as a gradient is relevance, and what leaves at its inputs is relevance. Nothing is
hooked to tensors, so a tensor may feed any number of modules.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from canon_bridge.core import Explicit, by_position

Tensors = tuple[Tensor, ...]
Stabilizer = float | Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a module makes of some values.

    Attributes
    ----------
    leaves : tuple of Tensor
        The values.
    output : Tensor
        With the graph from the leaves to it.
    """

    leaves: Tensors
    output: Tensor


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module: which module, its positional arguments, and what it made of its data, if that was kept."""

    module: nn.Module
    arguments: tuple[Any, ...]
    own: Evaluation | None = None

    def forward(self, *tensors: Tensor) -> Tensor:
        """Compute the module, without its hooks, with other values for those arguments that are its data."""
        values, flags = iter(tensors), are_data(self.module, self.arguments)
        arguments = (next(values) if flag else a for a, flag in zip(self.arguments, flags, strict=True))
        with _evaluation():
            return self.module.forward(*arguments)


def are_data(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[bool, ...]:
    """Return which arguments of a call are data: tensors, but no integers, nor what it has besides its data."""
    count = module.data_count if isinstance(module, Explicit) else len(arguments)
    return tuple(index < count and _is_data(value) for index, value in enumerate(arguments))


def _is_data(value: object) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


_evaluating: ContextVar[bool] = ContextVar("evaluating", default=False)


@contextmanager
def _evaluation() -> Generator[None]:
    """Make rules on modules inside this one stand back: this one's rule is for all of it."""
    token = _evaluating.set(True)
    try:
        yield
    finally:
        _evaluating.reset(token)


class Rule(PropagationRule):
    """A rule that computes the relevance of a module's inputs from that of its output.

    Works with :class:`canon_bridge.captum.LRP` and, set as ``module.rule``, with Captum's own ``LRP``.

    Parameters
    ----------
    stabilizer : float or callable, default 1e-6
        Added to denominators away from zero, ``z + stabilizer * sign(z)`` with ``sign(0) = 1``; or a function from
        the denominator to the stabilized denominator.
    zero_params : str or sequence of str, default ()
        Names of parameters that count as zero, for example ``"bias"``.

    Raises
    ------
    TypeError
        If the stabilizer is neither a number nor callable.
    ValueError
        If it is negative.
    """

    def __init__(self, stabilizer: Stabilizer = 1e-6, zero_params: str | Sequence[str] | None = ()) -> None:
        _check_stabilizer(stabilizer)
        self.stabilizer = stabilizer
        self.zero_params = (zero_params,) if isinstance(zero_params, str) else tuple(zero_params or ())
        self.relevance_input: dict[torch.device, Any] = {}
        self.relevance_output: dict[torch.device, Tensor] = {}

    @abstractmethod
    def propagate(self, call: Call, inputs: Tensors, relevance: Tensor) -> Tensors:
        """Return the relevance of each input tensor, given that of the output; gradients are enabled."""

    @property
    def keeps_inputs(self) -> bool:
        """Whether the rule looks at the values of inputs; else it gets tensors of their shapes that hold none."""
        return True

    def keeps_output(self, module: nn.Module) -> bool:
        """Return whether the rule evaluates the module as it is, which the forward pass has done already."""
        return False

    def attach(self, module: nn.Module) -> list[RemovableHandle]:
        """Put the rule in the place of the module in the autograd graph; return the handles that take it away."""
        if module._forward_hooks or module._modules:  # a hook of the user's may want the graph inside the module
            return [module.register_forward_hook(self.stand_in, with_kwargs=True)]
        begin = module.register_forward_pre_hook(self._begin, with_kwargs=True)
        return [begin, module.register_forward_hook(self.stand_in, with_kwargs=True, always_call=True)]

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Have the module record no graph, or one of this call alone where the rule evaluates it as it is."""
        if _evaluating.get():
            return None
        inputs, others = by_position(module, args, kwargs)
        begun = _Begun(module, torch.is_grad_enabled(), inputs)
        _begun.set(begun)
        if not begun.records or not self.keeps_output(module):
            torch.set_grad_enabled(False)
            return None
        pairs = zip(inputs, are_data(module, inputs), strict=True)
        begun.leaves = tuple(
            _kept(module, v).requires_grad_() if is_data else _constant(module, v) for v, is_data in pairs
        )
        return begun.leaves, others

    def stand_in(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return what a module has put out, detached from the graph, but for the rule; a forward hook."""
        if _evaluating.get():
            return None
        (inputs, _), begun, own = by_position(module, args, kwargs), _begun.get(), None
        if begun is not None and begun.module is module:
            _begun.set(None)
            torch.set_grad_enabled(begun.records)
            if begun.leaves:
                data = zip(begun.leaves, are_data(module, inputs), strict=True)
                own = Evaluation(tuple(value for value, is_data in data if is_data), output)
            inputs = begun.inputs
        if output is None:  # the module has raised
            return None
        _check_is_tensor(self, module, output)
        return _Propagation.apply(self, module, own, False, output.detach(), *inputs)

    def forward_hook(self, module: nn.Module, inputs: Any, outputs: Tensor) -> Tensor:
        """Put the rule in the place of the module in the autograd graph; the forward hook for Captum's own LRP."""
        if _evaluating.get():
            return outputs
        _check_is_tensor(self, module, outputs)
        tensors = inputs if isinstance(inputs, tuple) else (inputs,)
        return cast(Tensor, _Propagation.apply(self, module, None, True, outputs.detach(), *tensors))

    def forward_hook_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Keep the inputs for Captum's second forward pass; numbers among them stay what they are."""
        super().forward_hook_weights(module, _tensors(inputs), outputs)

    def forward_pre_hook_activations(self, module: nn.Module, inputs: Any) -> Any:
        """Give the inputs of the first forward pass back in Captum's second one."""
        super().forward_pre_hook_activations(module, _tensors(inputs))
        return inputs

    def record(self, inputs: Tensors, output: Tensor) -> None:
        """Keep the relevance where Captum's ``LayerLRP`` looks for it."""
        self.relevance_input[output.device] = inputs[0] if len(inputs) == 1 else inputs
        self.relevance_output[output.device] = output

    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Do nothing: parameters are changed only while the rule computes, see :func:`modified`."""

    def divide(self, relevance: Tensor, denominator: Tensor) -> Tensor:
        """Return the relevance, divided by the stabilized denominator."""
        if callable(self.stabilizer):
            return relevance / self.stabilizer(denominator)
        distance = denominator.new_full((), self.stabilizer)
        # A denominator of -0.0 gets the other sign; nothing but zeros adds up to it, which are shared out either way.
        stabilized = torch.copysign(distance, denominator).add_(denominator)
        return relevance / stabilized


@dataclass(eq=False)
class _Begun:
    """A call that a module has begun, and whether a graph is recorded around it."""

    module: nn.Module
    records: bool
    inputs: tuple[Any, ...]
    leaves: tuple[Any, ...] = ()


_begun: ContextVar[_Begun | None] = ContextVar("_begun", default=None)


class Kept:
    """What rules keep of the arguments of modules in one forward pass: which a forward may overwrite after the module.

    They are kept as they are, without a copy, and it is known at the end which of them were overwritten since.

    Parameters
    ----------
    copied : collection of nn.Module, optional
        The modules whose arguments are copied; all by default.
    """

    def __init__(self, copied: Collection[nn.Module] | None = None) -> None:
        self._copied = copied
        self._aliases: list[tuple[nn.Module, Tensor, int]] = []

    @contextmanager
    def during(self) -> Generator[None]:
        """Have rules keep arguments so, for the length of the block."""
        token = _keeping.set(self)
        try:
            yield
        finally:
            _keeping.reset(token)

    def keep(self, module: nn.Module, value: Tensor) -> Tensor:
        """Return the values as they are now, detached."""
        if self._copied is None or module in self._copied:
            return value.detach().clone()
        alias = value.detach()
        if not alias.is_inference():
            self._aliases.append((module, alias, alias._version))
        return alias

    def overwritten(self, model: nn.Module) -> frozenset[str]:
        """Return the paths of the modules whose arguments are no longer what they were; to be asked after the pass."""
        found = {module for module, alias, version in self._aliases if alias._version != version}
        self._aliases.clear()  # what the graph does not need is not kept
        return frozenset(path for path, module in (model.named_modules() if found else ()) if module in found)


_keeping: ContextVar[Kept | None] = ContextVar("_keeping", default=None)


def _kept(module: nn.Module, value: Tensor) -> Tensor:
    """Return the values as they are now: a view may be overwritten through what it is a view of."""
    return value.detach().clone() if value._is_view() else _constant(module, value)


def _constant(module: nn.Module, value: Any) -> Any:
    keeping = _keeping.get()
    if not isinstance(value, Tensor):
        return value
    return value.detach() if keeping is None else keeping.keep(module, value)


def _tensors(inputs: Any) -> Tensors:
    return tuple(value for value in (inputs if isinstance(inputs, tuple) else (inputs,)) if isinstance(value, Tensor))


class _Propagation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rule: Rule, module: nn.Module, own: Evaluation | None, records: bool, output: Tensor, *inputs: Any
    ) -> Tensor:
        # Kept without the tensors: those are saved in the way that autograd frees.
        ctx.rule, ctx.module, ctx.own, ctx.records = rule, module, own, records
        ctx.is_tensor = are_data(module, inputs)
        pairs = list(zip(inputs, ctx.is_tensor, strict=True))
        ctx.arguments = tuple(None if is_data else _constant(module, value) for value, is_data in pairs)
        data: Tensors = tuple(value for value, is_data in pairs if is_data)
        if own is not None:
            ctx.save_for_backward(*(leaf.detach() for leaf in own.leaves))
            return output.clone()  # so that nobody writes over what is kept
        keep = partial(_kept, module) if rule.keeps_inputs else _without_values
        ctx.save_for_backward(*map(keep, data))
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (relevance,) = grad_outputs
        tensors = tuple(tensor.detach() for tensor in ctx.saved_tensors)
        saved = iter(tensors)
        arguments = tuple(
            next(saved) if is_tensor else other for is_tensor, other in zip(ctx.is_tensor, ctx.arguments, strict=True)
        )
        call, ctx.own = Call(ctx.module, arguments, ctx.own), None
        with torch.enable_grad():
            propagated = ctx.rule.propagate(call, tensors, relevance.detach())
        if ctx.records:
            ctx.rule.record(propagated, relevance)
        remaining = iter(propagated)
        return None, None, None, None, None, *(next(remaining) if is_tensor else None for is_tensor in ctx.is_tensor)


def _without_values(value: Tensor) -> Tensor:
    return torch.empty_like(value, device="meta")


@contextmanager
def modified(module: nn.Module, change: Callable[[Tensor], Tensor], zero_params: Sequence[str] = ()) -> Generator[None]:
    """Replace the module's own parameters by ``change(parameter)``, or by zeros, for the length of the block."""
    slots = cast("dict[str, Tensor | None]", vars(module)["_parameters"])
    former = dict(slots)
    try:
        for name, value in former.items():
            if value is not None:
                value = value.detach()
                slots[name] = torch.zeros_like(value) if name in zero_params else change(value)
        yield
    finally:
        slots.clear()
        slots.update(former)


def _check_is_tensor(rule: Rule, module: nn.Module, output: Any) -> None:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the rule {type(rule).__name__} is on a {type(module).__name__} that puts out a {type(output).__name__}; "
            "a rule is for a module that puts out one tensor. Set `rule` on the modules inside it instead."
        )


def _check_stabilizer(stabilizer: object) -> None:
    if not callable(stabilizer) and not isinstance(stabilizer, float | int):
        raise TypeError(f"the stabilizer is {stabilizer!r}; it must be a number or a function of the denominator.")
    if not callable(stabilizer) and stabilizer < 0:
        raise ValueError(f"the stabilizer is {stabilizer!r}; it must not be negative.")
