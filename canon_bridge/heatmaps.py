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
        For another number of dimensions, for no image, for values that are not finite, and for a limit that is not
        above zero.
    """
    values = as_map(relevance)
    limit = colour_limit(values) if limit is None else limit
    if not limit > 0:
        raise ValueError(f"limit is {limit}; colours end above zero, by default at colour_limit(relevance).")
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

    Returns
    -------
    PIL.Image.Image
        RGB, of the picture's size.

    Raises
    ------
    ValueError
        If the picture has another size, and as :func:`heatmap`.
    """
    values = as_map(relevance)
    if picture.size != tuple(values.shape)[::-1]:
        raise ValueError(
            f"the picture has {picture.width} by {picture.height} pixels, and the map {values.shape[1]} by "
            f"{values.shape[0]} (images of a batch stand side by side): give the picture as the model sees it, and its "
            "map alone."
        )
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
    if not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).sum())
        raise ValueError(
            f"relevance holds {bad} values that are NaN or infinite, of {values.numel()}, which have no colour: look "
            "for the input or the rule that they come from (audit(...) follows a map through all modules)."
        )
    if not values.numel():
        raise ValueError(f"relevance has the shape {tuple(values.shape)} and no values: there is nothing to draw.")
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
