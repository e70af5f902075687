"""Networks whose modules are called several times; each takes ``(N, 3, 6, 6)``."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tests.operations.containers import block
from tests.operations.stages import CLASSES


class Siamese(nn.Module):
    """An encoder on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(block(3, 4), block(4, 4))
        self.head = nn.Linear(288, CLASSES)

    def forward(self, x):
        return self.head(torch.cat([self.encoder(x), self.encoder(x.flip(2))], 1).flatten(1))


class SiameseDifference(Siamese):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(144, CLASSES)

    def forward(self, x):
        return self.head((self.encoder(x) - 0.5 * self.encoder(x[:, :, ::2, ::2].repeat(1, 1, 2, 2))).flatten(1))


class Pyramid(nn.Module):
    """One head on three levels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.further = block(3, 4), block(4, 4, 2), block(4, 4, 2)
        self.tower = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Conv2d(4, CLASSES, 3, padding=1)

    def forward(self, x):
        levels = [self.stem(x)]
        levels.append(self.down(levels[-1]))
        levels.append(self.further(levels[-1]))
        return torch.cat([self.head(self.tower(level)).flatten(2) for level in levels], -1).mean(-1)


class PyramidOfNorms(Pyramid):
    """A shared convolution with a BatchNorm for each level, as in EfficientDet and RetinaNet."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x):
        levels = [self.stem(x)]
        levels.append(self.down(levels[-1]))
        levels.append(self.further(levels[-1]))
        scores = [self.head(norm(self.tower(level)).relu()) for level, norm in zip(levels, self.norms, strict=True)]
        return sum(score.mean((2, 3)) for score in scores)


class Twice(nn.Module):
    """A module that is called twice in a row, between other modules."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.inner, self.head = block(3, 4), inner, nn.Linear(144, CLASSES)

    def forward(self, x):
        return self.head(self.inner(self.inner(self.stem(x))).flatten(1))


class TwoPlaces(nn.Module):
    """A module that is called on two values that meet."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.inner, self.head = block(), block(), inner, nn.Linear(144, CLASSES)

    def forward(self, x):
        return self.head((self.inner(self.a(x)) + self.inner(self.b(x))).relu().flatten(1))


class NormOfTwo(nn.Module):
    """A BatchNorm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Linear(144, CLASSES)

    def forward(self, x):
        h = F.relu(self.norm(self.one(x))) + F.relu(self.norm(self.other(x)))
        return self.head(h.flatten(1))


class ConvWithTwoNorms(nn.Module):
    """A convolution in front of two BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, 4, 3, padding=1), nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.head = nn.Linear(144, CLASSES)

    def forward(self, x):
        h = self.norms[0](self.conv(x)).relu() - self.norms[1](self.conv(x.flip(3))).relu()
        return self.head(h.flatten(1))


class TwoNames(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = block(3, 4)
        self.second = block(4, 4)
        self.third = self.second
        self.head = nn.Linear(144, CLASSES)

    def forward(self, x):
        return self.head(self.third(self.second(self.first(x))).flatten(1))


class TiedWeights(nn.Module):
    """Two layers with one Parameter, one of them in front of a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 4)
        self.one, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.other.weight = self.one.weight
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(144, CLASSES)

    def forward(self, x):
        h = self.stem(x)
        return self.head((self.norm(self.one(h)).relu() + self.other(h)).relu().flatten(1))


class TiedAutoencoder(nn.Module):
    """The transposed weight of one layer in another, by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc, self.head = block(3, 4), nn.Linear(144, 6), nn.Linear(144, CLASSES)

    def forward(self, x):
        code = self.fc(self.stem(x).flatten(1)).relu()
        return self.head(F.linear(code, self.fc.weight.t()).relu())


class RecurrentConvolution(nn.Module):
    """A cell in a loop, with the input at every step."""

    def __init__(self, steps: int = 3) -> None:
        super().__init__()
        self.steps, self.stem, self.cell, self.norm = (
            steps,
            block(3, 4),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
        )
        self.head = nn.Linear(144, CLASSES)

    def forward(self, x):
        u = self.stem(x)
        h = u
        for _ in range(self.steps):
            h = F.relu(self.norm(self.cell(h)) + u)
        return self.head(h.flatten(1))


class NormForEachStep(RecurrentConvolution):
    """A cell in a loop with a BatchNorm for each step, as in recurrent residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(self.steps))

    def forward(self, x):
        u = self.stem(x)
        h = u
        for norm in self.norms:
            h = F.relu(norm(self.cell(h) + u))
        return self.head(h.flatten(1))


class LinearCell(nn.Module):
    """A recurrent network over the columns of a feature map, with ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.into, self.cell, self.head = (
            block(3, 4),
            nn.Linear(24, 8),
            nn.Linear(8, 8),
            nn.Linear(8, CLASSES),
        )

    def forward(self, x):
        columns = self.stem(x).permute(3, 0, 1, 2).flatten(2)
        h = torch.zeros(x.shape[0], 8, dtype=x.dtype)
        for t in range(6):
            h = torch.relu(self.into(columns[t]) + self.cell(h))
        return self.head(h)


class ContainerWithSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, h):
        return F.relu(self.norm(self.conv(h)) + h)


class TwoHeads(nn.Module):
    """Two heads that share their first Linear, on two poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = block(3, 4), nn.Linear(4, 6)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, CLASSES)

    def forward(self, x):
        h = self.stem(x)
        average, largest = h.mean((2, 3)), h.amax((2, 3))
        return self.head(self.norm(self.fc(average)).relu() + self.norm(self.fc(largest)).relu())


REUSE: dict[str, Callable[[], nn.Module]] = {
    "siamese": Siamese,
    "siamese difference": SiameseDifference,
    "pyramid": Pyramid,
    "pyramid with norms of their own": PyramidOfNorms,
    "conv twice": lambda: Twice(nn.Conv2d(4, 4, 3, padding=1)),
    "conv in two places": lambda: TwoPlaces(nn.Conv2d(4, 4, 3, padding=1)),
    "block twice": lambda: Twice(block(4, 4)),
    "block in two places": lambda: TwoPlaces(block(4, 4)),
    "norm twice": lambda: Twice(nn.BatchNorm2d(4)),
    "norm in two places": lambda: TwoPlaces(nn.BatchNorm2d(4)),
    "container with a sum, twice": lambda: Twice(ContainerWithSum()),
    "container with a sum, in two places": lambda: TwoPlaces(ContainerWithSum()),
    "average pool twice": lambda: Twice(nn.AvgPool2d(3, 1, 1)),
    "max pool twice": lambda: Twice(nn.MaxPool2d(3, 1, 1)),
    "upsampling in two places": lambda: TwoPlaces(
        nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear"))
    ),
    "norm of two convolutions": NormOfTwo,
    "convolution with two norms": ConvWithTwoNorms,
    "two names": TwoNames,
    "tied weights": TiedWeights,
    "tied autoencoder": TiedAutoencoder,
    "recurrent convolution": RecurrentConvolution,
    "recurrent convolution, norm for each step": NormForEachStep,
    "linear cell": LinearCell,
    "two heads": TwoHeads,
}
