"""The small networks that are explained: one of each family, trained on digits in clutter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn
from torchvision.models import DenseNet, MobileNetV2
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import make_layers

from benchmarks.digits.network import Training
from benchmarks.digits.scenes import Scene

CLASSES = 10
SCENE = Scene(canvas=48, digit=20, piece=8, pieces=8)


def _vgg() -> nn.Module:
    features = make_layers([16, "M", 24, 24, "M", 32, 32, "M", 48, 48], batch_norm=True)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, CLASSES))


def _resnet() -> nn.Module:
    widths = (16, 16, 24, 32, 48)
    convolution = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
    stem = (convolution, nn.BatchNorm2d(widths[0]), nn.ReLU(), nn.MaxPool2d(2))
    blocks = [_residual(before, after) for before, after in pairwise(widths)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES))


def _residual(before: int, after: int) -> BasicBlock:
    if before == after:
        return BasicBlock(before, after)
    shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), nn.BatchNorm2d(after))
    return BasicBlock(before, after, stride=2, downsample=shortcut)


def _densenet() -> nn.Module:
    return DenseNet(growth_rate=12, block_config=(3, 3, 3), num_init_features=24, num_classes=CLASSES)


def _mobilenet() -> nn.Module:
    settings = [[1, 64, 1, 1], [4, 96, 1, 2], [4, 128, 2, 2], [4, 192, 1, 2]]  # expansion, width, repeats, stride
    return MobileNetV2(CLASSES, width_mult=0.25, inverted_residual_setting=settings, dropout=0.0)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "VGG": _vgg,
    "ResNet": _resnet,
    "DenseNet": _densenet,
    "MobileNet": _mobilenet,
}


@dataclass(frozen=True, kw_only=True)
class Small(Training):
    """How a network of ``ARCHITECTURES`` is trained.

    Parameters
    ----------
    architecture : str
        A key of ``ARCHITECTURES``.
    """

    architecture: str
    epochs: int = 12
    scene: Scene = field(default_factory=lambda: SCENE)

    @property
    def name(self) -> str:
        """What is trained, in a word."""
        return f"small-{self.architecture.lower()}"

    def build(self) -> nn.Module:
        """Build the untrained model."""
        return ARCHITECTURES[self.architecture]()
