"""Layers that a user registers, and layers whose bias would become larger than their weights."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import canonize, canonized_copy, plan, register_layer
from canon_bridge.captum import LRP, presets
from canon_bridge.core.layers.border import AxisGeometry, Border, number_of_tap_sets
from canon_bridge.core.layers.linear import LINEAR, MOST_ENTRIES_PER_WEIGHT, fold_before, is_linear, why_not_before
from canon_bridge.core.norms import norm_type
from canon_bridge.core.restore import Edits
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, image
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

TOLERANCE = 1e-12


class Squared(nn.Conv2d):
    """A convolution by the squares of its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight**2, self.bias)


class Plain(nn.Module):
    """A convolution, or a transposed one, that is no subclass of torch's."""

    transposed = False

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.in_channels = self.out_channels = channels
        self.kernel_size, self.stride, self.padding, self.dilation = (3, 3), (2, 1), (1, 1), (1, 1)
        self.output_padding, self.groups = (1, 0), 2
        self.weight = nn.Parameter(torch.randn(channels, channels // 2, 3, 3))
        self.register_parameter("bias", None)

    def forward(self, input: Tensor) -> Tensor:
        if self.transposed:
            return F.conv_transpose2d(input, self.weight, self.bias, self.stride, self.padding, (1, 0), self.groups)
        return F.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class PlainTransposed(Plain):
    transposed = True


class Features(nn.Module):
    """A layer on features that is no subclass of torch's."""

    def __init__(self, features: int = 4) -> None:
        super().__init__()
        self.in_features = self.out_features = features
        self.weight, self.bias = nn.Parameter(torch.randn(features, features)), nn.Parameter(torch.randn(features))

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.T + self.bias


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LINEAR, "data", dict(LINEAR))
    register_layer(Squared, spatial=2, weight=lambda module: module.weight**2)
    register_layer(f"{__name__}.Plain", spatial=2)
    register_layer(PlainTransposed, spatial=2, transposed=True)
    register_layer(Features, spatial=0)


LAYERS = {
    "squared": lambda: Squared(4, 4, 3, padding=1),
    "by name": Plain,
    "transposed": PlainTransposed,
    "features": Features,
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("prefer", BOTH)
def test_norms_on_both_sides_are_merged(name: str, prefer: str) -> None:
    layer = LAYERS[name]()
    norms = [nn.BatchNorm2d(4) if name != "features" else nn.BatchNorm1d(4) for _ in range(2)]
    model = randomize(nn.Sequential(norms[0], layer, norms[1]).double())
    x = image() if name != "features" else image(5, 4)
    kept, expected = Snapshot(model), model(x).detach()
    assert is_linear(layer)
    assert {merge.norm for merge in plan(model, prefer=prefer).merges} == {"0", "2"}
    for _ in range(2):
        with canonize(model, prefer=prefer):
            assert relative_error(model(x), expected) < TOLERANCE
            assert torch.equal(norms[0](x), x)
        kept.check()
    assert relative_error(canonized_copy(model, prefer=prefer)(x), expected) < TOLERANCE
    relevance = LRP(model, presets.epsilon(1e-30), prefer=prefer).attribute(x, target=(1, 0, 0) if x.dim() > 2 else 1)
    leaf = x.clone().requires_grad_()
    output = model(leaf)[:, 1].flatten(1)[:, 0].sum() if x.dim() > 2 else model(leaf)[:, 1].sum()
    (gradient,) = torch.autograd.grad(output, leaf)
    assert relative_error(relevance, gradient * x) < TOLERANCE
    kept.check()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"type_or_name": "Squared"}, TypeError, "is no type of module"),
        ({"spatial": 4}, ValueError, "spatial is 4"),
        ({"spatial": True}, ValueError, "spatial is True"),
        ({"spatial": 0, "transposed": True}, ValueError, "not 0 for a transposed"),
        ({"weight": "weight"}, TypeError, "weight is 'weight'; it must be a function"),
    ],
)
def test_what_is_no_entry_is_refused(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"type_or_name": Squared, "spatial": 2} | wrong
    before = dict(LINEAR)
    with pytest.raises(error, match=message):
        register_layer(arguments.pop("type_or_name"), **arguments)
    assert dict(LINEAR) == before


