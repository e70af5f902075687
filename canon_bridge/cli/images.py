"""Images: from a file to the model's input and back to what the model saw."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from canon_bridge.cli.errors import CommandError, in_one_line

Transform = Callable[[Image.Image], Any]


def open_image(path: Path) -> Image.Image:
    """Open an image as RGB, turned upright.

    Raises
    ------
    CommandError
        There is no such file, or it is not an image.
    """
    if path.is_dir():
        raise CommandError(f"{path} is a folder; give the images in it, for example {path}/*.jpg")
    if not path.is_file():
        raise CommandError(f"{path}: there is no such image; give the path of an image file")
    try:
        with Image.open(path) as image:
            # A camera writes beside the pixels how it was held.
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise CommandError(f"{path} cannot be read as an image: {in_one_line(error)}") from error


def to_square(size: int) -> Transform:
    """Return the transform for models that state none: resized to a square, values from 0 to 1, ``(3, size, size)``."""

    def transform(image: Image.Image) -> Tensor:
        pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels.copy()).movedim(-1, 0).float() / 255

    return transform


def to_input(transform: Transform, image: Image.Image) -> Tensor:
    """Return the input ``(1, C, H, W)`` that a transform makes of an image.

    Raises
    ------
    CommandError
        If the transform fails, or returns anything but a floating-point tensor ``(C, H, W)``.
    """
    try:
        made = transform(image)
    except Exception as error:  # the user's own code may raise anything
        raise CommandError(f"the transform failed: {type(error).__name__}: {in_one_line(error)}") from error
    if not (isinstance(made, Tensor) and made.dim() == 3 and made.is_floating_point()):
        what = f"a tensor {tuple(made.shape)} of {made.dtype}" if isinstance(made, Tensor) else type(made).__name__
        raise CommandError(
            f"the transform returned {what}; it has to return one image as a floating-point tensor (C, H, W)"
        )
    return made[None]


def bounds(transform: Transform, image: Image.Image) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest value of each channel of the input, ``(1, C, 1, 1)``: of black and of white."""
    made = [to_input(transform, Image.new("RGB", image.size, colour)) for colour in ("black", "white")]
    low, high = torch.minimum(*made), torch.maximum(*made)
    return low.amin((2, 3), keepdim=True), high.amax((2, 3), keepdim=True)


def as_seen(inputs: Tensor, low: Tensor, high: Tensor) -> Image.Image:
    """Return the picture that the model sees, ``(1, C, H, W)`` brought back from between the bounds, as RGB."""
    values = ((inputs - low) / (high - low).clamp(min=torch.finfo(inputs.dtype).tiny)).clamp(0, 1)[0]
    colours = values if len(values) == 3 else values.mean(0, keepdim=True).expand(3, -1, -1)
    return Image.fromarray((255 * colours).round().byte().movedim(0, -1).contiguous().cpu().numpy())
