"""The tensors of a model through a block: what frameworks leave behind is put back, and what is lost is named.

Some frameworks wrap a parameter into a new ``Parameter`` that shares its storage, others move a parameter to a new
storage and copy the old values in. Both are put back. What a user changed in earnest (another storage with other
values, an in-place step) is left as the user wants it; where it was done to what stands in for a parameter, it is lost.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from canon_bridge.core.restore import paths, refill

Kind = tuple[torch.dtype, torch.device]
# By the path of a module, from the kinds that its tensors had to those that they have now.
Conversions = dict[str, dict[Kind, Kind]]

_TABLES: Final = ("_parameters", "_buffers")
_HOOKS: Final = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_BITS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SAMPLE: Final = 1024


class _Held(NamedTuple):
    table: dict[str, Any]
    name: str
    tensor: Tensor
    alias: Tensor  # shares the storage that the tensor had on entry, keeps it alive
    requires_grad: bool


class _Watched(NamedTuple):
    module: str
    table: dict[str, Any]
    name: str
    shape: torch.Size
    order: list[int]  # of its dimensions in memory

    @property
    def place(self) -> str:
        return f"{self.module}.{self.name}".removeprefix(".")

    @property
    def now(self) -> Tensor | None:
        tensor = self.table.get(self.name)
        return tensor if isinstance(tensor, Tensor) and tensor.shape == self.shape and not tensor.is_meta else None


class Guard:
    """Remember the tensor objects, storages and key order of a whole model; :meth:`restore` puts them back.

    So it does with what a framework leaves on modules: the plain attributes ``scratch``, and, where it is interrupted,
    hooks that ``leaves_hook`` says are its own.
    """

    def __init__(
        self,
        model: nn.Module,
        scratch: tuple[str, ...] = (),
        leaves_hook: Callable[[object], bool] | None = None,
    ) -> None:
        self._orders = [(t, list(t)) for module in paths(model) for name in _TABLES if (t := vars(module)[name])]
        self._held = [
            _Held(table, name, value, value.detach(), value.requires_grad)
            for table, names in self._orders
            for name in names
            if isinstance(value := table[name], Tensor)
        ]
        self._own = {id(held.tensor) for held in self._held}
        self._storages = {_storage(held.alias) for held in self._held}
        self._watched: dict[Kind, tuple[list[_Watched], Tensor]] = {}
        self._scratch = scratch
        attributes = [vars(module) for module in (paths(model) if scratch else ())]
        self._attributes = [(now, {name: now[name] for name in scratch if name in now}) for now in attributes]
        self._hooks: list[tuple[dict[int, Any], set[int], Callable[[object], bool]]] = []
        if leaves_hook is not None:
            tables = [vars(module)[name] for module in paths(model) for name in _HOOKS]
            self._hooks = [(table, set(table), leaves_hook) for table in tables]
        self._insists = False  # on every storage: a framework was interrupted before it had put back values

    def watch(self, model: nn.Module) -> None:
        """Remember the values of the tensors that are not the model's own: what is done to them is lost."""
        found: defaultdict[Kind, list[_Watched]] = defaultdict(list)
        for module, path in paths(model).items():
            for table in (vars(module)[name] for name in _TABLES):
                for name, value in table.items():
                    if isinstance(value, Tensor) and value.is_floating_point() and not self._holds(value):
                        found[_kind(value)].append(_Watched(path, table, name, value.shape, _order(value)))
        self._watched = {kind: (group, _marks(group)) for kind, group in found.items()}

    def changes(self) -> tuple[list[str], Conversions]:
        """Return which of the tensors that are watched hold other values now, or are gone, and what was converted.

        A conversion (``model.half()``, ``model.cuda()``) is no loss: what comes back is converted, too.
        """
        lost: list[str] = []
        converted: Conversions = {}
        for kind, (group, before) in self._watched.items():
            kinds = {None if (now := watched.now) is None else _kind(now) for watched in group}
            if kinds == {kind} and torch.equal(_marks(group), before):
                continue
            marks = before.split([_size(watched.shape) for watched in group])
            for watched, mark in zip(group, marks, strict=True):
                now = watched.now
                if now is None:
                    same = False
                elif _kind(now) == kind:
                    same = torch.equal(_marks([watched]), mark)
                else:
                    same = _is_converted(now, watched.order, mark, kind[0])
                    converted.setdefault(watched.module, {})[kind] = _kind(now)
                if not same:
                    lost.append(watched.place)
        return list(dict.fromkeys(lost)), converted

    def restore(self) -> None:
        """Put back tensor objects and storages that were replaced by equal ones, and the order of the keys."""
        self._drop_left()
        for table, name, tensor, alias, requires_grad in self._held:
            current = table.get(name)
            if isinstance(current, Tensor) and current is not tensor and _same_storage(current, alias):
                table[name] = tensor
            elif current is not tensor:
                continue
            if not _same_storage(tensor, alias) and (self._insists or _same_values(tensor, alias)):
                # The only way to give a Parameter its former storage back without a new Parameter object.
                tensor.data = alias
            if tensor.requires_grad != requires_grad and tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
        for table, names in self._orders:
            if list(table) != names and set(table) == set(names):
                refill(table, {name: table[name] for name in names})

    def _drop_left(self) -> None:
        for table, keys, is_left in self._hooks:
            for key in [key for key, hook in table.items() if key not in keys and is_left(hook)]:
                self._insists = True
                del table[key]
        for now, former in self._attributes:
            for name in self._scratch:
                now.pop(name, None)
            now.update(former)

    def _holds(self, tensor: Tensor) -> bool:
        """Return whether the tensor is one of the model's own, or a view of one."""
        return id(tensor) in self._own or tensor.numel() == 0 or _storage(tensor) in self._storages


