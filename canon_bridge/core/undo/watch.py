"""Whether somebody changed what stands in for a parameter: the change is lost when the block ends, never in silence.

Floor 3: imports ``edits`` and ``guard``. A conversion (``model.half()``, ``model.cuda()``) is no loss: what comes back
is converted, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from canon_bridge.core.undo.edits import slots
from canon_bridge.core.undo.guard import Guard, Kind, kind_of

_TABLES: Final = ("_parameters", "_buffers")
_BITS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class _Watched:
    path: str
    table: str
    name: str
    module: nn.Module
    kind: Kind
    shape: torch.Size
    mark: tuple[Tensor, Tensor]
    sums: Tensor

    @property
    def place(self) -> str:
        return f"{self.path}.{self.name}" if self.path else self.name


@dataclass(frozen=True)
class Changes:
    """What happened to the tensors that are watched.

    Attributes
    ----------
    lost : tuple of str
        The names of those that hold other values, or are gone.
    converted : dict
        By the path of a module, from the data type and device that its tensors had to those that they have now.
    """

    lost: tuple[str, ...] = ()
    converted: Mapping[str, dict[Kind, Kind]] = field(default_factory=dict[str, dict[Kind, Kind]])


class Watch:
    """Remember the tensors that stand in for those of the model, in a canonical model.

    Parameters
    ----------
    model : nn.Module
        The canonical model.
    guard : Guard
        What the model held before. Its own tensors are not watched, for what is done to them is not lost.
    """

    def __init__(self, model: nn.Module, guard: Guard) -> None:
        self._watched = [
            _Watched(path, table, name, module, kind_of(tensor), tensor.shape, _mark(tensor), _sums(tensor))
            for path, module, table, name, tensor in _tensors(model)
            if not guard.holds(tensor)
        ]

    def changes(self) -> Changes:
        """Return what was changed since."""
        lost: list[str] = []
        converted: dict[str, dict[Kind, Kind]] = {}
        for watched in self._watched:
            now = slots(watched.module, watched.table).get(watched.name)
            if not isinstance(now, Tensor) or now.shape != watched.shape:
                lost.append(watched.place)
            elif kind_of(now) != watched.kind and not now.is_meta:
                converted.setdefault(watched.path, {})[watched.kind] = kind_of(now)
                if not _is_converted(now, watched.sums):
                    lost.append(watched.place)
            elif now.is_meta or not all(map(torch.equal, _mark(now), watched.mark)):
                lost.append(watched.place)
        return Changes(tuple(dict.fromkeys(lost)), converted)


def _tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, str, Tensor]]:
    for path, module in model.named_modules():
        for table in _TABLES:
            for name, value in slots(module, table).items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    yield path, module, table, name, value


def _rows(tensor: Tensor) -> Tensor:
    plain = tensor.as_subclass(Tensor)
    return plain.reshape(plain.shape[0], -1) if plain.dim() else plain.reshape(1, 1)


@torch.no_grad()
def _mark(tensor: Tensor) -> tuple[Tensor, Tensor]:
    # Sums of the bits as integers, over rows and over columns: exact, whatever the order, on every device.
    bits = _rows(tensor).view(_BITS[tensor.element_size()])
    return bits.sum(1), bits.sum(0)


@torch.no_grad()
def _sums(tensor: Tensor) -> Tensor:
    return _rows(tensor).sum(1, dtype=_wide(tensor))


@torch.no_grad()
def _is_converted(now: Tensor, sums: Tensor) -> bool:
    """Return whether the tensor holds the same values but for rounding, as far as sums over rows tell."""
    rows, info = _rows(now), torch.finfo(now.dtype)
    room = rows.abs().sum(1, dtype=_wide(now)) * (info.eps + 1e-12) + rows.shape[1] * info.smallest_normal * info.eps
    return bool(((_sums(now) - sums.to(now.device)).abs() <= room).all())


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # Apple's GPU has no float64
