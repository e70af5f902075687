"""What is asked of maps that are there: where they point, how concentrated they are, and how alike two of them are.

This file knows nothing about models. Maps have the shape ``(N, H, W)``, and each measure gives one number a map.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.digits.ways import share_inside


def share_in_box(relevance: Tensor, boxes: Tensor) -> Tensor:
    """Return the share of positive relevance in the boxes ``(N, H, W)``; 0 where nothing is positive."""
    return share_inside(relevance, boxes).nan_to_num(0.0)


def rank_accuracy(relevance: Tensor, masks: Tensor) -> Tensor:
    """Return the share of the K most relevant pixels that lie in the masks ``(N, H, W)`` of K pixels each.

    Of pixels that are equally relevant the expected number counts, as if chance had put them in order.
    """
    flat, inside = relevance.flatten(1), masks.flatten(1)
    size = inside.sum(1)
    weakest = flat.sort(1, descending=True).values.gather(1, size[:, None] - 1)
    is_above, is_tied = flat > weakest, flat == weakest
    tied_inside = (is_tied & inside).sum(1) / is_tied.sum(1)
    return ((is_above & inside).sum(1) + (size - is_above.sum(1)) * tied_inside) / size


def entropy(relevance: Tensor) -> Tensor:
    """Return the entropy of ``|relevance|``, in units of that of a map which is the same everywhere: 0 to 1."""
    shares = _shares(relevance)
    return -torch.special.xlogy(shares, shares).sum(1) / math.log(shares.shape[1])


def gini(relevance: Tensor) -> Tensor:
    """Return the Gini index of ``|relevance|``: 0 for a map that is the same everywhere, to 1 for a single pixel."""
    shares = _shares(relevance).sort(1).values
    count = shares.shape[1]
    weights = 2 * torch.arange(1, count + 1, dtype=shares.dtype) - count - 1
    return (weights * shares).sum(1) / count


def _shares(relevance: Tensor) -> Tensor:
    """Return ``|relevance|`` in units of its sum, ``(N, H * W)``; the same everywhere where there is none."""
    sizes = relevance.abs().flatten(1)
    sizes = sizes + (sizes.sum(1, keepdim=True) == 0)
    return sizes / sizes.sum(1, keepdim=True)


def relative_change(before: Tensor, after: Tensor) -> Tensor:
    """Return ``|after - before| / |before|`` by the Euclidean norm; infinite where there was nothing before."""
    return (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)


def rank_correlation(first: Tensor, second: Tensor, masks: Tensor) -> Tensor:
    """Return Spearman's correlation of two maps over the pixels in the masks; 0 where one is the same everywhere."""
    return torch.tensor([_spearman(a[mask], b[mask]) for a, b, mask in zip(first, second, masks, strict=True)])


def _spearman(first: Tensor, second: Tensor) -> float:
    if any((values == values[0]).all() for values in (first, second)):
        return 0.0
    return float(spearmanr(first.numpy(), second.numpy()).statistic)
