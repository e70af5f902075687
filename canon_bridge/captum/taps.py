"""Relevance at one module's input or output, read off the backward pass."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from canon_bridge.auditing.flows import tap
from canon_bridge.core import Plan


class Tap:
    """Read the relevance at the input or output of one module.

    Parameters
    ----------
    model, module : nn.Module
        A model, and any module of it that runs once in a forward pass.
    at_input : bool
        Whether to read at its input instead of its output.

    Raises
    ------
    TypeError
        If the layer is no module.
    ValueError
        If it is none of the model.

    Attributes
    ----------
    values : list of Tensor
        What the module got or returned, once it has run.
    """

    def __init__(self, model: nn.Module, module: nn.Module, at_input: bool) -> None:
        self.module, self.at_input = module, at_input
        if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"layer is {module!r} ({type(module).__name__}); it must be a module of the model, or a list of them: "
                "model.get_submodule(path) has the one at a path."
            )
        self._paths = [path for path, found in model.named_modules(remove_duplicate=False) if found is module]
        if not self._paths:
            raise ValueError(
                f"the layer ({type(module).__name__}) is no module of the model; model.get_submodule(path) has the one "
                "at a path."
            )

    def begin(self, plan: Plan) -> None:
        """Forget what was read before, and note how often the module is called, by the plan of the canonical model."""
        self.values: list[Tensor] = []
        self._kept: dict[int, Tensor] = {}
        self._is_tuple = False
        self._calls = 0
        # In the canonical model a stand-in gets each further call.
        self._further = sum(plan.calls(path) - 1 for path in self._paths)

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
        started = [_started(leaf) for leaf in leaves]
        self.values += [leaf for leaf in started if isinstance(leaf, Tensor) and leaf.requires_grad]
        listened = [tap(leaf, partial(self._kept.__setitem__, index)) for index, leaf in enumerate(started)]
        return pytree.tree_unflatten(listened, structure)

    def relevance(self) -> Tensor | tuple[Tensor, ...]:
        """Return what was read; raise ``ValueError`` where the module did not run once or got no relevance."""
        calls = self._calls + (self._further if self._calls else 0)
        if calls != 1 or not self._kept:
            raise ValueError(
                f"the layer {self._paths[0] or '(the model)'} ({type(self.module).__name__}) ran {calls} times in the "
                f"forward pass and relevance reached it at {len(self._kept)} tensors; it must run once, on the way "
                "from the input to the target."
            )
        values = tuple(self._kept[index] for index in sorted(self._kept))
        return values if self._is_tuple else values[0]


def _started(value: Any) -> Any:
    """Return a value from which gradients are recorded, at the latest: what comes from integers alone has none."""
    starts = isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad
    return value.detach().requires_grad_() if starts else value
