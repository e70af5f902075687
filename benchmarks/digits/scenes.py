"""Real handwritten digits at random places among clutter, so that it is known where a right map must fall.

Each of the 1,797 digits that scikit-learn ships is enlarged and put onto an empty canvas, among pieces cut
from other digits. The class depends on nothing but the whole digit, whose box is known; relevance outside of
the box is relevance in the wrong place. This file knows nothing about attribution, nor about models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class Scene:
    """Sizes of what is drawn, in pixels.

    Parameters
    ----------
    canvas : int
        Side of the square canvas.
    digit : int
        Side of the square box that the digit fills.
    piece : int
        Side of a square piece of clutter.
    pieces : int
        Number of pieces on each canvas.
    """

    canvas: int = 64
    digit: int = 24
    piece: int = 8
    pieces: int = 14

    @property
    def box_share(self) -> float:
        """Share of the canvas that the digit's box covers."""
        return (self.digit / self.canvas) ** 2


@dataclass(frozen=True)
class Glyphs:
    """Enlarged digits, not yet on a canvas.

    Parameters
    ----------
    images : Tensor
        Brightness in [0, 1], shape ``(N, digit, digit)``, float32.
    labels : Tensor
        Which digit it is, shape ``(N,)``, int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Canvases:
    """Finished images with all that is known about them.

    Parameters
    ----------
    images : Tensor
        What a model sees, shape ``(N, 3, canvas, canvas)``, in [0, 1] with a background of exactly 0 and
        three equal channels.
    labels : Tensor
        Which digit stands among the clutter, shape ``(N,)``, int64.
    corners : Tensor
        Row and column of the upper left corner of the digit's box, shape ``(N, 2)``, int64.
    scene : Scene
        The sizes that were drawn.
    """

    images: Tensor
    labels: Tensor
    corners: Tensor
    scene: Scene

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> Canvases:
        return Canvases(self.images[index], self.labels[index], self.corners[index], self.scene)

    def box_masks(self) -> Tensor:
        """Return where the digits' boxes are, shape ``(N, canvas, canvas)``, bool."""
        steps = torch.arange(self.scene.canvas)
        inside = (steps >= self.corners[..., None]) & (steps < self.corners[..., None] + self.scene.digit)
        return inside[:, 0, :, None] & inside[:, 1, None, :]


def split_glyphs(scene: Scene, held_out: float = 0.2, seed: int = 0) -> tuple[Glyphs, Glyphs]:
    """Load the digits, enlarge them, and split them so that no digit is in both parts.

    The split is made inside each class, so that both parts have the classes in the same proportions, and
    each part is shuffled.

    Parameters
    ----------
    scene : Scene
        Says how large a digit is.
    held_out : float
        Share of the digits that training never sees, neither as digits nor as clutter.
    seed : int
        Seed of the split.

    Returns
    -------
    tuple of Glyphs
        The digits to train on, and those held out.
    """
    pixels, classes = load_digits(return_X_y=True)
    small = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images = interpolate(small, size=(scene.digit, scene.digit), mode="bilinear")[:, 0]
    labels = torch.as_tensor(classes, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        of_class = order[labels[order] == label]
        is_held_out[of_class[: round(held_out * len(of_class))]] = True
    order = torch.randperm(len(labels), generator=generator)
    train, held = order[~is_held_out[order]], order[is_held_out[order]]
    return Glyphs(images[train], labels[train]), Glyphs(images[held], labels[held])


def draw_canvases(glyphs: Glyphs, scene: Scene, generator: torch.Generator) -> Canvases:
    """Draw one canvas for each digit: the digit at a random place, and pieces of other digits around its box.

    Parameters
    ----------
    glyphs : Glyphs
        At least two digits; the clutter on the canvas of one is cut from the others.
    scene : Scene
        Sizes; the canvas must have room for a piece outside of every possible box.
    generator : torch.Generator
        Source of every random choice.

    Returns
    -------
    Canvases
        In the order of ``glyphs``. No piece reaches into the digit's box; pieces may overlap one another, the
        brighter one wins.
    """
    count = len(glyphs)
    corners = torch.randint(scene.canvas - scene.digit + 1, (count, 2), generator=generator)
    places = _draw_places_outside(corners, scene, generator)
    pieces = _cut_pieces(glyphs, scene, generator)
    flat = torch.zeros(count, scene.canvas**2)
    flat.scatter_reduce_(1, _pixels(places, scene.piece, scene.canvas), pieces.flatten(1), reduce="amax")
    flat.scatter_(1, _pixels(corners[:, None], scene.digit, scene.canvas), glyphs.images.flatten(1))
    images = flat.unflatten(1, (1, scene.canvas, scene.canvas)).expand(-1, 3, -1, -1)
    return Canvases(images, glyphs.labels, corners, scene)


def _draw_places_outside(corners: Tensor, scene: Scene, generator: torch.Generator) -> Tensor:
    """Draw corners of pieces, shape ``(N, pieces, 2)``, uniformly among those whose piece misses the box."""
    room = scene.canvas - scene.piece + 1
    steps = torch.arange(room)
    hits = (steps > corners[..., None] - scene.piece) & (steps < corners[..., None] + scene.digit)
    is_free = ~(hits[:, 0, :, None] & hits[:, 1, None, :])
    place = torch.multinomial(is_free.flatten(1).float(), scene.pieces, replacement=True, generator=generator)
    return torch.stack((place // room, place % room), dim=-1)


def _cut_pieces(glyphs: Glyphs, scene: Scene, generator: torch.Generator) -> Tensor:
    """Cut pieces out of other digits than the canvas's own, shape ``(N, pieces, piece, piece)``."""
    count = len(glyphs)
    # A step of 1 to count - 1 around the ring of digits never comes back to the digit itself.
    steps = torch.randint(1, count, (count, scene.pieces), generator=generator)
    sources = (torch.arange(count)[:, None] + steps) % count
    offsets = torch.randint(scene.digit - scene.piece + 1, (count, scene.pieces, 2), generator=generator)
    reach = torch.arange(scene.piece)
    rows = (offsets[..., 0, None] + reach)[..., :, None]
    columns = (offsets[..., 1, None] + reach)[..., None, :]
    return glyphs.images[sources[..., None, None], rows, columns]


def _pixels(corners: Tensor, side: int, canvas: int) -> Tensor:
    """Return the flat pixel indices of squares, ``(N, K, 2)`` corners to ``(N, K * side * side)``."""
    reach = torch.arange(side)
    rows = (corners[..., 0, None] + reach)[..., :, None]
    columns = (corners[..., 1, None] + reach)[..., None, :]
    return (rows * canvas + columns).flatten(1)
