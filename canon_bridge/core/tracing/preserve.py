"""What forward itself writes on a model while it is traced is taken back.

Floor 0: imports torch alone.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Kept:
    """Whether anything had to be taken back; known when the block has ended."""

    was_changed: bool = False


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
    try:
        yield kept
    finally:
        for now, former in attributes:
            if now.keys() != former.keys() or any(now[key] is not former[key] for key in former):
                kept.was_changed = True
                now.clear()
                now.update(former)
        for value, former in contents:
            kept.was_changed |= _restore_content(value, former)
        for buffer, version, values in buffers:
            _restore(buffer, version, values)


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


def _restore(buffer: Tensor, version: int, values: Tensor) -> None:
    if _version(buffer) != version or (version == -1 and not torch.equal(buffer, values)):
        with torch.no_grad():
            buffer.copy_(values)
