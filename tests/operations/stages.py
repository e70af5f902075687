"""Where the one operation of a network stands: behind a ReLU, behind a BatchNorm, or in front of one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Operation = Callable[[Tensor], Tensor]

CLASSES = 5
SIZE = 6
LAYERS: dict[int, Callable[[int], nn.Module]] = {
    2: lambda width: nn.Linear(width, CLASSES),
    3: lambda width: nn.Conv1d(width, CLASSES, 3, padding=1),
    4: lambda width: nn.Conv2d(width, CLASSES, 3, padding=1),
    5: lambda width: nn.Conv3d(width, CLASSES, 3, padding=1),
}
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def constant(*shape: int, seed: int = 7) -> Tensor:
    """Return random numbers that do not depend on what was drawn before."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class With(nn.Module):
    """An operation that has tensors and modules: a function of the module itself and of its input."""

    def __init__(self, function: Callable[["With", Tensor], Tensor], **members: Tensor | nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            if isinstance(member, nn.Parameter | nn.Module):
                setattr(self, name, member)
            else:
                self.register_buffer(name, member)

    def forward(self, h: Tensor) -> Tensor:
        return self.function(self, h)


class _Staged(nn.Module):
    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 4, 3, padding=1)
        self.operation = operation
        with torch.no_grad():
            if isinstance(operation, nn.Module):
                operation.double()
            shape = operation(torch.randn(2, 4, SIZE, SIZE, dtype=torch.float64)).shape
        self.rank, self.width, self.points = len(shape), shape[1], shape[2:].numel()

    def _layer(self) -> nn.Module:
        return LAYERS[self.rank](self.width)

    def _head(self, width: int) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(width * self.points, CLASSES))


class BehindReLU(_Staged):
    """``conv, bn, relu, OPERATION, layer, bn, relu, head``."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        self.norm0, self.relu0 = nn.BatchNorm2d(4), nn.ReLU()
        self.layer, self.norm1 = self._layer(), NORMS[self.rank](CLASSES)
        self.head = self._head(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.operation(self.relu0(self.norm0(self.conv0(x))))
        return self.head(self.norm1(self.layer(h)))


class BehindNorm(_Staged):
    """``conv, relu, bn, OPERATION, layer, relu, head``: the BatchNorm has nothing to the left."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        self.relu0, self.norm0 = nn.ReLU(), nn.BatchNorm2d(4)
        self.layer = self._layer()
        self.head = self._head(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.operation(self.norm0(self.relu0(self.conv0(x))))))


class InFrontOfNorm(_Staged):
    """``conv, OPERATION, bn, relu, head``: to the left of the BatchNorm is the operation alone."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        self.norm0 = NORMS[self.rank](self.width)
        self.head = self._head(self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm0(self.operation(self.conv0(x))))


POSITIONS: dict[str, Callable[[Operation], nn.Module]] = {
    "relu": BehindReLU,
    "norm": BehindNorm,
    "conv": InFrontOfNorm,
}
