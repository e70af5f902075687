"""The three networks of the decisive checks, their convolutions at full depth, with few classes, in float64."""

from functools import cache

import torch
import torchvision
from torch import Tensor, nn

from tests.support.statistics import randomize

NAMES = ("densenet121", "resnet18", "vgg11_bn")
TARGET = 3


@cache
def network(name: str) -> nn.Module:
    """Return a network with random BatchNorm statistics; every test gives it back as it was."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10)
    if name.startswith("vgg"):  # the dense layers are nine tenths of the work, and all alike
        wide, narrow = model.classifier[0].in_features, 256
        layers = (nn.Linear(wide, narrow), nn.ReLU(), nn.Dropout(), nn.Linear(narrow, 10))
        model.classifier = nn.Sequential(*layers).eval()
    return randomize(model.double())


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


class PreActivation(nn.Module):
    """Every pattern once, and a convolution that two building blocks write to from both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 6, 3, padding=1)
        self.norm0 = nn.BatchNorm2d(6)
        self.relu0 = nn.ReLU(inplace=True)
        self.norm1 = nn.BatchNorm2d(6)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.pool = nn.MaxPool2d(2)
        self.norm3 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(4 * 8 * 8, 5)

    def forward(self, x):
        x = self.relu0(self.norm0(self.conv0(x)))
        x = self.norm2(self.conv1(self.relu1(self.norm1(x)))).relu()
        return self.head(self.flatten(self.conv2(self.norm3(self.pool(x)))))


class Products(nn.Module):
    """A gate, a difference and a quotient; every module of it is one that Captum's own LRP knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 5)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.conv(x) - 0.5
        gate = self.relu(self.gate(x.mean((2, 3))))
        return self.head((x * gate[:, :, None, None] / 3).mean((2, 3)))
