"""``prefer="untangled"``: layers before several BatchNorms are copied for each, and no activation is changed."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zennit.composites import EpsilonPlus

from canon_bridge import Leftover, Merge, Plan, Refusal, Untangled, canonize, canonized_copy, plan
from canon_bridge.captum import LRP, presets
from canon_bridge.zennit import ModelCanonizer
from tests.support.errors import relative_error
from tests.support.in_zennit import TARGET, attribute
from tests.support.models import images, small_densenet
from tests.support.named_norms import kinds
from tests.support.pieces import Written, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

TOLERANCE = 1e-12

__all__ = ["kinds"]  # the fixture


def what(made: Plan) -> dict[str, str]:
    """Return by the name of each BatchNorm what becomes of it, and where."""
    names = {Merge: "merge", Untangled: "copies", Leftover: "linear", Refusal: "stays"}
    return {entry.norm: " ".join([names[type(entry)], *(getattr(entry, "targets", ()))]) for entry in made.entries}


def check(model: nn.Module, x: Tensor, **decisions: str) -> None:
    """Compare what is decided, the function inside, and the model behind the block."""
    randomize(model)
    expected, snapshot = model(x), Snapshot(model)
    found = canonize(model, prefer="untangled")
    assert what(found.plan) == decisions
    with found:
        assert relative_error(model(x), expected) < TOLERANCE
        relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
        assert not any("forward" in vars(relu) for relu in relus)
    snapshot.check()
    assert relative_error(canonized_copy(model, prefer="untangled")(x), expected) < TOLERANCE


class Dense(nn.Module):
    """Two features with three readers in all, behind an input that no layer makes, as a DenseNet joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(3), conv(3, 4)
        self.norm2, self.conv2 = norm(7), conv(7, 2)
        self.norm3, self.head = norm(9), nn.Linear(9, 5)
        self.double()
        randomize(self)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv1(F.relu(self.norm1(x)))
        second = self.conv2(F.relu(self.norm2(torch.cat([x, first], 1))))
        last = F.relu(self.norm3(torch.cat([x, first, second], 1)))
        return self.head(last.mean((2, 3)))


class ByHand(nn.Module):
    """The same function with a convolution for each reader, in which its BatchNorm is folded by the formula."""

    def __init__(self, of: Dense) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(_diagonal(n, 0, 3) for n in (of.norm1, of.norm2, of.norm3))
        self.firsts = nn.ModuleList(_folded(of.conv1, n, 3) for n in (of.norm2, of.norm3))
        self.second, self.head = _folded(of.conv2, of.norm3, 7), copy.deepcopy(of.head)
        self.relu, self.pool = nn.ModuleList(nn.ReLU() for _ in range(3)), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (layer(x) for layer in self.inputs)
        first = self.relu[0](a)
        second = self.relu[1](torch.cat([b, self.firsts[0](first)], 1))
        last = self.relu[2](torch.cat([c, self.firsts[1](first), self.second(second)], 1))
        return self.head(self.pool(last).flatten(1))


def _map_of(norm: nn.BatchNorm2d, first: int, number: int) -> tuple[Tensor, Tensor]:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - scale * norm.running_mean
    return scale.detach()[first : first + number], shift.detach()[first : first + number]


def _folded(layer: nn.Conv2d, norm: nn.BatchNorm2d, first: int) -> nn.Conv2d:
    twin = copy.deepcopy(layer)
    scale, shift = _map_of(norm, first, layer.out_channels)
    twin.weight.data.mul_(scale[:, None, None, None])
    twin.bias.data.mul_(scale).add_(shift)
    return twin


def _diagonal(norm: nn.BatchNorm2d, first: int, number: int) -> nn.Conv2d:
    layer = nn.Conv2d(number, number, 1, groups=number).double()
    scale, shift = _map_of(norm, first, number)
    layer.weight.data.copy_(scale[:, None, None, None])
    layer.bias.data.copy_(shift)
    return layer


