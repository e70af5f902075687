"""How far values are from what they should be, and which BatchNorms do anything."""

import torch
from torch import Tensor, nn


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Return the largest deviation relative to the largest reference value; infinite where NaN appears."""
    if not bool(torch.isfinite(value).all()):
        return float("inf")
    return float((value - reference).detach().abs().max() / reference.detach().abs().max())


def alive(model: nn.Module) -> list[str]:
    """Return the paths of BatchNorms that do not compute the exact identity on random input."""
    paths: list[str] = []
    shapes: dict[type[nn.Module], tuple[int, ...]] = {
        nn.BatchNorm1d: (),
        nn.BatchNorm2d: (3, 3),
        nn.BatchNorm3d: (2, 2, 2),
    }
    for path, norm in model.named_modules():
        if type(norm) in shapes:
            mean = norm.running_mean
            x = torch.randn(2, norm.num_features, *shapes[type(norm)], dtype=mean.dtype)
            if not torch.equal(norm(x), x):
                paths.append(path)
    return paths
