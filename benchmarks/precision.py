"""What a merge costs in precision, by how many standard deviations the running mean is from zero.

python -m benchmarks.precision
"""

from __future__ import annotations

import warnings
from typing import Final

import torch
from torch import Tensor, nn

from canon_bridge import PrecisionWarning, canonize

CHANNELS: Final = 32
RATIOS: Final = (1.0, 10.0, 100.0, 1e3, 1e4)
DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
KINDS: Final = ("BatchNorm, ReLU, convolution", "BatchNorm, convolution", "convolution, BatchNorm", "BatchNorm alone")


def build(kind: str, ratio: float, seed: int) -> tuple[nn.Module, Tensor, str]:
    """Return a model in float64, an input with the statistics of its BatchNorm, and the direction of the merge."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    norm, convolution = nn.BatchNorm2d(CHANNELS, eps=0.0), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    signs = torch.randint(0, 2, (CHANNELS,), generator=generator) * 2.0 - 1
    with torch.no_grad():
        norm.weight.copy_(torch.randn(CHANNELS, generator=generator))
        norm.bias.copy_(torch.randn(CHANNELS, generator=generator) / 2)
    layers = {KINDS[0]: [norm, nn.ReLU(), convolution], KINDS[1]: [norm, convolution], KINDS[3]: [norm, nn.Softmax(1)]}
    x = torch.randn(8, CHANNELS, 12, 12, generator=generator)
    if kind == KINDS[2]:
        with torch.no_grad():
            y = convolution(x)
            convolution.bias.add_(signs * ratio * y.std((0, 2, 3)) - y.mean((0, 2, 3)))
            y = convolution(x)
        norm.running_mean, norm.running_var = y.mean((0, 2, 3)), y.var((0, 2, 3))
        return nn.Sequential(convolution, norm).double().eval(), x.double(), "left"
    norm.running_mean.copy_(signs * ratio)
    return nn.Sequential(*layers[kind]).double().eval(), x.double() + (signs * ratio).view(-1, 1, 1), "right"


@torch.no_grad()
def errors(kind: str, ratio: float, dtype: torch.dtype, seed: int = 0) -> tuple[float, float, bool]:
    """Return the error of the original and of the canonical model, relative to the largest value of the exact output.

    Returns
    -------
    float, float, bool
        Both errors, and whether canonization warned.
    """
    model, x, prefer = build(kind, ratio, seed)
    x = x.to(dtype)
    exact = model.to(dtype).double()(x.double())  # of the rounded model and input
    original = model.to(dtype)(x).double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with canonize(model, prefer=prefer):
            canonical = model(x).double()
    warned = any(issubclass(warning.category, PrecisionWarning) for warning in caught)
    scale = exact.abs().max()
    return float((original - exact).abs().max() / scale), float((canonical - exact).abs().max() / scale), warned


def table() -> str:
    """Return the errors in Markdown; where canonization warns they are in bold."""
    lines = [
        f"| data type | | {' | '.join(f'{ratio:g}' for ratio in RATIOS)} |",
        f"| --- | --- |{' ---: |' * len(RATIOS)}",
    ]
    for dtype in DTYPES:
        for kind in KINDS:
            cells = []
            for ratio in RATIOS:
                original, canonical, warned = errors(kind, ratio, dtype)
                cells.append(f"{original:.0e} / " + (f"**{canonical:.0e}**" if warned else f"{canonical:.0e}"))
            lines.append(f"| {str(dtype).removeprefix('torch.')} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
