"""Explain a photograph with a DenseNet, in zennit and in Captum: the same map in both.

    python examples/densenet_in_both.py photograph.jpg

takes torchvision's pretrained densenet121 (a download of 31 MB), prints the class and writes ``relevance.png``. For
your own network change ``load``. Without canonization zennit's rules meet BatchNorms, for which no rule is right.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchvision.models import DenseNet121_Weights, densenet121
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

from canon_bridge import plan
from canon_bridge.captum import LRP, presets
from canon_bridge.zennit import ModelCanonizer

WEIGHTS = DenseNet121_Weights.IMAGENET1K_V1


def load(weights: Path | None) -> tuple[nn.Module, Callable[[Image.Image], Tensor], list[str]]:
    """Return the network in evaluation mode, what makes its input of an image, and the names of its classes."""
    if weights is None:
        model, names = densenet121(weights=WEIGHTS), WEIGHTS.meta["categories"]
    else:  # a file that torch.save(model.state_dict(), ...) has written
        state = torch.load(weights, map_location="cpu", weights_only=True)
        names = [f"class {index}" for index in range(len(state["classifier.bias"]))]
        model = densenet121(num_classes=len(names))
        model.load_state_dict(state)
    return model.eval(), WEIGHTS.transforms(), names


def in_zennit(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """Return the relevance of each pixel for the logit of a class, shape (H, W)."""

    def logit_of_target(logits: Tensor) -> Tensor:
        return logits.detach() * one_hot(torch.tensor([target]), logits.shape[1])

    composite = EpsilonPlus(canonizers=[ModelCanonizer()])
    with Gradient(model, composite) as attributor:
        _, relevance = attributor(x, logit_of_target)
    return relevance.sum(1)[0]


def in_captum(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """Return the same from Captum, shape (H, W)."""
    relevance = LRP(model, preset=presets.epsilon_plus()).attribute(x, target=target)
    return relevance.detach().sum(1)[0]


def picture(x: Tensor, maps: dict[str, Tensor], title: str) -> Figure:
    """Draw what the network sees, and the maps: red speaks for the class, blue against it."""
    figure = Figure(figsize=(3 * (1 + len(maps)), 3.4), layout="constrained")
    axes = figure.subplots(1, 1 + len(maps))
    axes[0].imshow(((x - x.min()) / (x.max() - x.min()))[0].movedim(0, -1))
    axes[0].set_title(title, fontsize=10)
    limit = max(relevance.abs().quantile(0.995).item() for relevance in maps.values())
    for axis, (name, relevance) in zip(axes[1:], maps.items(), strict=True):
        axis.imshow(relevance, cmap="seismic", vmin=-limit, vmax=limit)
        axis.set_title(name, fontsize=10)
    for axis in axes:
        axis.set_axis_off()
    return figure


def main() -> None:
    """Read the command line, explain, and write the picture."""
    parser = argparse.ArgumentParser(description="Explain a photograph with a DenseNet, in zennit and in Captum.")
    parser.add_argument("image", type=Path)
    parser.add_argument("--weights", type=Path, help="a state dict of densenet121; by default torchvision's")
    parser.add_argument("--output", type=Path, default=Path("relevance.png"), help="the picture (%(default)s)")
    options = parser.parse_args()

    image = ImageOps.exif_transpose(Image.open(options.image)).convert("RGB")
    model, transform, names = load(options.weights)
    x = transform(image)[None]
    print(plan(model).total())
    logit, target = model(x)[0].max(0)
    print(f"{names[target]}: logit {logit:.2f}")
    maps = {"zennit": in_zennit(model, x, int(target)), "Captum": in_captum(model, x, int(target))}
    print(f"largest difference between the two maps: {(maps['zennit'] - maps['Captum']).abs().max():.1e}")
    picture(x, maps, names[target]).savefig(options.output, dpi=200, bbox_inches="tight")
    print(f"Picture: {options.output}")


if __name__ == "__main__":
    main()
