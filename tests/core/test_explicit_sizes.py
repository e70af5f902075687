"""Pools, means and interpolations whose sizes forward computes, at other sizes than those they were planned for; and
norms that are merged through all of them.

Nothing is known about the size when the plan is made: each module gets it right before it is called.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import canonize, plan
from canon_bridge.captum import LRP, presets
from canon_bridge.core.explicit import LinearMap
from canon_bridge.zennit import ModelCanonizer
from tests.support.decisions import with_both_signs
from tests.support.errors import relative_error
from tests.support.in_zennit import TARGET, attribute, epsilon_composite
from tests.support.models import gradient_times_input
from tests.support.pieces import BOTH, Function, Written, check, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

SIZES = ((2, 4, 6, 6), (1, 4, 7, 5), (3, 4, 4, 9), (2, 4, 6, 6))

# Name: the operation in a network of a norm before and a convolution or a linear layer behind it, and its module.
COMPUTED: dict[str, tuple[Function, type[nn.Module]]] = {
    "F.avg_pool2d(x, x.size()[2:])": (lambda x: F.avg_pool2d(x, x.size()[2:]), LinearMap),
    "F.avg_pool2d(x, x.shape[-2:])": (lambda x: F.avg_pool2d(x, x.shape[-2:]), LinearMap),
    "F.avg_pool2d(x, (x.shape[2], x.size(3)))": (lambda x: F.avg_pool2d(x, (x.shape[2], x.size(3))), LinearMap),
    "F.avg_pool2d(x, kernel_size=x.shape[2:], stride=1)": (
        lambda x: F.avg_pool2d(x, kernel_size=x.shape[2:], stride=1),
        LinearMap,
    ),
    "F.avg_pool2d(x, x.shape[2] // 2)": (lambda x: F.avg_pool2d(x, x.shape[2] // 2), LinearMap),
    "F.avg_pool2d(x, 2, x.shape[2] // 3)": (lambda x: F.avg_pool2d(x, 2, x.shape[2] // 3), LinearMap),
    "F.adaptive_avg_pool2d(x, (1, 1))": (lambda x: F.adaptive_avg_pool2d(x, (1, 1)), nn.AdaptiveAvgPool2d),
    "F.adaptive_avg_pool2d(x, x.shape[2] // 2)": (
        lambda x: F.adaptive_avg_pool2d(x, x.shape[2] // 2),
        LinearMap,
    ),
    "F.adaptive_avg_pool2d(x, (x.shape[2], 1))": (
        lambda x: F.adaptive_avg_pool2d(x, (x.shape[2], 1)),
        LinearMap,
    ),
    "F.interpolate(x, scale_factor=2)": (lambda x: F.interpolate(x, scale_factor=2), LinearMap),
    "F.interpolate(x, 11)": (lambda x: F.interpolate(x, 11), LinearMap),
    "F.interpolate(x, (x.shape[2] * 2, 5))": (lambda x: F.interpolate(x, (x.shape[2] * 2, 5)), LinearMap),
    "F.interpolate, bilinear": (
        lambda x: F.interpolate(x, x.shape[3], mode="bilinear", align_corners=True),
        LinearMap,
    ),
    "F.interpolate, computed factor": (lambda x: F.interpolate(x, scale_factor=x.shape[2] / 3), LinearMap),
    "F.interpolate, recomputed factor": (
        lambda x: F.interpolate(x, None, 1.7, "bilinear", False, recompute_scale_factor=True),
        LinearMap,
    ),
    "x.mean((2, 3), keepdim=True)": (lambda x: x.mean((2, 3), keepdim=True), LinearMap),
    "x.mean([-1, -2], True)": (lambda x: x.mean([-1, -2], True), LinearMap),
    "x.mean(-1, keepdim=True)": (lambda x: x.mean(-1, keepdim=True), LinearMap),
    "torch.mean(x, dim=(2, 3), keepdim=True)": (lambda x: torch.mean(x, dim=(2, 3), keepdim=True), LinearMap),
    "torch.mean(x, 3, True)": (lambda x: torch.mean(x, 3, True), LinearMap),
}
WITHOUT_DIMENSIONS: dict[str, Function] = {
    "x.mean((2, 3))": lambda x: x.mean((2, 3)),
    "x.mean([2, 3])": lambda x: x.mean([2, 3]),
    "x.mean((-1, -2))": lambda x: x.mean((-1, -2)),
    "x.mean(dim=(-2, -1))": lambda x: x.mean(dim=(-2, -1)),
    "x.mean(3).mean(2)": lambda x: x.mean(3).mean(2),
    "x.mean(2).mean(-1)": lambda x: x.mean(2).mean(-1),
    "x.mean(-1).mean(-1)": lambda x: x.mean(-1).mean(-1),
    "torch.mean(x, [2, 3])": lambda x: torch.mean(x, [2, 3]),
    "torch.mean(x, keepdim=False, dim=(2, 3))": lambda x: torch.mean(x, keepdim=False, dim=(2, 3)),
    "x.flatten(2).mean(-1)": lambda x: x.flatten(2).mean(-1),
    "pooled and flattened": lambda x: F.avg_pool2d(x, x.size()[2:]).flatten(1),
    "pooled and viewed": lambda x: (y := F.adaptive_avg_pool2d(x, 1)).view(y.size(0), -1),
    "pooled and squeezed": lambda x: F.adaptive_avg_pool2d(x, (1, 1)).squeeze(3).squeeze(2),
}


def network(operation: Function, last: nn.Module) -> nn.Module:
    return randomize(
        Written(
            lambda m, x: m.last(operation(m.relu(m.norm(m.tanh(x))))),
            tanh=nn.Tanh(),
            norm=norm(),
            relu=nn.ReLU(),
            last=last,
        )
    )


@pytest.mark.parametrize("name", COMPUTED)
def test_a_norm_is_merged_through_it_and_other_sizes_hold(name: str) -> None:
    operation, kind = COMPUTED[name]
    model = network(operation, conv(4, 3, 1, 0))
    (merge,) = plan(model).merges
    assert merge.chain.targets == ("last",)
    check(model, *(image(*size) for size in SIZES))
    before = set(dict(model.named_modules()))
    with canonize(model):
        new = [module for path, module in model.named_modules() if path not in before]
        assert [type(module) for module in new] == [kind]


@pytest.mark.parametrize("name", WITHOUT_DIMENSIONS)
def test_a_norm_is_merged_through_the_end_of_a_network(name: str) -> None:
    model = network(WITHOUT_DIMENSIONS[name], nn.Linear(4, 3))
    (merge,) = plan(model).merges
    assert merge.chain.targets == ("last",)
    check(model, *(image(*size) for size in SIZES))


# On the tensor that is pooled and the input of the model, whose sizes are others; with the rank and the layer after it.
MAX_POOLS: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
    "size()[2:]": (2, lambda h, x: F.max_pool2d(h, h.size()[2:]).flatten(1)),
    "sizes of the input": (2, lambda h, x: F.max_pool2d(h, kernel_size=x.size()[2:]).view(x.size(0), -1)),
    "a tuple of sizes": (2, lambda h, x: F.max_pool2d(h, (h.shape[-2], h.shape[-1])).squeeze(-1).squeeze(-1)),
    "torch.max_pool2d": (2, lambda h, x: torch.max_pool2d(F.relu(h), (h.shape[-2], h.shape[-1]))[:, :, 0, 0]),
    "a module made in forward": (2, lambda h, x: nn.MaxPool2d(h.size()[2:])(h).flatten(1)),
    "a stride": (2, lambda h, x: F.max_pool2d(h, 2, h.shape[-2] // 2).amax((2, 3))),
    "padding": (2, lambda h, x: F.max_pool2d(h, 3, 2, padding=x.dim() - 3).mean((2, 3))),
    "adaptive": (2, lambda h, x: F.adaptive_max_pool2d(h, h.shape[-1] // 2).mean((2, 3))),
    "adaptive, by sizes of the input": (2, lambda h, x: F.adaptive_max_pool2d(h, (x.shape[-2] // 3, 1)).mean((2, 3))),
    "1d": (1, lambda h, x: F.max_pool1d(h, h.size(2)).squeeze(2)),
    "1d, by name": (1, lambda h, x: F.max_pool1d(input=F.relu(h), kernel_size=h.shape[-1]).view(h.size(0), -1)),
    "3d": (3, lambda h, x: F.max_pool3d(h, h.shape[2:]).flatten(1)),
    "two outputs": (2, lambda h, x: F.max_pool2d(h, h.size()[2:], return_indices=True)[0].flatten(1)),
    "two outputs, by position": (2, lambda h, x: F.max_pool2d(h, h.size()[2:], 2, 0, 1, False, True)[0].flatten(1)),
}
LEFT_OVER = ("two outputs", "two outputs, by position", "a stride")  # amax is no pool


class Pooled(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        rank, self.pool = MAX_POOLS[name]
        self.conv = getattr(nn, f"Conv{rank}d")(3, 4, 3, padding=1)
        self.norm, self.last = getattr(nn, f"BatchNorm{rank}d")(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.norm(F.relu(self.conv(x))), x))


@pytest.mark.zennit
@pytest.mark.parametrize("prefer", BOTH)
@pytest.mark.parametrize("name", MAX_POOLS)
def test_a_max_pool_of_a_computed_size(name: str, prefer: str) -> None:
    model = with_both_signs(Pooled(name).double().eval())
    merges = plan(model, prefer=prefer).merges
    assert [merge.chain.targets for merge in merges] == ([] if name in LEFT_OVER else [("last",)])
    rank = MAX_POOLS[name][0]
    inputs = [image(n, 3, *(size,) * rank) for n, size in ((2, 6), (1, 7))]
    expected, before = [model(x).detach() for x in inputs], Snapshot(model)
    with canonize(model, prefer=prefer):
        for x, right in zip(inputs, expected, strict=True):
            assert relative_error(model(x).detach(), right) < 1e-12
    wanted = gradient_times_input(model, inputs[0])
    by_zennit = attribute(model, inputs[0], epsilon_composite(1e-30, [ModelCanonizer(prefer=prefer)]))
    by_captum = LRP(model, presets.epsilon(1e-30), prefer=prefer).attribute(inputs[0], target=TARGET)
    assert max(relative_error(found, wanted) for found in (by_zennit, by_captum)) < 1e-12
    before.check()


NOT_THROUGH: dict[str, tuple[Function, Callable[[], nn.Module]]] = {
    "a mean over the channels": (lambda x: x.mean(1, keepdim=True), lambda: conv(1)),
    "a mean over channels and space": (lambda x: x.mean((1, 2, 3), keepdim=True), lambda: conv(1, 1, 1, 0)),
    "padding that is counted": (lambda x: F.avg_pool2d(x, 3, 1, 1), conv),
    "computed padding": (lambda x: F.avg_pool2d(x, 3, 1, x.dim() - 3), conv),
    "another divisor": (lambda x: F.avg_pool2d(x, x.size()[2:], divisor_override=3), lambda: conv(4, 3, 1, 0)),
    "a pool with a size that is no point": (
        # Neither dimension is one, so nothing is squeezed, and the linear layer acts on the last dimension.
        lambda x: F.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.size(1))).squeeze(3).squeeze(2),
        lambda: nn.Linear(4, 3),
    ),
}


@pytest.mark.parametrize("name", NOT_THROUGH)
def test_what_does_not_keep_constants_is_not_passed(name: str) -> None:
    operation, last = NOT_THROUGH[name]
    model = network(operation, last())
    assert plan(model).merges == ()
    check(model, image(), image(1, 4, 8, 7))


TWO: dict[str, Function] = {
    "a size of another tensor": lambda m, x: m.b(F.interpolate(m.norm(m.a(x)), x.shape[2:])) + x,
    "sizes of another tensor": lambda m, x: m.b(F.interpolate(m.norm(m.a(x)), (x.size(2), x.size(3)))) + x,
    "a decoder": lambda m, x: (
        m.b(F.interpolate(m.norm(m.a(x)), size=x.size()[-2:], mode="bilinear", align_corners=False)) * torch.sigmoid(x)
    ),
    "pooled to the size of another": lambda m, x: F.adaptive_max_pool2d(x, m.norm(m.a(x)).shape[2:]) + m.a(x),
    "one function at several places": lambda m, x: F.interpolate(
        F.interpolate(m.norm(m.a(x)), scale_factor=3), x.shape[2:]
    ),
}


@pytest.mark.parametrize("name", TWO)
def test_sizes_of_other_tensors(name: str) -> None:
    model = randomize(Written(TWO[name], a=conv(4, 4, 3, 1, stride=2), norm=norm(), b=conv()))
    check(model, *(image(*size) for size in SIZES))


class Twice(nn.Module):
    """One block with a computed size, called with two sizes in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.pool = Written(pooled, norm=norm(), conv=conv(4, 4, 1, 0)), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + self.block(self.pool(x))


def pooled(model: nn.Module, x: Tensor) -> Tensor:
    return model.conv(F.avg_pool2d(model.norm(x), x.shape[2:]))


def test_one_block_called_with_two_sizes() -> None:
    check(randomize(Twice().double()), *(image(*size) for size in SIZES))


@pytest.mark.parametrize("prefer", BOTH)
def test_sizes_are_followed_with_example_inputs_too(prefer: str) -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        y = model.norm(model.a(x))
        if y.abs().sum() > 0 and y.shape[1] == len(model.norm.weight):
            y = F.avg_pool2d(y, y.size()[2:])
        return model.b(F.interpolate(y, x.shape[2:]))

    model: Any = randomize(Written(function, a=conv(), norm=norm(), b=conv()))
    before, x, other = Snapshot(model), image(), image(1, 4, 9, 5)
    expected = model(x), model(other)
    with canonize(model, prefer=prefer, example_inputs=x):
        for value, right in zip((x, other), expected, strict=True):
            assert relative_error(model(value), right) < 1e-12
    before.check()
