"""The three networks of the decisive checks, at their real depth, with few classes, in float64."""

from functools import cache

import torch
import torchvision
from torch import Tensor, nn

from tests.conftest import randomize

NAMES = ("densenet121", "resnet18", "vgg11_bn")
TARGET = 3


@cache
def network(name: str) -> nn.Module:
    """Return a network with random BatchNorm statistics; every test gives it back as it was."""
    torch.manual_seed(0)
    return randomize(getattr(torchvision.models, name)(num_classes=10).double())


@cache
def small_densenet() -> nn.Module:
    torch.manual_seed(0)
    return randomize(torchvision.models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=5).double())


def images(batch: int = 2, size: int = 64) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradient_times_input(model: nn.Module, x: Tensor) -> Tensor:
    """Return the reference of LRP-0 on a piecewise-linear network, from the original model by autograd alone."""
    x = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, TARGET].sum(), x)
    return (x * gradient).detach()
