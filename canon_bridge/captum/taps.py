"""Relevance at one module's input or output, read off the backward pass."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from canon_bridge.auditing.flows import tap


class Tap:
    """Read the relevance at the input or output of one module.

    Parameters
    ----------
    module : nn.Module
        Any module that runs once in a forward pass.
    at_input : bool
        Whether to read at its input instead of its output.
    """

    def __init__(self, module: nn.Module, at_input: bool) -> None:
        self.module, self.at_input = module, at_input
        self._kept: dict[int, Tensor] = {}
        self._is_tuple = False
        self._calls = 0

    @contextmanager
    def attached(self) -> Generator[None]:
        """Listen at the module, outside all hooks that it has, for the length of the block."""
        if self.at_input:
            handle = self.module.register_forward_pre_hook(lambda _, args: self._listen(args), prepend=True)
        else:
            handle = self.module.register_forward_hook(lambda _, args, output: self._listen(output))
        try:
            yield
        finally:
            handle.remove()

    def _listen(self, values: Any) -> Any:
        self._calls += 1
        leaves, structure = pytree.tree_flatten(values)  # a module may take or return lists of tensors
        self._is_tuple = len(leaves) > 1
        listened = [tap(leaf, partial(self._kept.__setitem__, index)) for index, leaf in enumerate(leaves)]
        return pytree.tree_unflatten(listened, structure)

    def relevance(self) -> Tensor | tuple[Tensor, ...]:
        """Return what was read; raise ``ValueError`` where the module did not run once or got no relevance."""
        if self._calls != 1 or not self._kept:
            raise ValueError(
                f"the layer ({type(self.module).__name__}) ran {self._calls} times in the forward pass and relevance "
                f"reached it at {len(self._kept)} tensors; it must run once, on the way from the input to the target."
            )
        values = tuple(self._kept[index] for index in sorted(self._kept))
        return values if self._is_tuple else values[0]
