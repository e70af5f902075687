"""Maps as pictures, a pixel for a pixel: red speaks for the class, blue against it, white is zero."""

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from PIL import Image
from torch import Tensor

COLOURS = colormaps["seismic"].resampled(511)  # an odd number: zero has a colour of its own, white
PERCENTILE = 99.5
"""The colours end here, so that a few pixels do not leave the rest pale."""


def colour_limit(relevance: Tensor) -> float:
    """Return where the colours of a map end, on both sides of zero."""
    size = relevance.abs().flatten().double()
    return float(np.percentile(size.cpu().numpy(), PERCENTILE)) or float(size.max()) or 1.0


def heat_map(relevance: Tensor, limit: float) -> Image.Image:
    """Return a map ``(H, W)`` in colours that end at ``-limit`` and ``limit``, as RGB."""
    return Image.fromarray(_colours(relevance, limit))


def overlay(picture: Image.Image, relevance: Tensor, limit: float) -> Image.Image:
    """Return a map over the picture in pale grey: the more relevance, the more colour."""
    strength = (relevance.abs() / limit).clamp(0, 1).sqrt()
    mask = Image.fromarray((255 * strength).round().byte().cpu().numpy())
    pale = picture.convert("L").point([128 + value // 2 for value in range(256)]).convert("RGB")
    return Image.composite(heat_map(relevance, limit), pale, mask)


def _colours(relevance: Tensor, limit: float) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    mapped = ScalarMappable(Normalize(-limit, limit), COLOURS).to_rgba(relevance.double().cpu().numpy(), bytes=True)
    return np.ascontiguousarray(mapped[..., :3])
