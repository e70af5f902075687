"""What forward itself writes on a model while it is traced is taken back.

Floor 1: imports ``steps``.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from canon_bridge.core.undo.steps import refill, run_all


@dataclass
class Kept:
    """Whether anything had to be taken back; known when the block has ended."""

    was_changed: bool = False

    def note(self, restore: Callable[[], bool]) -> None:
        """Take back one thing, and note whether that was needed."""
        self.was_changed |= restore()


@contextmanager
def preserved(model: nn.Module) -> Generator[Kept]:
    """Restore attributes, lists, dictionaries and buffers of all modules of the model when the block ends."""
    kept = Kept()
    modules = list(model.modules())
    attributes = [(vars(module), dict(vars(module))) for module in modules]
    contents: list[tuple[Any, Any]] = [
        (value, value.copy() if value else None)  # most are empty
        for _, former in attributes
        for value in former.values()
        if isinstance(value, list | dict | set)
    ]
    buffers = [(buffer, _version(buffer), buffer.detach().clone()) for buffer in model.buffers()]
    steps: list[Callable[[], bool]] = [
        *(partial(_restore_values, *entry) for entry in buffers),
        *(partial(_restore_content, *entry) for entry in contents),
        *(partial(_restore_attributes, *entry) for entry in attributes),
    ]
    try:
        try:
            yield kept
        finally:
            run_all(steps, kept.note)
    finally:
        run_all(steps, kept.note)  # what an interrupt between two lines has left to do


def _restore_attributes(now: dict[str, Any], former: dict[str, Any]) -> bool:
    """Give a module its former attributes; return whether it had others."""
    if now.keys() == former.keys() and all(now[key] is former[key] for key in former):
        return False
    refill(now, former)
    return True


def _restore_content(value: Any, former: Any) -> bool:
    """Give a list, dictionary or set its former content (None: empty); return whether it had another one."""
    if not value and not former:
        return False
    now, before = _items(value), _items(former or ())
    if len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True)):
        return False
    value.clear()
    if former:
        (value.extend if isinstance(value, list) else value.update)(former)
    return True


def _items(content: Any) -> list[Any]:
    return [*content, *content.values()] if isinstance(content, dict) else list(content)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _restore_values(buffer: Tensor, version: int, values: Tensor) -> bool:
    """Give a buffer its former values; what forward counts there is no reason against a new forward."""
    if _version(buffer) != version or (version == -1 and not torch.equal(buffer, values)):
        with torch.no_grad():
            buffer.copy_(values)
    return False
