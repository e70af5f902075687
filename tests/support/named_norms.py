"""Look-alikes of the normalization layers that ``NORMS`` knows by name, written anew, in the plainest way; and those
of the packages themselves."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge.core.norms import NORMS

Kinds = dict[str, type[nn.Module]]


def _constant(layer: nn.Module, input: Tensor) -> Tensor:
    tensors = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    weight, bias, mean, variance = (tensor[:, None, None] for tensor in tensors)
    return (input - mean) / (variance + layer.eps).sqrt() * weight + bias


class FrozenBatchNorm2d(nn.Module):
    """Four buffers and no parameter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_features, self.eps = channels, 1e-5
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.ones(channels))
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.zeros(channels))

    def forward(self, input: Tensor) -> Tensor:
        return _constant(self, input)


def _children(layer: nn.Module, act: nn.Module | None, drop: nn.Module | None) -> None:
    layer.drop, layer.act = drop or nn.Identity(), act or nn.Identity()


class BatchNormAct2d(nn.BatchNorm2d):
    """A BatchNorm, a dropout and an activation in one."""

    def __init__(self, channels: int, act: nn.Module | None = None, drop: nn.Module | None = None, **more: Any) -> None:
        super().__init__(channels, **more)
        _children(self, act, drop)

    def forward(self, x: Tensor) -> Tensor:
        by_batch, statistics = self.training, (self.running_mean, self.running_var)
        return self.act(self.drop(F.batch_norm(x, *statistics, self.weight, self.bias, by_batch, 0.0, self.eps)))


class SyncBatchNormAct(nn.SyncBatchNorm):
    def __init__(self, channels: int, act: nn.Module | None = None, drop: nn.Module | None = None, **more: Any) -> None:
        super().__init__(channels, **more)
        _children(self, act, drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    def __init__(self, channels: int, act: nn.Module | None = None, drop: nn.Module | None = None) -> None:
        super().__init__(channels)
        _children(self, act, drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(_constant(self, x)))


PLAIN = {"FrozenBatchNorm2d": "torchvision.ops.misc"}
WITH_ACT = {
    "BatchNormAct2d": "timm.layers.norm_act",
    "SyncBatchNormAct": "timm.layers.norm_act",
    "FrozenBatchNormAct2d": "timm.layers.norm_act",
}
HOMES = PLAIN | WITH_ACT
LOOK_ALIKES: Kinds = {name: globals()[name] for name in HOMES}


def packaged(name: str) -> type[nn.Module]:
    """Return the layer of the package; skip the test where that is not installed."""
    package, _, _ = HOMES[name].partition(".")
    pytest.importorskip(package, reason="the look-alikes are tested in its place")
    kind = getattr(pytest.importorskip(HOMES[name]), name)
    return _with_act(kind) if name in WITH_ACT else kind


def _with_act(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass that is made in the same way as the look-alikes."""

    def init(self: nn.Module, channels: int, act: Any = None, drop: Any = None, **more: Any) -> None:
        kind.__init__(self, channels, **more)
        if act is not None or not issubclass(kind, nn.SyncBatchNorm):
            _children(self, act, drop)

    return type(kind.__name__, (kind,), {"__init__": init})


@pytest.fixture(params=["look-alike", "package"])
def kinds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what finds the layer by its name; the look-alikes are in the table under their own qualified names."""
    if request.param == "package":
        return packaged
    for name, home in HOMES.items():
        monkeypatch.setitem(NORMS, f"{__name__}.{name}", NORMS[f"{home}.{name}"])
    return LOOK_ALIKES.__getitem__


def randomize_any(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every layer of ``NORMS`` random statistics, weights of both signs, one zero, one tiny, and a large eps."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if not isinstance(getattr(layer, "running_mean", None), Tensor):
            continue
        width, layer.eps = layer.running_mean.numel(), 0.1
        values = {
            "running_mean": torch.randn(width, generator=generator),
            "running_var": torch.rand(width, generator=generator) + 0.5,
            "weight": torch.randn(width, generator=generator) + 0.2,
            "bias": torch.randn(width, generator=generator),
        }
        values["weight"][0], values["weight"][-1] = 0, 1e-20
        with torch.no_grad():
            for name, value in values.items():
                if getattr(layer, name) is not None:
                    getattr(layer, name).copy_(value)
    return model.eval()
