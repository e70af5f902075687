"""Maps as pictures, a pixel for a pixel: red speaks for the class, blue against it, white is zero."""

from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from PIL import Image
from torch import Tensor

COLOURS = colormaps["seismic"].resampled(511)  # an odd number: zero has a colour of its own, white
PERCENTILE = 99.5
"""The colours end here, so that a few pixels do not leave the rest pale."""


def heatmap(relevance: Any, limit: float | None = None) -> Image.Image:
    """Return a map in colours: red for the class, blue against it, white at zero.

    The colours are those of matplotlib's ``seismic``, which zennit and Captum draw in, too.

    Parameters
    ----------
    relevance : Tensor or array
        Shape ``(H, W)``, ``(C, H, W)`` or ``(N, C, H, W)``: channels are summed, images of a batch stand side by side.
    limit : float, optional
        Where the colours end, on both sides of zero; by default :func:`colour_limit`.

    Returns
    -------
    PIL.Image.Image
        RGB, of ``H`` by ``W`` pixels for each image.

    Raises
    ------
    ValueError
        For another number of dimensions.
    """
    values = as_map(relevance)
    limit = colour_limit(values) if limit is None else limit
    mapped = ScalarMappable(Normalize(-limit, limit), COLOURS).to_rgba(values.numpy(), bytes=True)
    return Image.fromarray(np.ascontiguousarray(mapped[..., :3]))


def overlay(picture: Image.Image, relevance: Any, limit: float | None = None) -> Image.Image:
    """Return a map over a picture of the same size in pale grey: the more relevance, the more colour.

    Parameters
    ----------
    picture : PIL.Image.Image
        What the model saw.
    relevance : Tensor or array
        Shape ``(H, W)``, ``(C, H, W)`` or ``(1, C, H, W)``.
    limit : float, optional
        See :func:`heatmap`.
    """
    values = as_map(relevance)
    limit = colour_limit(values) if limit is None else limit
    strength = (values.abs() / limit).clamp(0, 1).sqrt()
    mask = Image.fromarray((255 * strength).round().byte().numpy())
    pale = picture.convert("L").point([128 + value // 2 for value in range(256)]).convert("RGB")
    return Image.composite(heatmap(values, limit), pale, mask)


def colour_limit(relevance: Any) -> float:
    """Return where the colours of a map end by default: the 99.5th percentile of its absolute values."""
    size = as_map(relevance).abs().flatten()
    return float(np.percentile(size.numpy(), PERCENTILE)) or float(size.max()) or 1.0


def as_map(relevance: Any) -> Tensor:
    """Return relevance as one map ``(H, W)`` in float64: channels summed, images of a batch side by side."""
    values = torch.as_tensor(relevance).detach().double().cpu()
    if values.dim() == 2:
        return values
    if values.dim() == 3:
        return values.sum(0)
    if values.dim() == 4:
        return torch.cat([*values.sum(1)], 1)
    raise ValueError(
        f"relevance has the shape {tuple(values.shape)}; a heat map wants (H, W), (C, H, W) or (N, C, H, W): select a "
        "slice of a volume, and plot a time series as a line."
    )
