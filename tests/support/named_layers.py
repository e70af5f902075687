"""Look-alikes of the layers that ``LINEAR`` knows by name, written anew, in the plainest way; and those of timm.

They pad by the size of the input as TensorFlow does, or standardize their weight in forward, or both.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge.core.layers.linear import LINEAR

Kinds = dict[str, type[nn.Module]]


def zeros_at_the_ends(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Add zeros one by one, at the upper end first, until a position starts at every stride of the input."""
    low = high = 0
    while (size + low + high - dilation * (kernel - 1) - 1) // stride + 1 < len(range(0, size, stride)):
        low, high = (low, high + 1) if low == high else (low + 1, high)
    return low, high


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)


class Conv2dSame(nn.Conv2d):
    same_pad = True

    def __init__(self, *arguments: Any, padding: object = 0, **keywords: Any) -> None:
        super().__init__(*arguments, padding=0 if padding == "same" else padding, **keywords)

    def used(self) -> Tensor:
        return self.weight

    def forward(self, input: Tensor) -> Tensor:
        if self.same_pad:
            geometry = zip(input.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True)
            rows, columns = (zeros_at_the_ends(*axis) for axis in geometry)
            return self.convolve(F.pad(input, (*columns, *rows)))
        return self.convolve(input)

    def convolve(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.used(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class StdConv2d(Conv2dSame):
    same_pad = False

    def __init__(self, *arguments: Any, eps: float = 1e-6, padding: object = 0, **keywords: Any) -> None:
        super().__init__(*arguments, padding=padding, **keywords)
        self.eps, self.same_pad = eps, padding == "same"

    def used(self) -> Tensor:
        filters = [(f - f.mean()) / (((f - f.mean()) ** 2).mean() + self.eps).sqrt() for f in self.weight]
        return torch.stack(filters)


class StdConv2dSame(StdConv2d):
    pass


class ScaledStdConv2d(StdConv2d):
    def __init__(self, *arguments: Any, gamma: float = 1.0, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.scale = gamma / self.weight[0].numel() ** 0.5
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1, dtype=self.weight.dtype))

    def used(self) -> Tensor:
        return super().used() * self.gain * self.scale


class ScaledStdConv2dSame(ScaledStdConv2d):
    pass


CONVOLUTIONS = ("Conv2dSame", "StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")
MODULES = {"Linear": "linear", "Conv2dSame": "conv2d_same"}
LOOK_ALIKES: Kinds = {
    kind.__name__: kind for kind in (Linear, Conv2dSame, StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)
}


def entry_name(name: str) -> str:
    """Return the key in ``LINEAR`` of timm's layer of that name."""
    return f"timm.layers.{MODULES.get(name, 'std_conv')}.{name}"


@pytest.fixture(params=["look-alike", "timm"])
def kinds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kinds:
    """Return the layers by name; the look-alikes are in the table under their own qualified names."""
    if request.param == "timm":
        layers = pytest.importorskip("timm.layers")
        found = {name: getattr(layers, name) for name in LOOK_ALIKES if hasattr(layers, name)}
        from timm.layers.linear import Linear as WithCasts

        return found | {"Linear": WithCasts}
    for name in LOOK_ALIKES:
        monkeypatch.setitem(LINEAR, f"{__name__}.{name}", LINEAR[entry_name(name)])
    return LOOK_ALIKES


def make(kind: type[nn.Module], bias: bool = True, **geometry: Any) -> nn.Module:
    """Return a layer with random parameters in float64, also those that timm fills with ones."""
    if issubclass(kind, nn.Conv2d) and kind.__name__ in ("StdConv2dSame", "ScaledStdConv2dSame"):
        geometry = {"padding": "same"} | geometry
    layer = kind(6, 12, **({"kernel_size": 3} | geometry if issubclass(kind, nn.Conv2d) else {}), bias=bias).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) + 0.1)
    return layer.eval()