@pytest.mark.zennit
def test_maps_are_those_of_a_network_with_copies_written_by_hand():
    torch.manual_seed(0)
    model = Dense()
    x = images(size=9)
    twin = ByHand(model)
    assert relative_error(twin(x), model(x)) < TOLERANCE
    expected = attribute(twin, x, EpsilonPlus())
    found = {
        order: attribute(model, x, EpsilonPlus(canonizers=[ModelCanonizer(prefer=order)]))
        for order in ("untangled", "left", "right")
    }
    assert relative_error(found["untangled"], expected) < TOLERANCE
    assert relative_error(found["left"], expected) > 1e-2
    assert relative_error(found["right"], expected) > 1e-2
    by_captum = LRP(model, presets.epsilon_plus(), prefer="untangled").attribute(x, target=TARGET)
    assert relative_error(by_captum, expected) < TOLERANCE


def test_a_dense_block():
    decisions = {"norm1": "linear", "norm2": "copies conv1", "norm3": "copies conv1 conv2"}
    check(Dense(), images(size=9), **decisions)


def test_a_densenet_has_no_thresholded_relu():
    model, x = small_densenet(), images()
    found = plan(model, prefer="untangled")
    assert not any(merge.chain.absorbers for merge in found.merges)
    assert len(found.untangled) == 11
    assert [leftover.norm for leftover in found.leftovers] == ["features.denseblock1.denselayer1.norm1"]
    expected, snapshot = model(x), Snapshot(model)
    with canonize(model, prefer="untangled"):
        assert relative_error(model(x), expected) < TOLERANCE
    snapshot.check()


def two_readers(layer: nn.Module, channels: int, **norms: nn.Module) -> Written:
    def function(m: Any, x: Tensor) -> Tensor:
        y = m.layer(x)
        return m.a(y).relu() + m.b(y).sigmoid()

    kind = next(iter(norms.values()))
    return Written(function, layer=layer, a=kind, b=copy.deepcopy(kind))


