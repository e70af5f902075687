"""Models in which every kind of edit happens, and the input that each takes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.core.test_canonize_restore import everything
from tests.support.pieces import image, tiny_densenet
from tests.support.statistics import randomize

EPS = torch.finfo(torch.float64).eps


class Rows(nn.Module):
    """A BatchNorm1d behind a Linear layer (its rank is checked), a gate, and one with a tiny scale behind pools."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm1, self.gate = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.pool, self.norm2, self.relu = nn.AdaptiveAvgPool1d(3), nn.BatchNorm1d(4), nn.PReLU(4)
        self.transposed = nn.ConvTranspose1d(4, 3, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.linear(x)).relu()
        x = x * self.gate(x).sigmoid() + 1
        return self.transposed(self.relu(self.norm2(self.pool(x[:, :, None].expand(-1, -1, 6) * 0.5))))


def rows() -> nn.Module:
    return randomize(Rows().double())


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "everything": (everything, image),
    "densenet": (tiny_densenet, lambda: torch.randn(2, 3, 64, 64, dtype=torch.float64)),
    "rows": (rows, lambda: torch.randn(2, 6, dtype=torch.float64)),
}


def gradient(function: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Return the gradient of a weighted sum of the output; weighted, for that of a softmax alone is zero."""
    x = x.detach().clone().requires_grad_()
    output = function(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    return torch.autograd.grad((output * weights).sum(), x)[0]


def canonical(module: nn.Module) -> list[str]:
    """Return the kinds of forwards that were set on instances in the model, by the function that they run."""
    forwards = [vars(part).get("forward") for part in module.modules()]
    return sorted({getattr(getattr(forward, "func", forward), "__name__", "") for forward in forwards if forward})
