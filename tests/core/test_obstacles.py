"""What stands in the way of a merge is named, and the function is kept all the same."""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from canon_bridge import canonize
from canon_bridge.core.plan import Obstacle
from tests.support.decisions import search
from tests.support.errors import alive, relative_error
from tests.support.pieces import BOTH, Written, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

Model = Callable[[], nn.Module]


class Squared(nn.Conv2d):
    """A subclass that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) ** 2


def own_forward() -> nn.Module:
    layer = conv()
    layer.forward = lambda x: nn.Conv2d.forward(layer, x) ** 2
    return layer


def half_computed() -> nn.Module:
    """Return a layer whose weight is computed in a way that is not known: by a hook."""
    layer = conv()
    weight = layer.weight
    del layer.weight
    layer.raw = weight
    layer.weight = weight.detach() * 2
    layer.register_forward_pre_hook(lambda m, _: setattr(m, "weight", m.raw * 2))
    return layer


def behind(*modules: Callable[[], nn.Module]) -> Model:
    return lambda: nn.Sequential(nn.MaxPool2d(2), norm(), *(module() for module in modules))


def written(function: Callable[[nn.Module, Tensor], Any], **children: Callable[[], nn.Module]) -> Model:
    return lambda: Written(function, norm=norm(), **{name: child() for name, child in children.items()})


def twice_in_place(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x)
    z = y.flatten(2)  # another name of the same memory
    z.relu_()
    return m.a(y)


def added_in_place(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x)
    z = m.a(y)
    y.add_(1)
    return z + m.a(y)


def unread(m: nn.Module, x: Tensor) -> Tensor:
    first, _ = m.norm(x).chunk(2, 1)
    return m.a(first)


COUNTS = r"^\d \(AvgPool2d\) does not keep constants: it counts the padding"
DIVIDES = r"^\d \(AvgPool2d\) does not keep constants: it divides by another number"
OVERWRITES, OTHER = "overwrites a tensor that is read again", "acts on another dimension than the channels"
# name: (model, norm, direction, what the reason says)
OBSTACLES: dict[str, tuple[Model, str, str, str]] = {
    "first": (lambda: nn.Sequential(norm(), conv()), "0", "left", "no linear layer comes before"),
    "last": (behind(), "1", "right", "the output of the model after it"),
    "max pool before": (behind(conv), "1", "left", r"0 \(MaxPool2d\) before it is not linear"),
    "softmax": (behind(lambda: nn.Softmax(1), conv), "1", "right", r"2 \(Softmax\) after it is not linear"),
    "indices": (
        written(lambda m, x: m.a(m.pool(m.norm(x))[0]), a=conv, pool=lambda: nn.MaxPool2d(2, return_indices=True)),
        *("norm", "right", r"pool \(MaxPool2d\) after it"),
    ),
    "counts padding": (behind(lambda: nn.AvgPool2d(3, 1, 1), conv), "1", "right", COUNTS),
    "counts padding of one axis": (behind(lambda: nn.AvgPool2d(3, 1, (0, 1)), conv), "1", "right", COUNTS),
    "counts padding, before": (lambda: nn.Sequential(conv(), nn.AvgPool2d(3, 1, 1), norm()), "2", "left", COUNTS),
    "counts padding, by function": (
        written(lambda m, x: m.a(F.avg_pool2d(m.norm(x), 3, 1, 1)), a=conv),
        *("norm", "right", r"avg_pool2d \(AvgPool2d\) does not keep constants: it counts the padding"),
    ),
    "counts padding of computed size": (
        written(lambda m, x: m.a(F.avg_pool2d(m.norm(x), x.dim() - 1, 1, 1)), a=conv),
        *("norm", "right", r"avg_pool2d does not keep constants: it counts the padding"),
    ),
    "counts padding, far before the layer": (
        behind(
            lambda: nn.AvgPool2d(3, 1, 1),
            lambda: nn.Flatten(2),
            lambda: nn.AdaptiveAvgPool1d(2),
            nn.Flatten,
            lambda: nn.Linear(8, 2),
        ),
        *("1", "right", COUNTS),
    ),
    "counts padding, and an activation": (behind(lambda: nn.AvgPool2d(3, 1, 1), nn.GELU, conv), "1", "right", COUNTS),
    "divisor": (behind(lambda: nn.AvgPool2d(2, divisor_override=3), conv), "1", "right", DIVIDES),
    "divisor of a point": (
        written(lambda m, x: m.a(F.avg_pool2d(m.norm(x), x.shape[2:], divisor_override=3)), a=conv),
        *("norm", "right", "avg_pool2d does not keep constants: it divides by another number"),
    ),
    "divisor, before": (
        lambda: nn.Sequential(conv(), nn.AvgPool2d(2, divisor_override=3), norm()),
        "2",
        "left",
        DIVIDES,
    ),
    "pads with zeros": (
        behind(lambda: nn.ZeroPad2d(1), conv),
        "1",
        "right",
        r"2 \(ZeroPad2d\) does not keep constants",
    ),
    "pads with ones": (
        written(lambda m, x: m.a(F.pad(m.norm(x), (1, 0), value=1.0)), a=conv),
        *("norm", "right", "pad does not keep constants: it puts in other numbers"),
    ),
    "sum": (
        written(lambda m, x: m.a(m.norm(x).sum((2, 3), keepdim=True)), a=conv),
        *("norm", "right", "sum does not keep constants: it sums"),
    ),
    "mean over channels": (
        written(lambda m, x: m.a(m.norm(x).mean(1, keepdim=True).expand(-1, 4, -1, -1)), a=conv),
        *("norm", "right", "mean does not keep constants: it sums, scales or mixes channels"),
    ),
    "exp": (written(lambda m, x: m.a(torch.exp(m.norm(x))), a=conv), "norm", "right", "^exp after it is not linear"),
    "layer norm": (
        written(lambda m, x: m.a(F.layer_norm(m.norm(x), (6, 6))), a=conv),
        *("norm", "right", "^layer_norm after it is not linear"),
    ),
    "log softmax": (
        written(lambda m, x: m.a(m.norm(x).log_softmax(1)), a=conv),
        *("norm", "right", "^log_softmax after it is not linear"),
    ),
    "channels of the pool": (behind(lambda: nn.Flatten(2), lambda: nn.Linear(9, 2)), "1", "right", OTHER),
    "flatten(0)": (
        written(lambda m, x: m.fc(torch.flatten(m.norm(x))), fc=lambda: nn.Linear(288, 2)),
        *("norm", "right", OTHER),
    ),
    "last dimension": (behind(lambda: nn.Linear(3, 2)), "1", "right", OTHER),
    "last dimension, before": (lambda: nn.Sequential(nn.Linear(6, 4), norm()), "1", "left", OTHER),
    "activation on the last dimension": (
        written(lambda m, x: m.fc(m.act(m.norm(x).permute(0, 2, 3, 1))), act=nn.GELU, fc=lambda: nn.Linear(4, 2)),
        *("norm", "right", "act acts on another dimension than the channels"),
    ),
    "other channels": (
        lambda: nn.Sequential(nn.MaxPool2d(2), nn.Flatten(2), nn.BatchNorm1d(4), nn.Linear(9, 3)),
        *("2", "right", "takes 9 channels, it has 4"),
    ),
    "a multiple of the channels": (
        lambda: nn.Sequential(nn.MaxPool2d((1, 3)), nn.Flatten(2), nn.BatchNorm1d(4), nn.Linear(12, 3)),
        *("2", "right", "takes 12 channels, it has 4"),
    ),
    "joined along another dimension, before": (
        written(lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], 2)), a=conv, b=conv),
        *("norm", "left", OTHER),
    ),
    "one of two consumers": (
        written(lambda m, x: (y := m.norm(x), m.a(y) + y)[-1], a=conv),
        *("norm", "right", r"add \(Add\) after it is not linear"),
    ),
    "gate": (
        written(lambda m, x: m.a(m.norm(x) * torch.sigmoid(m.norm(x).mean((2, 3), True))), a=conv),
        *("norm", "right", r"multiply \(Multiply\) after it is not linear"),
    ),
    "another consumer of the conv": (
        written(lambda m, x: (y := m.a(x), m.norm(y) + y)[-1], a=conv),
        *("norm", "left", r"a \(Conv2d\) before it has other consumers"),
    ),
    "overwritten under another name": (written(twice_in_place, a=conv), "norm", "right", OVERWRITES),
    "overwritten between two reads": (written(added_in_place, a=conv), "norm", "right", r"add \(Add\) after it"),
    "concatenated with itself": (
        lambda: Written(lambda m, x: (y := m.a(x), m.norm(torch.cat([y, y], 1)))[-1], a=conv(), norm=norm(8)),
        *("norm", "left", "a channel of a comes to several of the norm"),
    ),
    "unread part": (written(unread, a=lambda: conv(2)), "norm", "right", "nothing reads its output"),
    "subclass": (behind(lambda: Squared(4, 4, 1)), "1", "right", r"2 \(Squared\) after it is not linear"),
    "own forward": (behind(own_forward), "1", "right", r"2 \(Conv2d\) after it is not linear"),
    "computed by a hook": (behind(half_computed), "1", "right", "its weight is neither a Parameter nor computed"),
    "not called": (written(lambda m, x: (m.norm(x), m.a(x))[-1], a=conv), "norm", "right", "nothing reads"),
    "weights that forward reads": (
        written(lambda m, x: F.conv2d(m.a(m.norm(x)), m.a.weight * 2), a=conv),
        *("norm", "right", "a forward reads the parameters of a by itself"),
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_the_obstacle_is_named_and_the_function_is_kept(name: str) -> None:
    build, path, direction, reason = OBSTACLES[name]
    model, x = randomize(build().double()), image()
    found = search(model, path, direction)
    assert isinstance(found, Obstacle)
    assert re.search(reason, found.reason), found.reason
    before, expected = Snapshot(model), model(x.clone())
    with canonize(model, prefer=direction):
        assert alive(model) == []
        assert relative_error(model(x.clone()), expected) < 1e-12
    if name != "computed by a hook":  # which writes a new weight at every call
        before.check()
    assert relative_error(model(x.clone()), expected) == 0


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**2


def parametrized() -> nn.Module:
    layer = conv()
    parametrize.register_parametrization(layer, "weight", Square())
    return layer


def old_style(kind: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        return getattr(nn.utils, kind)(conv()).eval()


COMPUTED: dict[str, Model] = {
    "parametrized": parametrized,
    "weight_norm": lambda: parametrizations.weight_norm(conv()),
    "old weight_norm": lambda: old_style("weight_norm"),
    "old spectral_norm": lambda: old_style("spectral_norm"),
    "pruned": lambda: prune.l1_unstructured(conv(), "weight", 0.5),
    "pruned bias": lambda: prune.l1_unstructured(conv(), "bias", 2),
}


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("direction", ["left", "right"])
def test_a_weight_that_is_computed_in_a_known_way_is_no_obstacle(name: str, direction: str) -> None:
    layers, path = ([COMPUTED[name](), norm()], "1") if direction == "left" else ([norm(), COMPUTED[name]()], "0")
    model, x = randomize(nn.Sequential(*layers).double()), image()
    expected = model(x)
    assert not isinstance(search(model, path, direction), Obstacle)
    with canonize(model, prefer=direction):
        assert alive(model) == []
        assert relative_error(model(x), expected) < 1e-12
    assert relative_error(model(x), expected) == 0


CALLED_BY_NAME: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "activation": lambda m, x: m.fc(m.norm(m.act(input=x))),
    "Linear": lambda m, x: m.norm(m.fc(input=x)),
    "concatenation": lambda m, x: m.norm(torch.cat(tensors=[m.act(input=x[:, :2]), x[:, 2:]], dim=1)),
    "sum": lambda m, x: m.fc(m.norm(torch.add(input=x, other=m.act(x)))),
    "norm": lambda m, x: m.fc(m.norm(input=m.fc(x))),
}


@pytest.mark.parametrize("name", CALLED_BY_NAME)
def test_a_layer_that_is_called_by_name_is_no_error(name: str) -> None:
    # A BatchNorm1d takes vectors and rows, so what comes before it is asked how many dimensions it has.
    model = randomize(Written(CALLED_BY_NAME[name], fc=nn.Linear(4, 4), norm=nn.BatchNorm1d(4), act=nn.Tanh()))
    x = image(3, 4)
    expected = model(x)
    for prefer in BOTH:
        with canonize(model, prefer=prefer):
            assert alive(model) == []
            assert relative_error(model(x), expected) < 1e-12


def compiled(how: str) -> nn.Module:
    """Return what torch.jit makes of a convolution with its norm."""
    source = nn.Sequential(conv(), norm()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        if how == "scripted":
            return torch.jit.script(source)
        traced = torch.jit.trace(source, torch.ones(1, 4, 6, 6))
        if how == "traced":
            return traced
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        return torch.jit.load(file)


@pytest.mark.parametrize("how", ["traced", "loaded", "scripted"])
def test_what_torch_jit_has_made_is_refused_wherever_it_stands(how: str) -> None:
    part = compiled(how)
    for model, place in (
        (part, "the model"),
        (nn.Sequential(conv(), part), "1"),
        (nn.Sequential(conv(), nn.Sequential(nn.ReLU(), part)), "1.1"),
    ):
        with pytest.raises(TypeError, match=rf"^{place} is a scripted module.*canonize the model it came from"):
            canonize(model.eval())
