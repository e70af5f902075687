"""What flows through each module in one backward pass: relevance arrives at its output and leaves at its inputs.

Calls are nested as they happen at run time, so that what a module's own forward does to relevance is what its call
gains or loses and the calls inside it do not.
"""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from canon_bridge.core import by_position


def total(values: Tensor) -> float:
    """Return the sum, in double precision."""
    return float(values.detach().sum(dtype=torch.float64))


@dataclass(eq=False)
class Sums:
    """Relevance at one end of a call.

    Attributes
    ----------
    net : float
        Its sum.
    gross : float
        The sum of its absolute values.
    """

    net: float = 0.0
    gross: float = 0.0

    def add(self, relevance: Tensor) -> None:
        """Add the relevance of one tensor."""
        self.net += total(relevance)
        self.gross += total(relevance.abs())


@dataclass(eq=False)
class Visit:
    """One call of a module in the forward pass.

    Attributes
    ----------
    path, module
        Which module.
    arguments : tuple
        The positional arguments that the caller gave.
    carries : tuple of bool
        Which of them carry the data of the input.
    inside : list of Visit
        The calls that it made.
    output, input : Sums
        The relevance that arrived at the output and left at the inputs.
    shares : dict of str to float
        What the account says became of the relevance that arrived.
    """

    path: str
    module: nn.Module
    arguments: tuple[Any, ...] = ()
    carries: tuple[bool, ...] = ()
    inside: list["Visit"] = field(default_factory=lambda: [])
    output: Sums = field(default_factory=Sums)
    input: Sums = field(default_factory=Sums)
    shares: dict[str, float] = field(default_factory=lambda: {})

    @property
    def own(self) -> float:
        """What the call itself took from the relevance, without the calls inside it."""
        return self.output.net - self.input.net - sum(visit.output.net - visit.input.net for visit in self.inside)


Account = Callable[[Visit, Tensor], dict[str, float]]


class _Tap(torch.autograd.Function):
    """The identity; it tells what relevance passes on the way back."""

    @staticmethod
    def forward(ctx: Any, tell: Callable[[Tensor], None], tensor: Tensor) -> Tensor:
        ctx.tell = tell
        return tensor.clone()  # not a view: the module may overwrite it

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        ctx.tell(grad_outputs[0].detach())
        return None, grad_outputs[0]


def tap(values: Any, tell: Callable[[Tensor], None]) -> Any:
    """Return the same values, a tensor or anything with tensors in it, that ``tell`` the relevance they get."""

    def through(value: Tensor) -> Tensor:
        return cast(Tensor, _Tap.apply(tell, value)) if value.requires_grad else value

    return pytree.tree_map_only(Tensor, through, values)


class _Recorder:
    def __init__(self, account: Account) -> None:
        self.account = account
        self.root = Visit("", nn.Module())
        self.stack = [self.root]
        self.is_over = False

    def enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if self.is_over:  # a rule evaluates the module anew
            return None
        given, _ = by_position(module, args, kwargs)
        visit = Visit(
            path,
            module,
            # Copies: a forward may overwrite them.
            tuple(value.detach().clone() if isinstance(value, Tensor) else value for value in given),
            tuple(isinstance(value, Tensor) and value.requires_grad for value in given),
        )
        self.stack[-1].inside.append(visit)
        self.stack.append(visit)
        return tap(args, visit.input.add), tap(kwargs, visit.input.add)

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self.is_over:
            return None
        visit = self.stack.pop()

        self.is_over = len(self.stack) == 1  # the model itself has returned

        def arrived(relevance: Tensor) -> None:
            visit.output.add(relevance)
            if isinstance(output, Tensor):
                visit.shares = self.account(visit, relevance)
            visit.arguments = ()

        return tap(output, arrived)


@contextmanager
def recorded(model: nn.Module, account: Account) -> Generator[Visit]:
    """Record every call of every module of the model, outside all hooks, for the length of the block.

    Parameters
    ----------
    model : nn.Module
        With all rules attached.
    account : callable
        From a call and the relevance at its output to what became of that relevance; asked during the backward pass.

    Yields
    ------
    Visit
        Its ``inside`` are the calls of the model; flows are there after the backward pass.
    """
    recorder = _Recorder(account)
    with ExitStack() as stack:
        for path, module in model.named_modules():
            enter = partial(recorder.enter, path)
            stack.callback(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(recorder.leave).remove)
        yield recorder.root
