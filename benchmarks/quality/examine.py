"""All that is measured of one network, way by way: on its own maps, and on those of disturbed images and weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.digits.network import Trained, Training, accuracy, draw_held_out
from benchmarks.digits.scenes import Canvases
from benchmarks.quality.measures import (
    entropy,
    gini,
    rank_accuracy,
    rank_correlation,
    relative_change,
    share_in_box,
)
from benchmarks.quality.ways import Way

BLOCK = 4  # side of what is erased at once, in pixels


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes
    ----------
    images : int
        Held-out digits that are explained, the first that the network reads right.
    disturbed : int
        How many of them are explained again, under noise and with random weights.
    noises : int
        Noisy versions of each.
    noise : float
        They differ by at most this much in a pixel; the digits are in [0, 1].
    stages : int
        Randomisations: of the top layers first, of all layers last.
    version : int
        Raised whenever the code changes what it measures.
    """

    images: int = 32
    disturbed: int = 10
    noises: int = 3
    noise: float = 0.02
    stages: int = 4
    version: int = 1


@dataclass(frozen=True)
class Metric:
    """What is measured.

    Attributes
    ----------
    title : str
        As the page has it.
    is_better_high : bool
        Whether more is better.
    meaning : str
        How it is computed, in a sentence.
    is_ratio : bool
        Whether networks differ by factors, so that the logarithm has the mean and the interval.
    """

    title: str
    is_better_high: bool
    meaning: str
    is_ratio: bool = False


METRICS = {
    "share": Metric(
        "localisation: share in the box", True, "Share of the positive relevance that lies in the box of the digit."
    ),
    "rank": Metric(
        "localisation: rank accuracy",
        True,
        "Of the K most relevant pixels, the share in the digit, whose ink covers K pixels; ties count as by chance.",
    ),
    "flipping": Metric(
        "faithfulness: pixel flipping",
        False,
        f"Mean probability of the class while blocks of {BLOCK} x {BLOCK} pixels become background, the most relevant "
        "first, until as many pixels are gone as the box has.",
    ),
    "entropy": Metric(
        "complexity: entropy", False, "Entropy of |relevance| over pixels; 1 is a map that is the same everywhere."
    ),
    "gini": Metric("complexity: Gini index", True, "Gini index of |relevance| over pixels; 1 is a single pixel."),
    "sensitivity": Metric(
        "robustness: max sensitivity",
        False,
        "Largest change of the map, in units of its norm, under small uniform noise on the image; means are geometric.",
        is_ratio=True,
    ),
    "randomisation": Metric(
        "randomisation: likeness to random weights",
        False,
        "Absolute value of Spearman's correlation, over pixels with ink, of the map with those that come when the "
        "weights of the top quarter, half, three quarters and all of the layers are put in random order; the mean.",
    ),
}


@dataclass(frozen=True)
class Subject:
    """A trained network and what it is shown.

    Attributes
    ----------
    model, double : nn.Module
        In float32, which answers, and in float64, which is explained.
    accuracy : float
        Share of all held-out digits that it reads right.
    canvases : Canvases
        The images that are explained.
    noisy : Tensor
        Noisy versions of the first few, ``(noises * disturbed, C, H, W)``, float64.
    randomised : tuple of nn.Module
        The model in float64 with ever more random weights.
    extent : Extent
        How much is measured.
    """

    model: nn.Module
    double: nn.Module
    accuracy: float
    canvases: Canvases
    noisy: Tensor
    randomised: tuple[nn.Module, ...]
    extent: Extent

    @classmethod
    def of(cls, training: Training, trained: Trained, extent: Extent) -> Subject:
        """Prepare a trained network."""
        held_out = draw_held_out(training)
        with torch.no_grad():
            is_right = trained.model(held_out.images).argmax(1) == held_out.labels
        chosen = held_out[is_right.nonzero()[: extent.images, 0]]
        double = copy.deepcopy(trained.model).double()
        generator = torch.Generator().manual_seed(training.seed)
        few = chosen.images[: extent.disturbed].double().repeat(extent.noises, 1, 1, 1)
        noise = (2 * torch.rand(few.shape, generator=generator, dtype=few.dtype) - 1) * extent.noise
        shares = [(stage + 1) / extent.stages for stage in range(extent.stages)]
        others = tuple(randomised(double, share, generator) for share in shares)
        reads_right = accuracy(trained.model, held_out)
        return cls(trained.model, double, reads_right, chosen, few + noise, others, extent)


