"""Everything about a model that must be the same after a block: objects by identity, tensors also by their bits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class _Mark:
    """What one place held: objects to compare by identity (and kept alive, so that no id is used twice), values."""

    objects: tuple[object, ...] = ()
    values: tuple[object, ...] = ()

    def same(self, other: _Mark) -> bool:
        alike = len(self.objects) == len(other.objects) and self.values == other.values
        return alike and all(a is b for a, b in zip(self.objects, other.objects, strict=True))


class Snapshot:
    """The state of a model: modules, classes, keys and their order, hooks, parameters, storages, values.

    Parameters
    ----------
    model : nn.Module
        The model; tensors are not copied but hashed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._marks = _marks(model)

    def differences(self) -> list[str]:
        """Return the places where the model is not what it was, empty if it is itself, to the bit."""
        now = _marks(self._model)
        places = [*self._marks, *(place for place in now if place not in self._marks)]
        return [
            place
            for place in places
            if place not in now or place not in self._marks or not self._marks[place].same(now[place])
        ]

    def check(self) -> None:
        """Fail unless the model is itself again, to the bit."""
        differences = self.differences()
        assert not differences, ", ".join(differences)


def _marks(model: nn.Module) -> dict[str, _Mark]:
    marks = {"state_dict": _Mark(values=tuple(model.state_dict()))}
    digests: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        marks[path] = _Mark((module, type(module)), tuple(vars(module)))
        for name, value in vars(module).items():
            place = f"{path}.{name}"
            marks[place] = _mark(value)
            if isinstance(value, dict):
                for key, item in value.items():
                    if isinstance(item, Tensor):
                        marks[f"{place}.{key}"] = _tensor_mark(item, digests)
            elif isinstance(value, Tensor):
                marks[f"{place} (values)"] = _tensor_mark(value, digests)
    return marks


def _mark(value: Any) -> _Mark:
    if isinstance(value, dict):
        return _Mark((value, *value.values()), tuple(map(str, value)))
    if isinstance(value, set | frozenset):
        return _Mark((value,), tuple(sorted(map(repr, value))))
    if isinstance(value, list | tuple):
        return _Mark((value, *value))
    if isinstance(value, bool | int | float | complex | str | type(None)):
        return _Mark((type(value),), (repr(value),))
    return _Mark((value,))


def _tensor_mark(tensor: Tensor, digests: dict[int, str]) -> _Mark:
    if id(tensor) not in digests:
        digests[id(tensor)] = _digest(tensor)
    flags = (tensor.dtype, tensor.shape, tensor.stride(), tensor.device, tensor.requires_grad, tensor.is_leaf)
    pointers = (tensor.data_ptr(), tensor.untyped_storage().data_ptr())
    return _Mark(
        (tensor, type(tensor), tensor.grad if tensor.is_leaf else None), (*flags, *pointers, digests[id(tensor)])
    )


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.blake2b(memoryview(flat.numpy()), digest_size=16).hexdigest()
