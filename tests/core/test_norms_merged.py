"""A merged norm is the identity, costs next to nothing, and what is saved harms nobody."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize
from tests.support.errors import relative_error
from tests.support.pieces import conv, norm
from tests.support.statistics import randomize

TINY = 64 * torch.finfo(torch.float64).eps


def merged() -> tuple[nn.Sequential, nn.Module]:
    """Return a canonical-to-be model, and its norm, which becomes the identity."""
    model = nn.Sequential(conv(), norm(), nn.ReLU(), conv())
    return randomize(model.double().eval()), model[1]


@torch.no_grad()
def test_what_a_merged_norm_returns_may_be_overwritten() -> None:
    model, layer = merged()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with canonize(model):
        before, y = x.clone(), layer(x)
        assert y is not x
        assert torch.equal(y, x)
        y.relu_()
        assert torch.equal(x, before)
        assert torch.equal(y, before.relu())
        z = layer(x)
        x.add_(1)
        assert torch.equal(z, before)


def rescale(layer: Any) -> None:
    layer.weight.mul_(3)


def rescale_data(layer: Any) -> None:
    layer.weight.data.mul_(3)


def replace(layer: Any) -> None:
    layer.weight = nn.Parameter(layer.weight * 3)


def rescale_variance(layer: Any) -> None:
    layer.running_var.fill_(1 / 9)


def shift(layer: Any) -> None:
    layer.load_state_dict({**layer.state_dict(), "bias": layer.bias + 1})


def enlarge_eps(layer: Any) -> None:
    layer.eps = 3.0


@pytest.mark.filterwarnings("ignore::canon_bridge.LostChangeWarning")
@pytest.mark.parametrize(
    ("change", "wanted"),
    [(f, lambda x: 3 * x) for f in (rescale, rescale_data, replace, rescale_variance)]
    + [(shift, lambda x: x + 1), (enlarge_eps, lambda x: x / 2)],
)
@torch.no_grad()
def test_what_is_changed_in_the_block_counts(change: Callable[[Any], None], wanted: Callable[[Tensor], Tensor]) -> None:
    model, layer = merged()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with canonize(model):
        assert torch.equal(layer(x), x)
        change(layer)
        assert relative_error(layer(x), wanted(x)) < TINY


@torch.no_grad()
def test_what_a_norm_refuses_is_refused_and_its_modes_are_kept() -> None:
    model, layer = merged()
    with canonize(model):
        for shape in ((2, 4, 5), (2, 5, 4, 4)):
            with pytest.raises((ValueError, RuntimeError)):
                layer(torch.ones(*shape, dtype=torch.float64))
        x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
        layer.train()
        with pytest.raises(ValueError, match="training mode"):  # it has none
            layer(x)
        layer.eval()
        assert torch.equal(layer(x), x)


@torch.no_grad()
@pytest.mark.parametrize("inference", [True, False])
def test_every_kind_of_memory(inference: bool) -> None:
    model, layer = merged()
    whole = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    of_numpy = torch.from_numpy(whole.numpy().copy())
    with canonize(model), torch.inference_mode(inference):
        channels_last = whole.clone(memory_format=torch.channels_last)
        for x in (whole, channels_last, of_numpy, whole.transpose(2, 3), whole[:, :, :1].expand(2, 4, 5, 5), whole[:0]):
            before, y = x.clone(), layer(x)
            assert torch.equal(y, before)
            y.add_(1)
            assert torch.equal(x, before)
            assert torch.equal(y, before + 1)


@torch.no_grad()
def test_threads_share_an_input() -> None:
    model, layer = merged()
    with canonize(model), ThreadPoolExecutor(4) as pool:
        for _ in range(50):
            x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
            wanted = x.clone().relu_()
            assert all(torch.equal(y, wanted) for y in pool.map(lambda _: layer(x).relu_(), range(8)))  # noqa: B023
            assert torch.equal(x.relu(), wanted)


def test_gradients_reach_the_parameters_of_a_merged_norm() -> None:
    model, layer = merged()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with canonize(model):
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        assert relative_error(layer.weight.grad, x.sum((0, 2, 3))) < TINY
