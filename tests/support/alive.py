"""Which batch norms still do something when a model runs: seen from outside, without any plan.

Hooks on every batch-norm module, and a look at every batch-norm operation that reaches the dispatcher, ask the same:
on what it is really given, and on random numbers of that shape, is the result the input, bit for bit? A batch norm
that is not called any more, nor what stands in its place, lives on in somebody else's arithmetic for all we know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.zoo import is_batch_norm


@dataclass
class Witness:
    """What was seen during one forward.

    Attributes
    ----------
    called : list of str
        Paths of the batch-norm modules that ran.
    alive : list of str
        Those of them that changed anything.
    functional : int
        Calls of a batch-norm operation outside such modules that changed anything.
    bypassed : list of str
        Of the paths that were asked for those where nothing is called any more.
    """

    called: list[str] = field(default_factory=list)
    alive: list[str] = field(default_factory=list)
    functional: int = 0
    bypassed: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many batch norms live on."""
        return len(self.alive) + self.functional + len(self.bypassed)


@torch.no_grad()
def witness(model: nn.Module, inputs: tuple[Tensor, ...], expected: Iterable[str] = ()) -> Witness:
    """Run the model once and return which of its batch norms are alive; the model is not changed.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    inputs : tuple of Tensor
        Its arguments.
    expected : iterable of str
        Paths where a batch norm is called in the original model.
    """
    seen = Witness(bypassed=list(expected))
    running: list[tuple[nn.Module, Tensor]] = []
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        running.append((module, args[0].clone()))  # the module may overwrite its input

    def after(path: str, module: nn.Module, output: Tensor) -> None:
        x = running[-1][1]
        if path not in seen.called:
            seen.called.append(path)
        noise = torch.randn_like(x)
        # Its forward, not the module: no hooks.
        changed = not (_passes(module, x, output) and _passes(module, noise, module.forward(noise.clone())))
        if changed and path not in seen.alive:
            seen.alive.append(path)
        running.pop()

    instances = _InstanceNorms()

    def operation(call: Callable[..., Any], arguments: dict[str, Any], result: Any) -> None:
        if instances.depth:
            return  # it is made of a batch norm over the statistics of each sample: not one that could be merged
        if not running and not _standardizes_weights(arguments, parameters) and _changes(call, arguments, result):
            seen.functional += 1

    def standing_in(path: str) -> None:
        if path in seen.bypassed:
            seen.bypassed.remove(path)

    handles = []
    for path, module in model.named_modules():
        if path in seen.bypassed:
            handles.append(module.register_forward_hook(lambda *_, path=path: standing_in(path)))
        if is_batch_norm(module):
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(lambda m, args, out, path=path: after(path, m, out)))
    try:
        with instances, _Operations(operation):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


class _InstanceNorms(TorchFunctionMode):
    """Know whether a functional instance norm is running."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        norm = func in (torch.instance_norm, torch.nn.functional.instance_norm)
        self.depth += norm
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.depth -= norm


class _Operations(TorchDispatchMode):
    """Report every batch-norm operation: the call, its arguments by name, and what it returned."""

    def __init__(self, report: Callable[[Callable[..., Any], dict[str, Any], Any], None]) -> None:
        super().__init__()
        self._report = report

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if "batch_norm" in func.overloadpacket.__name__:
            names = [argument.name for argument in func._schema.arguments]
            self._report(func, {**dict(zip(names, args, strict=False)), **kwargs}, result)
        return result


def _passes(module: nn.Module, x: Tensor, output: Tensor) -> bool:
    """Return whether the output is the input, apart from the activation that timm's layers carry along."""
    if torch.equal(x, output):
        return True
    for name in ("drop", "act"):
        part = getattr(module, name, None)
        if isinstance(part, nn.Module):
            x = part.forward(x.clone())
    return torch.equal(x, output)


def _standardizes_weights(arguments: dict[str, Any], parameters: set[int]) -> bool:
    """Return whether the operation normalizes a parameter: weight standardization in a convolution (timm)."""
    own = arguments["input"].untyped_storage().data_ptr() in parameters
    return own and arguments.get("running_mean") is None


def _changes(call: Callable[..., Any], arguments: dict[str, Any], result: Any) -> bool:
    if arguments.get("training", False) or arguments.get("running_mean") is None:
        return True  # the statistics of the batch
    x = arguments["input"]
    noise = torch.randn_like(x)
    again = call(**{**arguments, "input": noise})
    return not (torch.equal(_first(result), x) and torch.equal(_first(again), noise))


def _first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]
