"""What forward itself writes on a model while it is traced is taken back.

Floor 0: imports torch alone.
"""

import copy
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
        (value, copy.copy(value))
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
            if isinstance(value, list):
                kept.was_changed |= len(value) != len(former) or any(
                    a is not b for a, b in zip(value, former, strict=True)
                )
                value[:] = former
            elif list(value) != list(former) or (
                isinstance(value, dict) and any(value[key] is not former[key] for key in former)
            ):
                kept.was_changed = True
                value.clear()
                value.update(former)
        for buffer, version, values in buffers:
            _restore(buffer, version, values)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _restore(buffer: Tensor, version: int, values: Tensor) -> bool:
    if _version(buffer) == version and (version != -1 or torch.equal(buffer, values)):
        return False
    with torch.no_grad():
        buffer.copy_(values)
    return True