def test_the_number_of_tap_sets() -> None:
    for kernel in (1, 2, 3, 4, 7):
        for stride in (1, 2, 3):
            for dilation in (1, 2, 3):
                for low in (0, 1, 2, 5, 9):
                    for high in (0, 1, 3, 9):
                        for transposed in (False, True):
                            geometry = AxisGeometry(kernel, stride, dilation, low, high, transposed)
                            assert number_of_tap_sets(geometry) == len(Border.of(geometry).sets), geometry


# How many entries the bias has for each element of the weight; what the comment at MOST_ENTRIES_PER_WEIGHT states.
RATIOS: dict[str, tuple[nn.Module, float]] = {
    "ordinary": (nn.Conv2d(64, 64, 3, padding=1), 0.028),
    **{
        f"depthwise {kernel}": (nn.Conv2d(4, 4, kernel, padding=kernel // 2, groups=4), ratio)
        for kernel, ratio in ((3, 1.78), (5, 3.24), (7, 5.22), (9, 7.72), (11, 10.7), (31, 68.2))
    },
    "depthwise 3d 3": (nn.Conv3d(2, 2, 3, padding=1, groups=2), 2.37),
    "depthwise 3d 5": (nn.Conv3d(2, 2, 5, padding=2, groups=2), 5.83),
    **{
        f"transposed depthwise {kernel}": (nn.ConvTranspose2d(2, 2, kernel, 2, groups=2), ratio)
        for kernel, ratio in ((2, 2.25), (3, 2.78), (4, 3.06), (5, 4.0), (7, 5.9))
    },
}


@pytest.mark.parametrize("name", RATIOS)
def test_no_bias_becomes_much_larger_than_the_weights(name: str) -> None:
    layer, ratio = RATIOS[name]
    reason = why_not_before(layer)
    norm = randomize(nn.BatchNorm2d(layer.in_channels))
    fold_before(Edits(), layer, norm_type(norm).read(norm))
    entries = layer.bias.numel()
    assert abs(entries / layer.weight.numel() - ratio) < 0.01 * ratio
    wanted = f"its bias would need {entries} entries for the border, {entries / layer.weight.numel():.0f} times its"
    assert reason == (f"{wanted} weights" if ratio > MOST_ENTRIES_PER_WEIGHT else None)
    assert why_not_before(nn.Conv2d(4, 4, 31, padding=15, padding_mode="circular", groups=4)) is None
    assert why_not_before(nn.Linear(4, 4)) is None


def test_a_norm_before_a_depthwise_layer_with_a_large_kernel_goes_left_or_is_left_over() -> None:
    norm, large, x = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 31, padding=15, groups=4), image()
    model = randomize(nn.Sequential(nn.Conv2d(4, 4, 1), norm, large).double())
    assert [merge.chain.direction for merge in plan(model, prefer="right").merges] == ["left"]
    with canonize(model, prefer="right"):
        assert not any(buffer_or_bias.dim() > 1 for buffer_or_bias in (model[0].bias, large.bias))
    model = randomize(nn.Sequential(nn.Tanh(), norm, large).double())
    (leftover,) = plan(model, prefer="right").leftovers
    assert "right: 2: its bias would need 262144 entries for the border, 68 times its weights" in leftover.reason
    expected = model(x)
    with canonize(model, prefer="right"):
        assert relative_error(model(x), expected) < TOLERANCE


class Doubled(Features):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, 2 * self.weight, self.bias)


class WithoutBias(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight, None, self.stride, self.padding, self.dilation, self.groups)


class Nameless(Features):
    def __init__(self) -> None:
        super().__init__()
        del self.out_features


@pytest.mark.parametrize(
    ("kind", "spatial", "message"),
    [(Doubled, 0, "and it does not"), (WithoutBias, 2, "and it does not"), (Nameless, 0, "it has no out_features")],
)
def test_a_layer_that_is_not_what_was_taught_is_refused(kind: Any, spatial: int, message: str) -> None:
    register_layer(kind, spatial=spatial)
    model = nn.Sequential(kind()).double().eval()
    before = Snapshot(model)
    with pytest.raises(ValueError, match=message):
        plan(model)
    before.check()