def examine(subject: Subject, ways: Sequence[Way], seed: int) -> Iterator[tuple[Way, dict[str, float]]]:
    """Yield what each way comes to, the mean over the images; a map that is there already is not measured again."""
    seen: list[tuple[Tensor, dict[str, float]]] = []
    for way in ways:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            maps, change = _maps_and_change(subject, way)
            known = next((figures for other, figures in seen if torch.equal(maps, other)), None)
            figures = known or _figures(subject, way, maps, change)
        seen.append((maps, figures))
        yield way, figures


def _maps_and_change(subject: Subject, way: Way) -> tuple[Tensor, Tensor]:
    """Return the maps, and how much noise changes the first few at most."""
    count = subject.extent.disturbed
    classes = subject.canvases.labels
    with way.open(subject.double) as explain:
        maps = explain(subject.canvases.images.double(), classes)
        moved = explain(subject.noisy, classes[:count].repeat(subject.extent.noises))
    changes = relative_change(maps[:count].repeat(subject.extent.noises, 1, 1), moved)
    return maps, changes.view(subject.extent.noises, -1).amax(0)


def _figures(subject: Subject, way: Way, maps: Tensor, change: Tensor) -> dict[str, float]:
    boxes = subject.canvases.box_masks()
    ink = subject.canvases.images[:, 0] > 0
    found = {
        "share": share_in_box(maps, boxes),
        "rank": rank_accuracy(maps, boxes & ink),
        "flipping": flip(subject.model, subject.canvases, maps),
        "entropy": entropy(maps),
        "gini": gini(maps),
        "sensitivity": change,
        "randomisation": _alike_when_random(subject, way, maps, ink),
    }
    return {name: float(f"{values.mean():.6g}") for name, values in found.items()}


def _alike_when_random(subject: Subject, way: Way, maps: Tensor, ink: Tensor) -> Tensor:
    few = slice(subject.extent.disturbed)
    found: list[Tensor] = []
    for model in subject.randomised:
        with way.open(model) as explain:
            others = explain(subject.canvases.images[few].double(), subject.canvases.labels[few])
        found.append(rank_correlation(maps[few], others, ink[few]).abs())  # where a score turns negative, maps do
    return torch.stack(found).mean(0)


@torch.no_grad()
def flip(model: nn.Module, canvases: Canvases, maps: Tensor) -> Tensor:
    """Return the mean probability of each image's class while its most relevant blocks become background.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    canvases : Canvases
        Images with a background of 0, and their classes.
    maps : Tensor
        Shape ``(N, H, W)``; both sides are multiples of ``BLOCK``.

    Returns
    -------
    Tensor
        Shape ``(N,)``, in [0, 1].
    """
    blocks = maps.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).sum((2, 4))
    places = blocks.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(blocks)
    places = places.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)[:, None]
    probabilities: list[Tensor] = []
    for erased in range(1, canvases.scene.digit**2 // BLOCK**2 + 1):
        scores = model(canvases.images * (places >= erased)).softmax(1)
        probabilities.append(scores.gather(1, canvases.labels[:, None])[:, 0])
    return torch.stack(probabilities).mean(0)


def randomised(model: nn.Module, share: float, generator: torch.Generator) -> nn.Module:
    """Return a copy of which the top share of layers has its numbers in random order, a BatchNorm's by channels."""
    model = copy.deepcopy(model)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d | _BatchNorm)]
    kept = round(len(layers) * (1 - share))
    for layer in layers[kept:]:
        tensors = [tensor for tensor in (*layer.parameters(), *layer.buffers()) if tensor.dim()]
        channels = torch.randperm(len(tensors[0]), generator=generator)
        for tensor in tensors:
            order = channels if isinstance(layer, _BatchNorm) else torch.randperm(tensor.numel(), generator=generator)
            tensor.data = tensor.data.flatten()[order].view_as(tensor)
    return model
