"""Layers that pad by themselves as EfficientNet's do: a child module by fixed amounts, or by the size of the input."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import canonize, plan
from canon_bridge.core.affine import Affine
from canon_bridge.core.layers.linear import LINEAR, fold_after, fold_before, is_linear, why_not_foldable
from canon_bridge.core.restore import Edits
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, alive, norms
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

HOMES = ("efficientnet_pytorch.utils", "segmentation_models_pytorch.encoders._efficientnet")
ENDS = {
    "even": (1, 1, 1, 1),
    "odd": (0, 1, 0, 1),
    "lower ends": (1, 0, 2, 0),
    "every end another": (0, 2, 1, 3),
    "none": None,
}


class Conv2dStaticSamePadding(nn.Conv2d):
    """Zeros at the left, right, top and bottom by a child; then a convolution with its own padding."""

    def __init__(self, *arguments: Any, ends: tuple[int, int, int, int] | None, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.static_padding = nn.Identity() if ends is None else nn.ZeroPad2d(ends)

    def forward(self, input: Tensor) -> Tensor:
        x = self.static_padding(input)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LINEAR, f"{__name__}.Conv2dStaticSamePadding", LINEAR[f"{HOMES[0]}.Conv2dStaticSamePadding"])


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("padding", [0, 1, (2, 0)])
@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_the_folded_layer_is_the_composition(stride: int, padding: Any, ends: Any) -> None:
    layer = Conv2dStaticSamePadding(4, 6, 4, ends=ends, stride=stride, padding=padding, groups=2).double()
    before, after = (Affine(torch.randn(n, dtype=torch.float64), torch.randn(n, dtype=torch.float64)) for n in (4, 6))
    twin, edits = copy.deepcopy(layer), Edits()
    assert is_linear(twin)
    assert why_not_foldable(twin) is None
    fold_before(edits, twin, before)
    fold_after(edits, twin, after)
    for size in ((5, 7), (8, 6)):
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        y = layer(before.scale.view(-1, 1, 1) * x + before.shift.view(-1, 1, 1))
        expected = after.scale.view(-1, 1, 1) * y + after.shift.view(-1, 1, 1)
        assert relative_error(twin(x), expected) < 1e-12
        if ends == ENDS["odd"]:
            wrong, edits = copy.deepcopy(layer), Edits()
            wrong.static_padding.padding = (1, 0, 1, 0)  # the forward looks it up once, when the map is folded in
            fold_before(edits, wrong, before)
            fold_after(edits, wrong, after)
            assert relative_error(wrong(x), expected) > 1e-3, "the ends are mixed up"


class Inverted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm0 = Conv2dStaticSamePadding(4, 8, 1, ends=None, bias=False), nn.BatchNorm2d(8)
        self.depthwise = Conv2dStaticSamePadding(8, 8, 3, ends=(0, 1, 0, 1), stride=2, groups=8, bias=False)
        self.norm1, self.project = nn.BatchNorm2d(8), Conv2dStaticSamePadding(8, 4, 1, ends=None, bias=False)
        self.norm2, self.act = nn.BatchNorm2d(4), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.depthwise(self.act(self.norm0(self.expand(x))))))
        return self.norm2(self.project(x))


@pytest.mark.parametrize("prefer", BOTH)
def test_a_block_of_them(prefer: Any) -> None:
    model = randomize(Inverted().eval()).double()
    x, before = torch.randn(2, 4, 6, 6, dtype=torch.float64), Snapshot(model)
    expected = model(x)
    made = plan(model, prefer=prefer)
    assert [merge.norm for merge in made.merges] == norms(model)
    with canonize(model, prefer=prefer):
        assert not alive(model)
        assert relative_error(model(x), expected) < 1e-12
    before.check()


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("prefer", BOTH)
def test_the_packages(prefer: Any, home: str) -> None:
    package = pytest.importorskip(home, exc_type=ImportError)
    layers = [
        package.Conv2dStaticSamePadding(3, 4, 3, stride=2, image_size=9),
        nn.BatchNorm2d(4),
        package.Conv2dDynamicSamePadding(4, 4, 5, stride=2),
        nn.BatchNorm2d(4),
    ]
    model = randomize(nn.Sequential(*layers).eval()).double()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    expected = model(x)
    assert not plan(model, prefer=prefer).leftovers
    with canonize(model, prefer=prefer):
        assert relative_error(model(x), expected) < 1e-12