LAYERS = {
    "conv1d": (nn.Conv1d(3, 6, 3, padding=1), nn.BatchNorm1d(6), (2, 3, 7)),
    "conv2d": (nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), (2, 3, 7, 6)),
    "conv3d": (nn.Conv3d(3, 6, 3, padding=1), nn.BatchNorm3d(6), (2, 3, 4, 5, 3)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 7, 6)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4), (2, 4, 7, 6)),
    "transposed": (nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), (2, 3, 4, 5)),
    "transposed, groups": (nn.ConvTranspose2d(4, 6, 3, 2, groups=2, bias=False), nn.BatchNorm2d(6), (2, 4, 4, 5)),
    "linear": (nn.Linear(3, 6), nn.BatchNorm1d(6), (4, 3)),
    "parametrized": (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6), (2, 3, 7, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    torch.manual_seed(0)
    layer, norm, shape = (copy.deepcopy(part) if isinstance(part, nn.Module) else part for part in LAYERS[name])
    model = two_readers(layer, 6, a=norm)
    if name == "linear":  # the number of dimensions is not known without values
        model.eval()
        randomize(model)
        x = image(*shape)
        expected = model(x)
        with canonize(model, prefer="untangled", example_inputs=x) as inside:
            assert relative_error(inside(x), expected) < TOLERANCE
        assert what(plan(model, prefer="untangled", example_inputs=x)) == {"a": "copies layer", "b": "copies layer"}
        return
    check(model, image(*shape), a="copies layer", b="copies layer")


def test_a_layer_that_has_a_border_map():
    # The first BatchNorm goes right, into a layer that is copied: its bias is a map by then.
    model = two_readers(nn.Sequential(norm(), conv(4, 6)), 6, a=norm(6))
    check(model, image(), **{"layer.0": "merge layer.1", "a": "copies layer.1", "b": "copies layer.1"})


def test_a_pool_on_the_way_and_a_part_that_no_layer_makes():
    def function(m: Any, x: Tensor) -> Tensor:
        y = m.layer(x)
        pooled = torch.cat([F.avg_pool2d(y, 2), F.max_pool2d(x, 2)[:, :3]], 1)
        return m.a(pooled).relu().mean() + m.b(y).relu()

    model = Written(function, layer=conv(), a=norm(7), b=norm())
    check(model, image(), a="copies layer", b="copies layer")


def test_a_norm_of_a_package_that_calls_its_activation(kinds):
    model = two_readers(conv(4, 6), 6, a=kinds("BatchNormAct2d")(6, nn.ReLU()))
    check(model, image(), a="copies layer", b="copies layer")


def sum_reads(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return m.a(y).relu() + m.b(y).relu() + y


def size_read(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return m.a(y).relu() + m.b(y).relu() * y.shape[1]


def part_read(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return m.a(y).relu() + m.b(torch.cat([y[:, :2], y[:, 2:4]], 1)).relu()


def called_twice(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return m.a(y).relu() + m.b(y).relu() + m.layer(-x).relu()


def overwritten(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return m.a(y).relu() + m.b(y.mul_(2)).relu()


def mixed(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return m.a(y).relu() + m.b(y.flip(1).reshape(-1, 2, 2, 36).transpose(1, 2).reshape(-1, 4, 6, 6)).relu()


def doubled(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return m.a(y).relu() + m.b(torch.cat([y[:, :2], y[:, :2]], 1)).relu()


@pytest.mark.parametrize("function", [doubled, sum_reads, size_read, part_read, overwritten, mixed])
def test_a_layer_that_is_read_in_another_way_is_not_copied(function):
    model = Written(function, layer=conv(), a=norm(), b=norm())
    check(model, image(), a="linear", b="linear")


def test_a_channel_that_comes_to_several_of_the_norm_is_not_copied():
    model = Written(lambda m, x: m.norm(torch.cat([m.layer(x)] * 2, 1)).relu(), layer=conv(), norm=norm(8))
    check(model, image(), norm="linear")


def test_each_call_of_a_layer_is_a_layer():
    model = Written(called_twice, layer=conv(), a=norm(), b=norm())
    check(model, image(), a="copies layer", b="copies layer")


def test_nothing_is_made_linear_that_is_to_be_kept():
    model, x = Dense(), images(size=9)
    found = canonize(model, prefer="untangled", leftover="keep")
    assert what(found.plan) == {"norm1": "stays", "norm2": "stays", "norm3": "stays"}
    expected = model(x)
    with found:
        assert relative_error(model(x), expected) < TOLERANCE


def test_the_state_inside_and_the_plan_in_words():
    model, x = Dense(), images(size=9)
    expected = model(x)
    with canonize(model, prefer="untangled"):
        state = model.state_dict()
        assert state["conv1.weight"].shape[0] == model.conv1.out_channels == 8
        model.load_state_dict(state)
        assert relative_error(model(x), expected) < TOLERANCE
    assert "merged left into copies" in str(plan(model, prefer="untangled"))


def test_another_number_of_dimensions_is_refused():
    model = two_readers(nn.Conv1d(3, 6, 1), 6, a=nn.BatchNorm1d(6))
    randomize(model)
    with canonize(model, prefer="untangled"), pytest.raises(ValueError, match="canonized for 3 dimensions here"):
        model(image(3, 6))


@pytest.mark.zennit
def test_gradients_reach_the_parameters_of_the_model():
    model, x = Dense(), images(size=9)
    composite = EpsilonPlus(canonizers=[ModelCanonizer(prefer="untangled", differentiable=True)])
    with composite.context(model) as inside:
        y = inside(x.requires_grad_())
        (relevance,) = torch.autograd.grad(y, x, y, create_graph=True)
    relevance.square().sum().backward()
    named = dict(model.named_parameters())
    assert all(named[name].grad.abs().sum() > 0 for name in ("conv1.weight", "norm3.weight", "norm1.bias"))

    def loss(value: float) -> float:
        weight = model.conv1.weight
        former = weight.data.clone()
        weight.data[1, 0, 1, 1] += value
        with torch.no_grad():
            model.zero_grad(set_to_none=False)
        with EpsilonPlus(canonizers=[ModelCanonizer(prefer="untangled")]).context(model) as inside:
            y = inside(x)
            (r,) = torch.autograd.grad(y, x, y.detach())
        weight.data.copy_(former)
        return float(r.square().sum())

    gradient = named["conv1.weight"].grad[1, 0, 1, 1].item()
    difference = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert abs(gradient - difference) < 1e-5 * abs(difference)


def test_what_is_alike_is_one_way_whatever_it_is_called():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.conv = norm(3), nn.ReLU(), conv(3, 3)
            self.second, self.other, self.last = norm(3), nn.ReLU(), conv(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.act(self.first(x))) + x
            return self.last(self.other(self.second(y)))

    found = plan(randomize(Pair()), prefer="untangled")
    reasons = [entry.reason for entry in found.leftovers]
    assert "act would have to be changed" in reasons[0]
    assert "other would have to be changed" in reasons[1]
    assert all("an activation would have to be changed" in entry.group[1] for entry in found.leftovers)
