"""What forward itself writes on a model while it is traced is taken back."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from canon_bridge.core.undo.steps import refill, run_all


class Kept:
    """What the modules of a model were at the beginning of a block.

    Parameters
    ----------
    modules : list of nn.Module
        The modules.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self._attributes = [(module, dict(vars(module))) for module in modules]
        self._contents: list[tuple[Any, Any]] = [
            (value, value.copy() if value else None)  # most are empty
            for _, former in self._attributes
            for value in former.values()
            if isinstance(value, list | dict | set)
        ]
        buffers = {id(b): b for module in modules for b in vars(module)["_buffers"].values() if b is not None}
        self._buffers = [(buffer, _version(buffer), buffer.detach().clone()) for buffer in buffers.values()]

    def attributes(self) -> dict[nn.Module, set[str]]:
        """Return the names of the attributes that are other objects now, or new, or gone, by module."""
        found: dict[nn.Module, set[str]] = {}
        for module, former in self._attributes:
            now = vars(module)
            names = {name for name in {*now, *former} if now.get(name, Kept) is not former.get(name, Kept)}
            if names:
                found[module] = names
        return found

    def contents_changed(self) -> bool:
        """Return whether a list, dictionary or set has another content."""
        return any(_differs(value, former) for value, former in self._contents)

    def steps(self) -> list[Callable[[], None]]:
        """Return what puts everything back; each can be repeated."""
        return [
            *(partial(_restore_values, *entry) for entry in self._buffers),
            *(partial(_restore_content, *entry) for entry in self._contents),
            *(partial(_restore_attributes, vars(module), former) for module, former in self._attributes),
        ]


@contextmanager
def preserved(model: nn.Module, *more: nn.Module) -> Generator[Kept]:
    """Restore attributes, lists, dictionaries and buffers of all modules of the model when the block ends."""
    kept = Kept(list(dict.fromkeys((*model.modules(), *more))))
    steps = kept.steps()
    try:
        try:
            yield kept
        finally:
            run_all(steps, lambda step: step())
    finally:
        run_all(steps, lambda step: step())  # what an interrupt between two lines has left to do


def _restore_attributes(now: dict[str, Any], former: dict[str, Any]) -> None:
    if now.keys() != former.keys() or any(now[key] is not former[key] for key in former):
        refill(now, former)


def _differs(value: Any, former: Any) -> bool:
    """Return whether a list, dictionary or set has another content than the former one (None: empty)."""
    if not value and not former:
        return False
    now, before = _items(value), _items(former or ())
    return len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True))


def _restore_content(value: Any, former: Any) -> None:
    if _differs(value, former):
        value.clear()
        if former:
            (value.extend if isinstance(value, list) else value.update)(former)


def _items(content: Any) -> list[Any]:
    return [*content, *content.values()] if isinstance(content, dict) else list(content)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _restore_values(buffer: Tensor, version: int, values: Tensor) -> None:
    """Give a buffer its former values; what forward counts there is no reason against a new forward."""
    if _version(buffer) != version or (version == -1 and not torch.equal(buffer, values)):
        with torch.no_grad():
            buffer.copy_(values)
