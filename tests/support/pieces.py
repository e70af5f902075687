"""Small layers and models that the tests of the whole core are made of, and the check that every block must pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet, resnet18
from torchvision.models.vgg import cfgs, make_layers

from canon_bridge import canonize, canonized_copy
from canon_bridge.core.norms import NORMS
from tests.support.errors import relative_error
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

Function = Callable[..., Any]
BOTH = ("left", "right")


def conv(channels: int = 4, out: int = 4, kernel: int = 3, padding: int = 1, **keywords: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, padding=padding, **keywords)


def norm(channels: int = 4) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


def image(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 4, 6, 6)), dtype=torch.float64)


class Written(nn.Module):
    """``function(self, *inputs)`` as forward, with the children given by name."""

    def __init__(self, function: Function, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.function = function
        self.double().eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Preactivation(nn.Module):
    """BatchNorm, ReLU, convolution, twice; both branches start behind the first ReLU, which works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = norm(), conv(), norm(), conv()
        self.shortcut, self.relu = conv(4, 4, 1, 0), nn.ReLU(True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(x))
        shortcut = self.shortcut(y)
        y = self.conv2(self.relu(self.norm2(self.conv1(y))))
        y += shortcut
        return y


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "densenet": lambda: DenseNet(8, (2, 2, 2, 2), 16, num_classes=5),
    "resnet18": lambda: resnet18(num_classes=5),
    # The convolutions of vgg11_bn; its classifier, without BatchNorm, is most of its size.
    "vgg11_bn": lambda: nn.Sequential(make_layers(cfgs["A"], batch_norm=True), nn.Flatten(), nn.Linear(512, 5)),
}


def tiny_densenet(**keywords: Any) -> nn.Module:
    return randomize(DenseNet(8, (2, 2, 2, 2), 16, num_classes=5, **keywords).double())


def norms(model: nn.Module) -> list[str]:
    """Return the paths of all normalization layers that the package knows, whatever forward they have by now."""
    return [path for path, module in model.named_modules() if NORMS.find(module) is not None]


def alive(model: nn.Module) -> list[str]:
    """Return the paths of normalization layers that do not hold the values of the exact identity."""
    paths: list[str] = []
    for path in norms(model):
        layer = model.get_submodule(path)
        values = ((layer.running_mean, 0), (layer.running_var, 1), (layer.weight, 1), (layer.bias, 0))
        if layer.eps != 0 or not all(tensor is None or bool((tensor == value).all()) for tensor, value in values):
            paths.append(path)
    return paths


def check(model: nn.Module, x: Tensor, *others: Tensor, **options: Any) -> None:
    """Compare the function in the block and after it, in both directions, and look for what should be gone.

    The ``others`` are inputs of other shapes that the model takes as well.
    """
    inputs = (x, *others)
    before, expected = Snapshot(model), [model(value.clone()).detach().clone() for value in inputs]

    def compare(canonical: nn.Module) -> None:
        assert alive(canonical) == []
        for value, right in zip(inputs, expected, strict=True):
            assert relative_error(canonical(value.clone()), right) < 1e-12

    for prefer in BOTH:
        with canonize(model, prefer=prefer, **options) as canonical:
            assert canonical is model
            compare(model)
        before.check()
        assert all(torch.equal(model(v.clone()), right) for v, right in zip(inputs, expected, strict=True))
        twin = canonized_copy(model, prefer=prefer, **options)
        before.check()
        assert norms(twin) == []
        compare(twin)
