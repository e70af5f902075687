"""torchvision's densenet121 and a photograph of the user's own, ready to be explained.

Pretrained weights come from torchvision (a download of 31 MB, kept by torch), or from a state-dict file. This
file knows nothing about attribution.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.models import DenseNet, DenseNet121_Weights, densenet121

WEIGHTS = DenseNet121_Weights.IMAGENET1K_V1

# torchvision's file has names such as ``denselayer1.norm.1.weight``, its modules are called ``norm1``.
_OLD_NAME = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


class InputError(Exception):
    """Something that the user gave cannot be used; the message says what to do."""


def load_model(weights: str) -> DenseNet:
    """Load densenet121 in eval mode.

    Parameters
    ----------
    weights : str
        ``"imagenet"`` for torchvision's pretrained weights, else the path of a state-dict file, with
        torchvision's old or new parameter names and any number of classes.

    Returns
    -------
    DenseNet
        In eval mode, on the CPU, float32.

    Raises
    ------
    InputError
        The download failed, or the file is missing or holds something else.
    """
    if weights == "imagenet":
        try:
            return densenet121(weights=WEIGHTS).eval()
        # URLError is an OSError; a download that was cut off fails its checksum with a RuntimeError.
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"the pretrained weights could not be downloaded ({error}). Connect to the network, or fetch "
                f"{WEIGHTS.url} elsewhere and give the file: --weights PATH"
            ) from error
    return _load_file(Path(weights))


def _load_file(path: Path) -> DenseNet:
    """Load densenet121 from a state-dict file."""
    if not path.is_file():
        raise InputError(f"--weights {path}: no such file; give 'imagenet' or the path of a state dict")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = {_OLD_NAME.sub(r"\1\2", name): value for name, value in content.items()}
        model = densenet121(num_classes=len(state["classifier.bias"]))
        model.load_state_dict(state)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]  # without the list of 700 parameters
        raise InputError(f"--weights {path} is not a state dict of densenet121: {reason}") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"--weights {path} holds more than weights; save it by torch.save(model.state_dict(), path)"
        ) from error
    return model.eval()


def load_photograph(path: Path) -> Tensor:
    """Load a photograph as the pretrained model wants it.

    Parameters
    ----------
    path : Path
        Any file that Pillow can open.

    Returns
    -------
    Tensor
        Shape ``(1, 3, 224, 224)``, float32, resized, cut to its middle and normalised.

    Raises
    ------
    InputError
        There is no such file, or it is not an image.
    """
    if not path.is_file():
        raise InputError(f"--image {path}: there is no such file")
    try:
        with Image.open(path) as image:
            # A camera's turn is written beside the pixels; without it the model sees the picture lying down.
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"--image {path} cannot be read as an image: {error}") from error
    return WEIGHTS.transforms()(upright)[None]


def show(inputs: Tensor) -> Tensor:
    """Undo the normalisation, ``(N, 3, H, W)`` to brightness in [0, 1] of shape ``(N, H, W, 3)``."""
    transform = WEIGHTS.transforms()
    mean, std = torch.tensor(transform.mean), torch.tensor(transform.std)
    return (inputs.movedim(1, -1) * std + mean).clamp(0, 1)


def class_name(index: int, classes: int) -> str:
    """Return ImageNet's name of a class, or its number where the model has other classes."""
    categories: list[str] = WEIGHTS.meta["categories"]
    return categories[index] if classes == len(categories) else f"class {index}"