@torch.no_grad()
def convert(module: nn.Module, kinds: dict[Kind, Kind]) -> None:
    """Give the tensors of a module, and of those in it, the data type and device that ``kinds`` has for theirs."""
    for table in (vars(part)[name] for part in paths(module) for name in _TABLES):
        for name, tensor in list(table.items()):
            if isinstance(tensor, Tensor) and _kind(tensor) in kinds:
                dtype, device = kinds[_kind(tensor)]
                moved = tensor.detach().to(device, dtype)
                if isinstance(tensor, nn.Parameter):
                    tensor.data = moved  # the Parameter object stays
                else:
                    table[name] = moved


def _kind(tensor: Tensor) -> Kind:
    return tensor.dtype, tensor.device


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _same_storage(left: Tensor, right: Tensor) -> bool:
    is_place = left.data_ptr() == right.data_ptr() and _kind(left) == _kind(right)
    return is_place and left.shape == right.shape and left.stride() == right.stride()


def _same_values(left: Tensor, right: Tensor) -> bool:
    return _kind(left) == _kind(right) and torch.equal(left.detach(), right)


def _order(tensor: Tensor) -> list[int]:
    return [] if tensor.is_contiguous() else sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


@torch.no_grad()
def _marks(group: list[_Watched]) -> Tensor:
    """Return the bits of tensors of one kind: all of a small one, else a sample of them and the sum of all.

    The sum, modulo its width, is exact in any order and on any device: no single number changes without it.
    """
    marks: list[Tensor] = []
    for watched in group:
        flat = _flat(watched.table[watched.name], watched.order)
        step = _step(flat.numel())
        marks.append(flat if step == 1 else flat[::step])
        if step > 1:
            bits = flat.view(_BITS[flat.element_size()])
            marks.append(bits.sum(dtype=bits.dtype).view(flat.dtype).view(1))
    plain = torch.cat(marks).as_subclass(Tensor)
    return plain.view(_BITS[plain.element_size()])


def _step(count: int) -> int:
    return 1 if count <= _SAMPLE else count // _SAMPLE + 1


def _size(shape: torch.Size) -> int:
    count = shape.numel()
    return count if count <= _SAMPLE else len(range(0, count, _step(count))) + 1


def _is_converted(now: Tensor, order: list[int], mark: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a tensor of another kind holds the values of a mark, but for rounding; the sample tells."""
    after = _flat(now, order)[:: _step(now.numel())]
    before, info = mark[: after.numel()].view(dtype).to(after), torch.finfo(after.dtype)
    return torch.allclose(after, before, rtol=2 * info.eps, atol=info.smallest_normal * info.eps, equal_nan=True)


def _flat(tensor: Tensor, order: list[int]) -> Tensor:
    """Return the numbers of a tensor in one dimension, as they lay in memory at first; usually without a copy."""
    if tensor.dim() == 1:
        return tensor
    plain = tensor.detach().as_subclass(Tensor)
    return (plain.permute(order) if order else plain).reshape(-1)
