"""Small models: one for every kind of merge, and for every kind of operation that becomes a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torchvision.ops.misc import FrozenBatchNorm2d

from tests.support.statistics import randomize_called


class Forward(nn.Module):
    """``function(self, x)`` as forward, with the children given by name."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """Return the function of the input."""
        return self.function(self, x)


class Tensors(nn.Module):
    """Layers by functions, with parameters and buffers of the module, one of them computed in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(4, 4, 1, 1)), nn.Parameter(torch.randn(4))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("variance", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return a convolution, a BatchNorm and an activation of the input."""
        x = F.conv2d(x, self.weight * 2, padding=1) * torch.full((1,), 0.5, dtype=x.dtype)
        return F.silu(F.batch_norm(x, self.mean, self.variance, self.gain, eps=0.1), inplace=True)


def conv(**keywords: Any) -> nn.Conv2d:
    """Return a convolution of four channels that pads with zeros."""
    return nn.Conv2d(4, 4, 3, padding=1, **keywords)


def norm() -> nn.BatchNorm2d:
    """Return a BatchNorm of four channels."""
    return nn.BatchNorm2d(4)


def behind_norm(*layers: nn.Module) -> nn.Module:
    """Return a model in which a BatchNorm has to pass through the layers to a convolution."""
    return nn.Sequential(nn.Identity(), norm(), *layers, conv())


def _pruned() -> nn.Module:
    layer = prune.l1_unstructured(conv(), "weight", 0.5)
    layer.note = "stands behind the weight, which the pruning has put among the attributes"
    return nn.Sequential(layer, norm())


def _tied() -> nn.Module:
    model = nn.Sequential(conv(), norm(), conv(bias=False), nn.Tanh(), conv(bias=False))
    model[4].weight = model[2].weight
    return model


def _noting(m: Any, x: Tensor) -> Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    m.seen.append(m.calls)
    m.count += 1
    return m.norm(m.conv(x))


def _writing_on_itself() -> nn.Module:
    model = Forward(_noting, conv=conv(), norm=norm())
    model.seen = []
    model.register_buffer("count", torch.zeros(()))
    return model


IMAGE, ROW = (2, 4, 6, 6), (3, 4)
Pattern = tuple[Callable[[], nn.Module], tuple[int, ...]]
COPIES = "copies"  # of a layer, which one order makes

PATTERNS: dict[str, Pattern] = {
    "left": (lambda: nn.Sequential(conv(bias=False), norm()), IMAGE),
    "left, transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 3, 2, groups=2), norm()), IMAGE),
    "right, with a border": (behind_norm, IMAGE),
    "thresholded ReLU": (lambda: behind_norm(nn.ReLU(inplace=True)), IMAGE),
    "other activations": (lambda: behind_norm(nn.SiLU(), nn.LeakyReLU(0.2, inplace=True)), IMAGE),
    "max pooling": (lambda: behind_norm(nn.MaxPool2d(2), nn.AvgPool2d(1), nn.Dropout()), IMAGE),
    "concatenation, consumers": (
        lambda: Forward(
            lambda m, x: m.last(torch.cat([y := m.norm(x), m.first(y)], 1)),
            norm=norm(),
            first=conv(),
            last=nn.Conv2d(8, 4, 1),
        ),
        IMAGE,
    ),
    COPIES: (
        lambda: Forward(
            lambda m, x: m.first(y := m.conv(x)).relu() + m.second(torch.cat([y, x], 1)).relu()[:, :4],
            conv=conv(),
            first=norm(),
            second=nn.BatchNorm2d(8),
        ),
        IMAGE,
    ),
    "BatchNorm into BatchNorm": (lambda: nn.Sequential(norm(), norm(), nn.Softmax(1), norm(), norm(), conv()), IMAGE),
    "leftover": (lambda: nn.Sequential(nn.Tanh(), norm(), nn.Softmax(1)), IMAGE),
    "frozen, buffers": (lambda: nn.Sequential(conv(), FrozenBatchNorm2d(4), nn.ReLU(), FrozenBatchNorm2d(4)), IMAGE),
    "rank checked": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4)), ROW),
    "weight_norm": (lambda: nn.Sequential(parametrizations.weight_norm(conv()), norm()), IMAGE),
    "pruning, hooks": (_pruned, IMAGE),
    "tied parameters": (_tied, IMAGE),
    "shared ReLU, sum": (
        lambda: Forward(
            lambda m, x: m.relu(m.relu(m.norm(m.conv(x))) + x), conv=conv(), norm=norm(), relu=nn.ReLU(inplace=True)
        ),
        IMAGE,
    ),
    "gate, quotient, constant": (
        lambda: Forward(
            lambda m, x: (x - 0.5) * torch.sigmoid(m.norm(m.conv(x)).mean((2, 3), keepdim=True)) / 3,
            conv=conv(),
            norm=norm(),
        ),
        IMAGE,
    ),
    "functional layers": (Tensors, IMAGE),
    "functional pools": (
        lambda: Forward(
            lambda m, x: F.interpolate(F.adaptive_avg_pool2d(F.relu_(m.norm(x)), 2), scale_factor=2).flatten(1),
            norm=norm(),
        ),
        IMAGE,
    ),
    "checkpoint": (
        lambda: Forward(
            lambda m, x: checkpoint(lambda y: m.norm(m.conv(y)), x, use_reentrant=False), conv=conv(), norm=norm()
        ),
        IMAGE,
    ),
    "forward writes on itself": (_writing_on_itself, IMAGE),
}

# Their own forward leaves other values on the model whenever it runs, so they are for faults outside the block alone.
WRITE_ON_THEMSELVES = frozenset({"forward writes on itself"})


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Return the model of a pattern in float64 with random statistics, and an input."""
    torch.manual_seed(0)
    make, shape = PATTERNS[name]
    model, x = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    randomize_called(model, (x,))
    for buffer in model.buffers():
        if not buffer.is_floating_point():
            buffer.zero_()
    return model, x
