"""The guard: what attribution frameworks leave behind on slots that canonization did not write.

Floor 1. Some frameworks wrap a parameter into a new ``Parameter`` that shares its storage, others move a parameter
to a new storage and copy the old values in. Both are put back. What a user changed in earnest (another storage with
other values, an in-place step) is left as the user wants it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from canon_bridge.core.undo.edits import slots

_TABLES = ("_parameters", "_buffers")


@dataclass(frozen=True, eq=False)
class _Held:
    module: nn.Module
    table: str
    name: str
    tensor: Tensor
    alias: Tensor  # shares the storage that the tensor had on entry, keeps it alive
    requires_grad: bool


class Guard:
    """Remember the tensor objects, storages and key order of a whole model; :meth:`restore` puts them back."""

    def __init__(self, model: nn.Module) -> None:
        self._held = [
            _Held(module, table, name, value, value.detach(), value.requires_grad)
            for module, table, name, value in named_slots(model, _TABLES)
            if isinstance(value, Tensor)
        ]
        self._order = [(slots(module, t), list(slots(module, t))) for module in model.modules() for t in _TABLES]

    def restore(self) -> None:
        """Put back tensor objects and storages that were replaced by equal ones, and the order of the keys."""
        for held in self._held:
            table = slots(held.module, held.table)
            current = table.get(held.name)
            if isinstance(current, Tensor) and current is not held.tensor and _same_storage(current, held.alias):
                table[held.name] = held.tensor
            elif current is not held.tensor:
                continue
            if not _same_storage(held.tensor, held.alias) and _same_values(held.tensor, held.alias):
                # The only way to give a Parameter its former storage back without a new Parameter object.
                held.tensor.data = held.alias
            if held.tensor.is_leaf and held.tensor.requires_grad != held.requires_grad:
                held.tensor.requires_grad_(held.requires_grad)
        for table, names in self._order:
            if list(table) != names and set(table) == set(names):
                items = {name: table[name] for name in names}
                table.clear()
                table.update(items)


def _same_kind(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.device == right.device


def _same_storage(left: Tensor, right: Tensor) -> bool:
    return _same_kind(left, right) and left.stride() == right.stride() and left.data_ptr() == right.data_ptr()


def _same_values(left: Tensor, right: Tensor) -> bool:
    return _same_kind(left, right) and torch.equal(left.detach(), right)


def named_slots(model: nn.Module, tables: tuple[str, ...]) -> Iterator[tuple[nn.Module, str, str, Any]]:
    """Yield ``(module, table, name, value)`` for every slot of the given tables in the model."""
    for module in model.modules():
        for table in tables:
            for name, value in slots(module, table).items():
                yield module, table, name, value
