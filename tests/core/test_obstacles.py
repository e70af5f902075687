"""What stands in the way of a merge is named, and the function is kept all the same."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from canon_bridge import canonize
from canon_bridge.core.chains import Obstacle
from tests.conftest import alive, randomize, relative_error
from tests.core.test_chains import Model, chain, conv, image, norm
from tests.core.test_explicit import Written


class Renamed(nn.Conv2d):
    """A subclass, which may compute anything from its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) ** 2


def own_forward() -> nn.Module:
    layer = conv()
    layer.forward = lambda x: nn.Conv2d.forward(layer, x) ** 2
    return layer


def old_style(kind: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        return getattr(nn.utils, kind)(conv()).eval()


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**2


def parametrized() -> nn.Module:
    layer = conv()
    parametrize.register_parametrization(layer, "weight", Square())
    return layer


def behind(*modules: Any) -> Model:
    return lambda: nn.Sequential(
        nn.MaxPool2d(2), norm(), *(m() if not isinstance(m, nn.Module) else m for m in modules)
    )


def written(function: Callable[[nn.Module, Tensor], Any], **children: Callable[[], nn.Module]) -> Model:
    return lambda: Written(function, norm=norm(), **{name: child() for name, child in children.items()})


COUNTS, DIVIDES, FLAT = "counts its zero padding", "divisor_override", "flatten over other dimensions"
COMPUTED = "its weight is computed in forward"
# name: (model, input, norm, direction, what the reason says)
OBSTACLES: dict[str, tuple[Model, Tensor, str, str, str]] = {
    "first": (lambda: nn.Sequential(norm(), conv()), image(), "0", "left", "no linear layer comes before"),
    "last": (behind(), image(), "1", "right", "the output of the model behind it"),
    "max pool": (behind(lambda: nn.MaxPool2d(2), conv), image(), "1", "right", r"2 \(MaxPool2d\) behind it"),
    "max pool before": (behind(conv), image(), "1", "left", r"0 \(MaxPool2d\) before it is not linear"),
    "tanh": (behind(nn.Tanh, conv), image(), "1", "right", r"2 \(Tanh\) behind it"),
    "two norms": (behind(norm, conv), image(), "1", "right", r"2 \(BatchNorm2d\) behind it"),
    "two relus": (behind(nn.ReLU, nn.ReLU, conv), image(), "1", "right", "two activations follow it, 2 and 3"),
    "counts padding": (behind(lambda: nn.AvgPool2d(3, 1, 1), conv), image(), "1", "right", COUNTS),
    "counts padding, before": (
        lambda: nn.Sequential(conv(), nn.AvgPool2d(3, 1, 1), norm()),
        *(image(), "2", "left", COUNTS),
    ),
    "divisor": (behind(lambda: nn.AvgPool2d(2, divisor_override=3), conv), image(), "1", "right", DIVIDES),
    "channels of the pool": (behind(nn.Flatten(2), nn.Linear(9, 2)), image(), "1", "right", FLAT),
    "flatten(0)": (
        written(lambda m, x: m.fc(torch.flatten(m.norm(x))), fc=lambda: nn.Linear(288, 2)),
        *(image(), "norm", "right", FLAT),
    ),
    "last dimension": (behind(nn.Linear(3, 2)), image(), "1", "right", "acts on the last dimension"),
    "last dimension, before": (
        lambda: nn.Sequential(nn.Linear(6, 4), norm()),
        *(image(), "1", "left", "acts on the last dimension"),
    ),
    "other channels": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(5, 3)),
        *(image(2, 4, 5), "0", "right", "takes 5 channels, it has 4"),
    ),
    "one of two consumers": (
        written(lambda m, x: (y := m.norm(x), m.a(y) + y)[-1], a=conv),
        *(image(), "norm", "right", r"add \(Add\) behind it is not linear"),
    ),
    "another consumer of the conv": (
        written(lambda m, x: (y := m.a(x), m.norm(y) + y)[-1], a=conv),
        *(image(), "norm", "left", r"a \(Conv2d\) before it has other consumers"),
    ),
    "read after it was overwritten": (
        written(lambda m, x: (y := m.norm(x), m.a(m.relu(y)) + m.b(y))[-1], a=conv, b=conv, relu=lambda: nn.ReLU(True)),
        *(image(), "norm", "right", "overwrites a tensor that is read again later"),
    ),
    "conv called twice": (
        written(lambda m, x: m.a(m.a(m.norm(x))), a=conv),
        *(image(), "norm", "right", "a is called 2 times"),
    ),
    "conv called twice, before": (
        written(lambda m, x: m.norm(m.a(m.a(x))), a=conv),
        *(image(), "norm", "left", "a is called 2 times"),
    ),
    "norm called twice": (
        written(lambda m, x: m.norm(m.a(m.norm(x))), a=conv),
        *(image(), "norm", "right", "it is called 2 times"),
    ),
    "activation called twice": (
        written(
            lambda m, x: m.a(m.act(m.norm(x))) + m.b(m.act(m.other(x))),
            **{"a": conv, "b": conv, "other": norm, "act": lambda: nn.Sequential(nn.ReLU())},
        ),
        *(image(), "norm", "right", r"act\.0 behind it is called 2 times"),
    ),
    "subclass": (behind(lambda: Renamed(4, 4, 1)), image(), "1", "right", "behind it is not linear"),
    "own forward": (behind(own_forward), image(), "1", "right", r"2 \(Conv2d\) behind it is not linear"),
    "parametrized": (behind(parametrized), image(), "1", "right", "ParametrizedConv2d"),
    "weight_norm": (behind(lambda: parametrizations.weight_norm(conv())), image(), "1", "right", "ParametrizedConv2d"),
    "old weight_norm": (behind(lambda: old_style("weight_norm")), image(), "1", "right", COMPUTED),
    "old spectral_norm": (behind(lambda: old_style("spectral_norm")), image(), "1", "right", COMPUTED),
    "pruned": (behind(lambda: prune.l1_unstructured(conv(), "weight", 0.5)), image(), "1", "right", COMPUTED),
    "by keyword": (
        written(lambda m, x: m.a(input=m.norm(input=x)), a=conv),
        *(image(), "norm", "right", "behind it is not linear"),
    ),
    "not called": (written(lambda m, x: (m.norm(x), m.a(x))[-1], a=conv), image(), "norm", "right", "nothing reads"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_the_obstacle_is_named_and_the_function_is_kept(name: str) -> None:
    build, x, path, direction, reason = OBSTACLES[name]
    model = randomize(build().double())
    found = chain(model, path, direction)
    assert isinstance(found, Obstacle)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found.reason)
    expected = model(x)
    with canonize(model, prefer=direction):
        assert alive(model) == []
        assert relative_error(model(x), expected) < 1e-12
    assert relative_error(model(x), expected) == 0
