"""Small networks that read digits in clutter, a torchvision DenseNet first: trained in a minute or two, then kept.

Weights lie in a cache folder under a name made from the whole recipe, so that weights of another recipe are
never taken for these. This file knows nothing about attribution.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models import DenseNet
from tqdm import tqdm

from benchmarks.digits.scenes import Canvases, Glyphs, Scene, draw_canvases, split_glyphs
from benchmarks.files import write_whole

# What torch.load raises depends on where a file is cut off or damaged.
_UNUSABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Training(ABC):
    """All that trained weights depend on, but for the settings of the architecture, which a subclass adds.

    Parameters
    ----------
    epochs : int
        How often each training digit is shown, each time on a fresh canvas; 0 leaves the model as it starts.
    seed : int
        Seed of the split, of the initial weights, of the order and of every canvas.
    batch_size, peak_rate, weight_decay : int, float, float
        Of AdamW under a one-cycle schedule.
    scene : Scene
        What is drawn.
    version : int
        Raised whenever the code changes what it trains.
    """

    epochs: int = 20
    seed: int = 0
    batch_size: int = 32
    peak_rate: float = 5e-3
    weight_decay: float = 0.05
    scene: Scene = field(default_factory=Scene)
    version: int = 1

    @property
    @abstractmethod
    def name(self) -> str:
        """What is trained, in a word."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the untrained model."""

    def describe(self) -> str:
        """Return the recipe as one line of JSON; equal recipes give equal lines."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Recipe(Training):
    """The small DenseNet.

    Parameters
    ----------
    growth_rate, block_config, num_init_features : int, tuple of int, int
        Of :class:`torchvision.models.DenseNet`.
    """

    growth_rate: int = 12
    block_config: tuple[int, int, int, int] = (4, 4, 4, 4)
    num_init_features: int = 24

    @property
    def name(self) -> str:
        """What is trained, in a word."""
        return "densenet"

    def build(self) -> DenseNet:
        """Build the untrained model."""
        return DenseNet(self.growth_rate, self.block_config, self.num_init_features, num_classes=10)


@dataclass(frozen=True)
class Trained:
    """A trained model in eval mode, and how long its training took in seconds."""

    model: nn.Module
    seconds: float
    was_cached: bool


def default_cache() -> Path:
    """Return where this platform keeps what programs can make again, with ``canon_bridge`` appended."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        base = Path(folder)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path.home() / ".cache"
    return base / "canon_bridge"


def build_model(recipe: Training) -> nn.Module:
    """Build the untrained model of a recipe; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return recipe.build()


def draw_held_out(recipe: Training) -> Canvases:
    """Draw each held-out digit once, among clutter cut from held-out digits only."""
    _, held_out = split_glyphs(recipe.scene, seed=recipe.seed)
    return draw_canvases(held_out, recipe.scene, torch.Generator().manual_seed(recipe.seed + 1))


def train(recipe: Training) -> Trained:
    """Train a model by a recipe, with a progress bar on stderr.

    Parameters
    ----------
    recipe : Training
        Takes a minute or two on one CPU core as it stands.

    Returns
    -------
    Trained
        The model in eval mode, contiguous, on the CPU.
    """
    glyphs, _ = split_glyphs(recipe.scene, seed=recipe.seed)
    model = build_model(recipe)
    start = time.perf_counter()
    if recipe.epochs > 0:
        with one_thread():
            _fit(model, glyphs, recipe)
    model.to(memory_format=torch.contiguous_format).eval()
    return Trained(model, seconds=time.perf_counter() - start, was_cached=False)


@contextmanager
def one_thread() -> Generator[None]:
    """Let torch use one thread inside.

    For layers as small as these a second thread gains a third, and loses a factor of five where another
    process wants the core. With one thread, moreover, the sums do not depend on the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit(model: nn.Module, glyphs: Glyphs, recipe: Training) -> None:
    """Run AdamW under a one-cycle schedule over fresh canvases of the same digits in every epoch."""
    steps = len(glyphs) // recipe.batch_size
    generator = torch.Generator().manual_seed(recipe.seed + 2)
    # Channels last makes the convolutions about a fifth faster on CPU.
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=recipe.weight_decay, fused=True)
    total = recipe.epochs * steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, total_steps=total)
    loss = torch.tensor(torch.nan)
    with tqdm(total=total, desc="training", unit="batch") as bar:
        for epoch in range(recipe.epochs):
            canvases = draw_canvases(glyphs, recipe.scene, generator)
            # The last, incomplete batch is left out: its digits come in another epoch's order.
            order = torch.randperm(len(glyphs), generator=generator)[: steps * recipe.batch_size]
            for batch in order.view(steps, recipe.batch_size):
                images = canvases.images[batch].contiguous(memory_format=torch.channels_last)
                loss = cross_entropy(model(images), canvases.labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            bar.set_postfix(epoch=f"{epoch + 1}/{recipe.epochs}", loss=f"{loss.item():.3f}")


@torch.no_grad()
def accuracy(model: nn.Module, canvases: Canvases) -> float:
    """Return the share of canvases whose digit gets the highest logit."""
    hits = [
        (model(images).argmax(1) == labels).sum().item()
        for images, labels in zip(canvases.images.split(64), canvases.labels.split(64), strict=True)
    ]
    return sum(hits) / len(canvases)


def trained_model(recipe: Training, cache: Path, retrain: bool = False) -> Trained:
    """Return the model of a recipe from the cache, or train it and keep it there.

    Parameters
    ----------
    recipe : Training
        What to train.
    cache : Path
        Folder of the weights; made when it is needed.
    retrain : bool
        Train even where the cache has the weights, and replace them.

    Returns
    -------
    Trained
        The model in eval mode.
    """
    path = cache / f"digits-{recipe.name}-{hashlib.sha256(recipe.describe().encode()).hexdigest()[:12]}.pt"
    if not retrain and path.is_file():
        try:
            return _load(recipe, path)
        except _UNUSABLE as error:
            logger.warning("%s cannot be used (%s): training again.", path, type(error).__name__)
    trained = train(recipe)
    try:
        _save(recipe, trained, path)
    except OSError as error:
        logger.warning("The weights could not be kept (%s): the next run trains again.", error)
    return trained


def _load(recipe: Training, path: Path) -> Trained:
    """Load what ``_save`` wrote."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    if content["recipe"] != recipe.describe():
        raise ValueError(f"{path} was trained by another recipe: {content['recipe']}")
    model = build_model(recipe)
    model.load_state_dict(content["state_dict"])
    return Trained(model.eval(), seconds=float(content["seconds"]), was_cached=True)


def _save(recipe: Training, trained: Trained, path: Path) -> None:
    """Keep a trained model together with its recipe."""
    content = {
        "recipe": recipe.describe(),
        "state_dict": trained.model.state_dict(),
        "seconds": trained.seconds,
    }
    file = io.BytesIO()
    torch.save(content, file)
    write_whole(path, file.getvalue())
