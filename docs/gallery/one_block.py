"""
The same function, another map
==============================

A block of BatchNorm, ReLU and convolution, and a digit on empty ground. Nothing is trained: all values stand in the
code.
"""

# %%
# The digit is one of scikit-learn's. Around it there is nothing, exactly zero.

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

from canon_bridge import canonize
from canon_bridge.zennit import ModelCanonizer

digit = torch.tensor(load_digits().images[3] / 16, dtype=torch.float64)
x = nn.functional.pad(digit, (4, 4, 4, 4))[None, None]

# %%
# The block. Its BatchNorm has learnt a scale and a shift, as every BatchNorm does: with these statistics it computes
# 2 x + 0.5. The convolution takes the mean of nine neighbours, and the score is the sum of what it puts out.

norm, conv = nn.BatchNorm2d(1, eps=0), nn.Conv2d(1, 1, 3, padding=1, bias=False)
nn.init.constant_(norm.weight, 2)
nn.init.constant_(norm.bias, 0.5)
nn.init.constant_(conv.weight, 1 / 9)
model = nn.Sequential(norm, nn.ReLU(), conv, nn.Flatten(), nn.Linear(256, 1, bias=False)).double().eval()
nn.init.constant_(model[-1].weight, 1)

# %%
# Canonization writes the block in another way, a thresholded ReLU and a convolution with a bias. It is the same
# function:

with torch.no_grad():
    score = model(x)
    with canonize(model):
        print(f"{score.item():.12f} {model(x).item():.12f}")

# %%
# Yet the rule gives another map. Left as it is, the BatchNorm hands its shift on to the pixels, also where there is no
# ink. In the canonical block the shift is a bias, and takes its share itself.


def explain(canonizers):
    """Return the relevance of each pixel, shape (H, W)."""
    with Gradient(model, EpsilonPlus(canonizers=canonizers)) as attributor:
        return attributor(x, lambda output: output)[1].detach()[0, 0]


maps = {"as it is written": explain([]), "canonized": explain([ModelCanonizer()])}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.9), layout="constrained")
axes[0].imshow(x[0, 0], cmap="gray_r")
axes[0].set_title("input")
limit = max(relevance.abs().max() for relevance in maps.values())
for axis, (name, relevance) in zip(axes[1:], maps.items(), strict=True):
    axis.imshow(relevance, cmap="seismic", vmin=-limit, vmax=limit)
    on_nothing = relevance[x[0, 0] == 0].sum() / relevance.sum()
    axis.set_title(name)
    axis.set_xlabel(f"{on_nothing:.0%} of it where x is zero")
for axis in axes:
    axis.set(xticks=[], yticks=[])
plt.show()
