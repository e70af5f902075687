"""The block: no BatchNorm is left, every operation is a module of its own, and the function is the same.

Statistics are random, with weights of both signs, zeros and a tiny one, and eps 0.1: in float64 the tolerance of
1e-12 rejects every forgotten term, each of which costs at least 1e-3.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from canon_bridge import canonize, plan
from tests.support.errors import relative_error
from tests.support.pieces import NETWORKS, Preactivation, Written, check, conv, image, norm, tiny_densenet
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

DTYPE = torch.float64


@pytest.mark.parametrize("clipped", ["absorb", "pass"])
@pytest.mark.parametrize("size", [32, 33, 47])
def test_densenet_at_even_and_odd_sizes(size: int, clipped: str) -> None:
    check(tiny_densenet(), torch.randn(2, 3, size, size, dtype=DTYPE), clipped=clipped)


@pytest.mark.parametrize("options", [{"memory_efficient": True}, {"drop_rate": 0.5}, {"bn_size": 2}])
def test_every_densenet_that_torchvision_builds(options: dict[str, Any]) -> None:
    check(tiny_densenet(**options), torch.randn(1, 3, 32, 32, dtype=DTYPE))


@pytest.mark.parametrize("network", ["resnet18", "vgg11_bn"])
def test_other_known_networks(network: str) -> None:
    check(randomize(NETWORKS[network]().double()), torch.randn(1, 3, 32, 32, dtype=DTYPE))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("prefer", ["left", "right"])
def test_single_precision_with_mild_statistics(network: str, prefer: str) -> None:
    model, x = randomize(NETWORKS[network](), mild=True), torch.randn(2, 3, 32, 32)
    expected = model(x)
    with canonize(model, prefer=prefer):
        assert relative_error(model(x), expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_its_function_roughly(dtype: torch.dtype) -> None:
    model = randomize(nn.Sequential(conv(), norm(), nn.ReLU(), conv(), nn.Tanh(), norm(), nn.ReLU(), conv()), mild=True)
    x = image().float()
    expected = model(x)
    for prefer in ("left", "right"):
        with canonize(model.to(dtype), prefer=prefer):
            value = model(x.to(dtype))
            assert {tensor.dtype for tensor in model.parameters()} == {value.dtype} == {dtype}
            # Some roundings of the dtype; a forgotten term costs ten times as much.
            assert relative_error(value.float(), expected) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("network", NETWORKS)
def test_merged_norms_hold_the_identity_and_nothing_is_shared(network: str) -> None:
    model, calls = randomize(NETWORKS[network]()), Counter[nn.Module]()
    with canonize(model):
        for module in model.modules():
            module.register_forward_hook(lambda module, *_: calls.update([module]))
        model(torch.randn(1, 3, 32, 32))
        for layer in (module for module in calls if isinstance(module, _BatchNorm)):
            assert (layer.eps, layer.running_mean.abs().max(), layer.bias.abs().max()) == (0, 0, 0)
            assert bool((layer.running_var == 1).all())
            assert bool((layer.weight == 1).all())
        assert set(calls.values()) == {1}
        again = plan(model)  # nothing is left to do on the canonical model
        assert (again.merges, again.leftovers, again.rewrites) == ((), (), ())


def test_gradients_are_those_of_the_original_where_relevance_passes() -> None:
    model, x = tiny_densenet(), torch.randn(1, 3, 32, 32, dtype=DTYPE, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x)[0, 2], x)
    for prefer in ("left", "right"):
        with canonize(model, prefer=prefer, clipped="pass"):
            assert relative_error(torch.autograd.grad(model(x)[0, 2], x)[0], expected) < 1e-10


LEFTOVERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "1d (N, C)": (lambda: nn.BatchNorm1d(4), image(3, 4)),
    "1d (N, C, L)": (lambda: nn.BatchNorm1d(4), image(3, 4, 5)),
    "1d without affine": (lambda: nn.BatchNorm1d(4, affine=False), image(3, 4)),
    "2d": (lambda: nn.BatchNorm2d(4), image()),
    "2d, one of each": (lambda: nn.BatchNorm2d(1), image(1, 1, 1, 1) + 3),
    "2d, empty batch": (lambda: nn.BatchNorm2d(4), image()[:0]),
    "2d, channels last": (lambda: nn.BatchNorm2d(4), image().to(memory_format=torch.channels_last)),
    "3d": (lambda: nn.BatchNorm3d(4), image(2, 4, 2, 3, 4)),
    "sync": (lambda: nn.SyncBatchNorm(4), image()),
}


@pytest.mark.parametrize("leftover", ["linear", "keep"])
@pytest.mark.parametrize("kind", LEFTOVERS)
def test_a_norm_that_nothing_can_take(kind: str, leftover: str) -> None:
    build, x = LEFTOVERS[kind]
    model = randomize(nn.Sequential(nn.Tanh(), build(), nn.Sigmoid()).double())
    layer, before, expected = model[1], Snapshot(model), model(x)
    with canonize(model, leftover=leftover):
        value = model(x)
        assert value.shape == expected.shape
        assert x.numel() == 0 or relative_error(value, expected) < 1e-12
        assert (model[1] is layer) == (leftover == "keep")
        if leftover == "linear":
            assert isinstance(model[1], nn.Conv2d)  # a layer that linear rules know
            assert not model[1].training
    before.check()


def test_a_leftover_that_is_registered_under_two_names_is_replaced_under_both() -> None:
    layer = norm()
    model = Written(lambda m, x: m.net(x), layer=layer, net=nn.Sequential(layer, nn.Tanh(), conv()))
    check(randomize(model), image())


@pytest.mark.parametrize("merge", [(nn.Linear(5, 5), nn.BatchNorm1d(5)), (nn.BatchNorm1d(5), nn.Linear(5, 5))])
def test_a_norm_merged_with_a_linear_layer_refuses_sequences_aloud(merge: tuple[nn.Module, nn.Module]) -> None:
    # On (N, C, L) one acts on C and the other on L: equal widths do not make the merge right.
    model, x = randomize(nn.Sequential(nn.Tanh(), *merge, nn.Tanh()).double()), image(2, 5, 5)
    before, expected = Snapshot(model), model(x)
    with canonize(model):
        assert model(x[0]).shape == (5, 5)
        with pytest.raises(ValueError, match=r"\(N, C\).*\(2, 5, 5\)"):
            model(x)
    before.check()
    assert torch.equal(model(x), expected)


class Overwriting(Preactivation):
    """The identity branch is the tensor that the first ReLU has overwritten by then."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(self.relu(x)))
        y = self.norm2(self.shortcut(self.conv2(y)))
        y += x
        return self.relu(y)


