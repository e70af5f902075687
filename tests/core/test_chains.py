"""Every chain by name, each on a small model whose function is compared as well."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune

from canon_bridge import canonize, plan
from canon_bridge.core.chains import Chain, ChainFinder, Obstacle, Target
from canon_bridge.core.explicit import make_explicit
from canon_bridge.core.trace import trace
from tests.conftest import Snapshot, randomize, relative_error
from tests.core.test_explicit import Written

Model = Callable[[], nn.Module]


def conv(channels: int = 4, out: int = 4, kernel: int = 3, padding: int = 1, **keywords: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, padding=padding, **keywords)


def norm(channels: int = 4) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


def image(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 4, 6, 6)), dtype=torch.float64)


def chain(model: nn.Module, path: str, direction: str) -> Chain | Obstacle:
    explicit = make_explicit(model, trace(model))
    finder = ChainFinder(explicit)
    (node,) = {n.target: n for n in explicit.operations if n.target == path}.values()
    return getattr(finder, direction)(node)


def is_merged(layer: nn.Module) -> bool:
    """Return whether a BatchNorm holds the values of the identity; it may refuse input of another rank."""
    values = ((layer.running_mean, 0), (layer.running_var, 1), (layer.weight, 1), (layer.bias, 0))
    return layer.eps == 0 and all(tensor is None or bool((tensor == value).all()) for tensor, value in values)


def check_function(model: nn.Module, x: Tensor, merged: bool = True) -> None:
    before, expected = Snapshot.of(model), model(x.clone()).detach().clone()
    for prefer in ("left", "right"):
        with canonize(model, prefer=prefer):
            assert all(is_merged(layer) for layer in model.modules() if isinstance(layer, _BatchNorm)) == merged
            assert relative_error(model(x.clone()), expected) < 1e-12
        before.check()


def head(width: int = 4) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)]


class DenseHead(nn.Module):
    """The end of a densely connected network: functional ReLU and pool behind the last BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.MaxPool2d(2), norm())
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.features(x), inplace=True)
        out = F.adaptive_avg_pool2d(out, (1, 1))
        return self.classifier(torch.flatten(out, 1))


def branches(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x)
    return m.a(y) + m.b(m.relu(y)) + m.c(m.relu2(y))


POOL, GLOBAL, FLATTEN = "average pooling", "adaptive average pooling", "flatten"
# name: (model, input, norm, direction, targets, what lies in between)
CHAINS: dict[str, tuple[Model, Tensor, str, str, dict[str, str | None], tuple[str, ...]]] = {
    "conv, norm": (lambda: nn.Sequential(conv(), norm()), image(), "1", "left", {"0": None}, ()),
    "linear, norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)),
        *(image(3, 4), "1", "left", {"0": None}, ()),
    ),
    "transposed conv, norm": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), norm(6)),
        *(image(), "1", "left", {"0": None}, ()),
    ),
    "conv, pool, dropout, norm": (
        lambda: nn.Sequential(conv(), nn.AvgPool2d(2), nn.Dropout2d(), norm()),
        *(image(), "3", "left", {"0": None}, (POOL, "dropout")),
    ),
    "norm, 1x1 conv": (lambda: nn.Sequential(norm(), conv(4, 4, 1, 0)), image(), "0", "right", {"1": None}, ()),
    "norm, padded conv": (lambda: nn.Sequential(norm(), conv()), image(), "0", "right", {"1": None}, ()),
    "norm, linear": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 5)),
        *(image(3, 4), "0", "right", {"1": None}, ()),
    ),
    "norm, relu, padded conv": (
        lambda: nn.Sequential(norm(), nn.ReLU(True), conv()),
        *(image(), "0", "right", {"2": "1"}, ("ReLU 1",)),
    ),
    "norm, relu, linear": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 5)),
        *(image(3, 4), "0", "right", {"2": "1"}, ("ReLU 1",)),
    ),
    "norm, relu, pool, flatten, linear as functions": (
        *(DenseHead, image(), "features.1", "right", {"classifier": "relu"}),
        ("ReLU relu", GLOBAL, FLATTEN),
    ),
    "norm, flatten, relu, dropout, linear: several features a channel": (
        lambda: nn.Sequential(norm(), nn.Flatten(), nn.ReLU(), nn.Dropout(), nn.Linear(144, 3)),
        *(image(), "0", "right", {"4": "2"}, (FLATTEN, "ReLU 2", "dropout")),
    ),
    "norm, pool that does not count its padding, conv": (
        lambda: nn.Sequential(norm(), nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), conv()),
        *(image(), "0", "right", {"2": None}, (POOL,)),
    ),
    "norm, three linear consumers": (
        lambda: Written(branches, norm=norm(), a=conv(), b=conv(), c=conv(), relu=nn.ReLU(), relu2=nn.ReLU(True)),
        *(image(), "norm", "right", {"a": None, "b": "relu", "c": "relu2"}, ("ReLU relu", "ReLU relu2")),
    ),
    "norm3d, relu, conv3d": (
        lambda: nn.Sequential(nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 3, padding=1)),
        *(image(1, 4, 3, 4, 5), "0", "right", {"2": "1"}, ("ReLU 1",)),
    ),
    "norm1d, conv1d": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Conv1d(4, 2, 3, padding=2)),
        *(image(2, 4, 5), "0", "right", {"1": None}, ()),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_chain_is_found_and_merging_it_keeps_the_function(name: str) -> None:
    build, x, path, direction, targets, through = CHAINS[name]
    model = randomize(build().double())
    before = Snapshot.of(model)
    found = chain(model, path, direction)
    before.check()
    assert isinstance(found, Chain), found
    assert (found.norm, found.direction, found.through) == (path, direction, through)
    assert found.targets == tuple(Target(*item) for item in targets.items())
    (merge,) = plan(model, prefer=direction).merges
    assert merge.chain == found
    check_function(model, x)


