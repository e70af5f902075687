"""Whether somebody changed a merged parameter: the change is lost when the block ends, and must not be so in silence.

Floor 1: imports ``edits``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from canon_bridge.core.undo.edits import slots

_Mark = tuple[object, ...]


@dataclass(frozen=True, eq=False)
class _Watched:
    path: str
    module: nn.Module
    tensor: Tensor
    version: int
    mark: _Mark


class Watch:
    """Remember the parameters of the modules at the given paths; :meth:`changed` names those that differ later."""

    def __init__(self, model: nn.Module, paths: list[str]) -> None:
        self._watched = [
            _Watched(f"{path}.{name}", module, tensor, _version(tensor), _mark(tensor))
            for path, module in ((path, model.get_submodule(path)) for path in paths)
            for name, tensor in slots(module, "_parameters").items()
            if isinstance(tensor, Tensor)
        ]

    def changed(self) -> list[str]:
        """Return the names of parameters that have other values, another dtype or another device now."""
        names: list[str] = []
        for watched in self._watched:
            now = slots(watched.module, "_parameters").get(watched.path.rpartition(".")[2])
            if not isinstance(now, Tensor) or _kind(now) != watched.mark[:3]:
                names.append(watched.path)
                continue
            # Frameworks wrap parameters anew, or copy equal values in: that is no change.
            untouched = now is watched.tensor and _version(now) == watched.version >= 0
            if not untouched and _mark(now) != watched.mark:
                names.append(watched.path)
        return names


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # an inference tensor does not count its changes


def _kind(tensor: Tensor) -> _Mark:
    return tensor.dtype, tensor.device, tensor.shape


def _mark(tensor: Tensor) -> _Mark:
    # Accumulated in float64, but on Apple's GPU, which has none.
    dtype = torch.float32 if tensor.device.type == "mps" else torch.float64
    with torch.no_grad():
        total, length = tensor.sum(dtype=dtype), torch.linalg.vector_norm(tensor, dtype=dtype)
    return *_kind(tensor), float(total), float(length)
