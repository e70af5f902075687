"""The guard: what attribution frameworks leave behind on slots that canonization did not write.

Floor 2: imports ``edits``. Some frameworks wrap a parameter into a new ``Parameter`` that shares its storage, others
move a parameter to a new storage and copy the old values in. Both are put back. What a user changed in earnest
(another storage with other values, an in-place step) is left as the user wants it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from canon_bridge.core.undo.edits import named_slots, slots
from canon_bridge.core.undo.steps import refill

_TABLES = ("_parameters", "_buffers")

Kind = tuple[torch.dtype, torch.device]


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
        self._storages = {_storage(held.alias) for held in self._held}

        self._insists = False

    def insist(self) -> None:
        """Have :meth:`restore` put back every storage: a framework was interrupted before it had put back values."""
        self._insists = True

    def holds(self, tensor: Tensor) -> bool:
        """Return whether the tensor is one of the model's own, or a view of one."""
        return tensor.numel() == 0 or _storage(tensor) in self._storages

    def restore(self) -> None:
        """Put back tensor objects and storages that were replaced by equal ones, and the order of the keys."""
        for held in self._held:
            table = slots(held.module, held.table)
            current = table.get(held.name)
            if isinstance(current, Tensor) and current is not held.tensor and _same_storage(current, held.alias):
                table[held.name] = held.tensor
            elif current is not held.tensor:
                continue
            if not _same_storage(held.tensor, held.alias) and (self._insists or _same_values(held.tensor, held.alias)):
                # The only way to give a Parameter its former storage back without a new Parameter object.
                held.tensor.data = held.alias
            if held.tensor.is_leaf and held.tensor.requires_grad != held.requires_grad:
                held.tensor.requires_grad_(held.requires_grad)
        for table, names in self._order:
            if list(table) != names and set(table) == set(names):
                refill(table, {name: table[name] for name in names})


@torch.no_grad()
def convert(module: nn.Module, kinds: dict[Kind, Kind]) -> None:
    """Give the tensors of a module, and of the modules in it, another data type and device, as ``module.to`` does.

    Parameters
    ----------
    module : nn.Module
        The module.
    kinds : dict
        From the data type and device of a tensor to those that it gets; others stay as they are.
    """
    for part, table, name, tensor in list(named_slots(module, _TABLES)):
        if isinstance(tensor, Tensor) and kind_of(tensor) in kinds:
            dtype, device = kinds[kind_of(tensor)]
            moved = tensor.detach().to(device, dtype)
            if table == "_parameters":
                tensor.data = moved  # the Parameter object stays
            else:
                slots(part, table)[name] = moved


def kind_of(tensor: Tensor) -> Kind:
    """Return the data type and the device of a tensor."""
    return tensor.dtype, tensor.device


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _same_kind(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.device == right.device


def _same_storage(left: Tensor, right: Tensor) -> bool:
    return _same_kind(left, right) and left.stride() == right.stride() and left.data_ptr() == right.data_ptr()


def _same_values(left: Tensor, right: Tensor) -> bool:
    return _same_kind(left, right) and torch.equal(left.detach(), right)