def test_a_weight_that_forward_reads_elsewhere_is_not_changed() -> None:
    # An autoencoder with tied weights: the decoder is the transposed encoder.
    def function(model: nn.Module, x: Tensor) -> Tensor:
        return F.linear(F.relu(model.norm(model.encode(x))), model.encode.weight.t())

    model = randomize(Written(function, encode=nn.Linear(6, 4), norm=nn.BatchNorm1d(4)))
    check_function(model, image(5, 6))


def test_statistics_that_forward_reads_elsewhere_are_not_changed() -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        return model.norm(model.a(x)) - model.norm.running_mean[:, None, None] * model.norm.weight[:, None, None]

    model, x = randomize(Written(function, norm=norm(), a=conv())), image()
    expected = model(x)
    (entry,) = plan(model).entries
    assert "reads its tensors by itself" in entry.reason
    with canonize(model):
        assert relative_error(model(x), expected) < 1e-12


def test_tied_parameters_of_two_layers_are_merged_apart() -> None:
    model = nn.Sequential(conv(), norm(), nn.Tanh(), conv(), norm())
    model[3].weight, model[4].weight = model[0].weight, model[1].weight
    check_function(randomize(model.double()), image())


def test_an_activation_in_place_on_a_view_that_another_consumer_reads() -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        y = model.norm(x)
        return model.fc(model.relu(y.flatten(1))) + model.a(y).flatten(1)

    model = Written(function, norm=norm(), fc=nn.Linear(144, 144), relu=nn.ReLU(True), a=conv())
    check_function(randomize(model), image())


# A 1d layer takes (C, L) as well as (N, C, L), so a BatchNorm1d over (N, C) next to one counts other channels.
UNBATCHED: dict[str, tuple[Model, Tensor]] = {
    "conv1d, norm": (lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), image(3, 8)),
    "norm, conv1d": (lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Conv1d(8, 6, 3)), image(8, 8)),
    "norm, pool, linear": (
        lambda: nn.Sequential(
            nn.BatchNorm1d(8), nn.AvgPool1d(3, 1, 1, count_include_pad=False), nn.ReLU(), nn.Linear(8, 2)
        ),
        image(3, 8),
    ),
    "linear, pool, norm": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.AvgPool1d(3, 1, 1, count_include_pad=False), nn.BatchNorm1d(8)),
        image(3, 8),
    ),
}


@pytest.mark.parametrize("name", UNBATCHED)
def test_a_1d_layer_without_a_batch_is_right_or_refused_aloud(name: str) -> None:
    build, x = UNBATCHED[name]
    model = randomize(build().double())
    before, expected = Snapshot.of(model), model(x)
    for prefer in ("left", "right"):
        try:
            with canonize(model, prefer=prefer):
                value = model(x)
        except ValueError:
            before.check()
        else:
            assert relative_error(value, expected) < 1e-12


def test_a_pruned_bias_is_merged_right_or_not_at_all() -> None:
    # Its hook writes the bias anew before each call.
    model = nn.Sequential(prune.l1_unstructured(conv(), "bias", 2), norm(), nn.ReLU(), conv())
    model, x = randomize(model.double()), image()
    expected = model(x)
    with canonize(model):
        assert relative_error(model(x), expected) < 1e-12


@pytest.mark.parametrize("prefer", ["left", "right"])
def test_every_merge_around_one_layer_is_carried_out(prefer: str) -> None:
    # The convolution in the middle takes a norm from each side, in either order of writing.
    model = nn.Sequential(nn.MaxPool2d(2), norm(), nn.ReLU(), conv(4, 6), norm(6), nn.ReLU(), nn.MaxPool2d(2))
    model = randomize(model.double())
    merges = {merge.norm: merge.chain.direction for merge in plan(model, prefer=prefer).merges}
    assert merges == {"1": "right", "4": "left"}
    check_function(model, image(2, 4, 12, 12))