def loop(model: nn.Module, x: Tensor) -> Tensor:
    for layer in model.layers.values() if isinstance(model.layers, nn.ModuleDict) else model.layers:
        x = layer(x)
    return x


def layers() -> list[nn.Module]:
    relu = nn.ReLU(True)
    return [conv(), norm(), relu, conv(groups=2), norm(), relu, nn.MaxPool2d(2), norm(), relu, conv(), relu]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "preactivation": lambda: nn.Sequential(conv(), Preactivation(), Preactivation(), norm(), nn.ReLU(), conv()),
    "identity branch overwritten": lambda: nn.Sequential(conv(), Overwriting(), Overwriting()),
    "one block twice": lambda: nn.Sequential(conv(), *[Preactivation()] * 2),
    "sequential": lambda: nn.Sequential(*layers()),
    "list": lambda: Written(loop, layers=nn.ModuleList(layers())),
    "dictionary": lambda: Written(loop, layers=nn.ModuleDict({f"a{i}": m for i, m in enumerate(layers())})),
    "keywords": lambda: Written(lambda m, x: m.b(input=m.norm(input=m.a(input=x))), a=conv(), b=conv(), norm=norm()),
    "sum()": lambda: Written(lambda m, x: sum([m.norm(m.a(x)), x, F.relu(x)]), a=conv(), norm=norm()),
    "only norms": lambda: nn.Sequential(norm(), norm(), nn.ReLU(), norm()),
    "empty": lambda: nn.Sequential(),
    "bare layer": lambda: conv(),
    "forward of a child called": lambda: Written(lambda m, x: m.a.forward(m.norm(x)), a=conv(), norm=norm()),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_small_models(name: str, last: bool) -> None:
    model = randomize(MODELS[name]().double())
    x = image(2, 4, 8, 8)
    if last:
        model, x = (part.to(memory_format=torch.channels_last) for part in (model, x))
    check(model, x)


@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_one(batch: int) -> None:
    model, x = tiny_densenet(), torch.randn(batch, 3, 32, 32, dtype=DTYPE)
    expected = model(x)
    for prefer in ("left", "right"):
        with canonize(model, prefer=prefer):
            value = model(x)
        assert value.shape == expected.shape
        assert batch == 0 or relative_error(value, expected) < 1e-12
