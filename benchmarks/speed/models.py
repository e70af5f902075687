"""The models that are timed, by name: torchvision's, two deeper than torchvision has them, and plain residual nets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet

from tests.support import zoo
from tests.support.statistics import randomize_called

MODELS = ("densenet121", "resnet50", "vgg16_bn", "efficientnet_b0", "densenet169", "densenet201", "densenet264")
RESIDUAL = "residual"  # residual25 has 25 blocks
_SIZE = 64  # of the images that set the statistics


class Block(nn.Module):
    """Convolution, BatchNorm and ReLU beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the image, shape ``(N, C, H, W)``, after the block."""
        return x + self.relu(self.norm(self.convolution(x)))


def residual_net(blocks: int, width: int = 16, classes: int = 10) -> nn.Sequential:
    """Return a network of a number of equal blocks, to see what depth alone costs."""
    stem = (nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    return nn.Sequential(*stem, *(Block(width) for _ in range(blocks)), *head)


def build(name: str) -> nn.Module:
    """Return a model in evaluation mode, float32, with random BatchNorm statistics of both signs.

    Parameters
    ----------
    name : str
        Of torchvision, ``densenet264``, or ``residualN`` with N blocks.
    """
    torch.manual_seed(0)
    if name.startswith(RESIDUAL):
        model = residual_net(int(name.removeprefix(RESIDUAL))).eval()
    elif name == "densenet264":
        model = DenseNet(32, (6, 12, 64, 48), 64).eval()
    else:
        model = zoo.build(f"torchvision/{name}")
    randomize_called(model, (torch.randn(1, 3, _SIZE, _SIZE),))
    return model


def images(batch: int, size: int, device: str = "cpu") -> Tensor:
    """Return random images, shape ``(batch, 3, size, size)``."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)
