"""Weights: what ``--weights`` names, and state dicts from files."""

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from canon_bridge.cli.errors import CommandError, in_one_line, needed

SUFFIXES = {".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".tar"}
# Checkpoints of training scripts have the state dict below one of these.
WRAPPERS = ("state_dict", "model_state_dict", "model")
# torchvision's files of DenseNets say ``denselayer1.norm.1``, the modules are called ``norm1``.
_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d+\.)")


def is_file(weights: str) -> bool:
    """Return whether ``--weights`` means a file, else it is a name."""
    path = Path(weights)
    return path.is_file() or path.suffix in SUFFIXES or "/" in weights or "\\" in weights


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict, also one in a checkpoint or of a model in ``DataParallel``.

    Raises
    ------
    CommandError
        There is no such file, or it holds something else.
    """
    if not path.is_file():
        raise CommandError(f"--weights {path}: there is no such file; give the path of a state dict")
    try:
        if path.suffix == ".safetensors":
            content = needed("safetensors.torch", f"{path.name} is read by it").load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CommandError(
            f"--weights {path} holds more than weights, or is no file of torch; save the weights alone: "
            "torch.save(model.state_dict(), path)"
        ) from error
    except CommandError:
        raise
    except Exception as error:  # zip files, truncated files, headers: each library has its own
        raise CommandError(f"--weights {path} cannot be read: {type(error).__name__}: {in_one_line(error)}") from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise CommandError(
            f"--weights {path} holds a {type(content).__name__} without tensors; it needs a state dict: "
            "torch.save(model.state_dict(), path)"
        )
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {_OLD_NAME.sub(r"\1\2", name): value for name, value in state.items()}


def build_with_state(build: Callable[[int | None], nn.Module], path: Path) -> nn.Module:
    """Build a model and load a state dict, with as many classes as the state dict has.

    Parameters
    ----------
    build : callable
        From a number of classes (None for the model's own) to the model.
    path : Path
        The file.
    """
    state = read_state(path)
    model = build(None)
    classes = _other_classes(model, state)
    if classes is not None:
        model = build(classes)
    load_state(model, state, path)
    return model


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict.

    Raises
    ------
    CommandError
        If names or shapes are not those of the model.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    found = [
        f"{len(names)} {what} ({names[0]}{', ...' if len(names) > 1 else ''})"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", other))
        if names
    ]
    if found:
        raise CommandError(
            f"--weights {path} is no state dict of this {type(model).__name__}: {', '.join(found)} of "
            f"{len(own)} tensors; give the file of this model"
        )
    model.load_state_dict(state)


def _other_classes(model: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of a state dict that differs from the model in nothing else."""
    pairs = [(value.shape, state[name].shape) for name, value in model.state_dict().items() if name in state]
    differing = {pair for pair in pairs if pair[0] != pair[1]}
    counts = {(own[0], found[0]) for own, found in differing if len(own) and own[1:] == found[1:]}
    is_all = all(len(own) and own[1:] == found[1:] for own, found in differing)
    return counts.pop()[1] if is_all and len(counts) == 1 else None
