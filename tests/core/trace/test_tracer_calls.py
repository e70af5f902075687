"""How a forward passes its tensors: by name, one tensor as two arguments, created in between."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import TracingError, canonize, plan
from tests.core.test_search_right import SIZES, written
from tests.support.decisions import LINEAR, Case, check
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, Written, alive, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

BY_NAME: dict[str, Any] = {
    "a layer": lambda m, x: m.a(input=m.norm(input=x)),
    "an activation": lambda m, x: m.a(m.act(input=m.norm(x))),
    "functions": lambda m, x: m.a(F.relu(input=F.dropout(input=m.norm(x), training=False))),
    "a function of torch": lambda m, x: m.a(torch.relu(input=m.norm(x))),
}


@pytest.mark.parametrize("name", BY_NAME)
def test_an_input_by_name_is_followed(name: str) -> None:
    check(Case(written(BY_NAME[name], a=conv, act=nn.ReLU), {"norm": "right a"}, SIZES))


def test_a_rule_sees_an_input_by_name() -> None:
    model, seen = Written(lambda m, x: m.a(input=x), a=conv()), []
    model.a.register_forward_pre_hook(lambda module, args: seen.append(len(args)))
    model(image())
    with canonize(model):
        model(image())
    assert seen == [0, 1]


def test_where_is_not_mistaken() -> None:
    build = written(lambda m, x: m.a(torch.where(condition=x > 0, input=m.norm(x), other=x)), a=conv)
    check(Case(build, {"norm": LINEAR}, SIZES))


MADE_IN_FORWARD: dict[str, Any] = {
    "an activation": lambda m, x: m.a(nn.ReLU()(m.norm(x))),
    "an activation in place": lambda m, x: m.a(nn.ReLU(inplace=True)(m.norm(x))),
    "a pool": lambda m, x: m.a(nn.MaxPool2d(3, 1, 1)(m.norm(x))),
    "a sequence": lambda m, x: m.a(nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.Hardtanh())(m.norm(m.b(x)))),
    "a sequence of its own layers": lambda m, x: nn.Sequential(m.norm, nn.ReLU(), m.a)(x),
}


@pytest.mark.parametrize("name", MADE_IN_FORWARD)
def test_modules_that_forward_makes(name: str) -> None:
    decision = "left b" if name == "a sequence" else "right a"
    check(Case(written(MADE_IN_FORWARD[name], a=conv, b=conv), {"norm": decision}, SIZES))


def test_a_layer_that_is_not_registered_is_an_error() -> None:
    hidden = conv().double()
    with pytest.raises(TracingError, match=r"it calls a Conv2d that has tensors and is not registered as a submodule"):
        plan(Written(lambda m, x: m.norm(hidden(x)), norm=norm()))


class Overwrites(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = norm()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y += 1.0 * y
        return self.norm(x)


class Pools(nn.Module):
    """The last stage of a feature pyramid: it lengthens the lists that it is given."""

    def forward(self, maps: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        names.append("pool")
        maps.append(F.max_pool2d(maps[-1], 1, 2))
        return maps, names


class Pyramid(nn.Module):
    """Lateral and output convolutions from coarse to fine, with BatchNorms, and a dict of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies = nn.ModuleList([nn.Sequential(conv(), norm(), nn.ReLU(True), nn.MaxPool2d(2)) for _ in range(3)])
        self.inner = nn.ModuleList([nn.Sequential(conv(4, 4, 1, 0), norm()) for _ in range(3)])
        self.outer = nn.ModuleList([nn.Sequential(norm(), conv()) for _ in range(3)])
        self.pools = Pools()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found: list[Tensor] = []
        for body in self.bodies:
            x = body(x)
            found.append(x)
        last = self.inner[-1](found[-1])
        results = [self.outer[-1](last)]
        for i in range(len(found) - 2, -1, -1):
            lateral = self.inner[i](found[i])
            last = lateral + F.interpolate(last, size=lateral.shape[-2:], mode="nearest")
            results.insert(0, self.outer[i](last))
        results, names = self.pools(results, [str(i) for i in range(len(found))])
        return dict(zip(names, results, strict=True))


@pytest.mark.parametrize("prefer", BOTH)
def test_a_feature_pyramid_whose_last_stage_lengthens_its_lists(prefer: Any) -> None:
    model = randomize(Pyramid().eval()).double()
    x, calls = image(2, 4, 24, 24), []
    expected = model(x)
    model.pools.register_forward_hook(lambda *_: calls.append(1))
    before = Snapshot(model)
    assert not plan(model, prefer=prefer).leftovers
    with canonize(model, prefer=prefer):
        got = model(x)
        assert calls == [1]
        assert list(got) == list(expected) == ["0", "1", "2", "pool"]
        assert all(relative_error(got[name], expected[name]) < 1e-12 for name in got)
        assert not alive(model)
    before.check()


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("prefer", BOTH)
def test_one_tensor_as_two_arguments(prefer: Any, same: bool) -> None:
    model = randomize(Written(lambda m, x: m.block(x, x if same else x * 2), block=Overwrites())).double()
    x, before = image(), Snapshot(model)
    expected = model(x.clone())
    with canonize(model, prefer=prefer):
        assert relative_error(model(x.clone()), expected) < 1e-12
    before.check()


def test_a_pool_tells_how_many_dimensions_there_are() -> None:
    for layers in (
        (nn.AdaptiveAvgPool1d(1), nn.BatchNorm1d(1), nn.Linear(1, 4)),
        (nn.Conv1d(1, 4, 1), nn.AvgPool1d(2), nn.BatchNorm1d(4), nn.Linear(3, 4)),
        (nn.Conv1d(1, 3, 1), nn.AdaptiveAvgPool1d(3), nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(3, 4)),
    ):
        model, x = randomize(nn.Sequential(*layers).double()), torch.randn(2, 1, 7, dtype=torch.float64)
        expected = model(x)
        with canonize(model):
            assert relative_error(model(x), expected) < 1e-12


SPELLINGS: dict[str, Any] = {
    "F.prelu": lambda m, x: F.prelu(x, m.slopes),
    "clip": lambda m, x: x.clip(0),
    "clip between numbers": lambda m, x: torch.clip(x, -0.5, max=0.5),
    "clamp_min": lambda m, x: x.clamp_min(0),
    "clamp_min_": lambda m, x: torch.clamp_min_(x, min=0),
    "F.elu_": lambda m, x: F.elu_(x, 0.5),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_more_spellings_of_activations(name: str) -> None:
    def build() -> nn.Module:
        model = Written(lambda m, x: m.a(SPELLINGS[name](m, m.norm(x))), a=conv(), norm=norm())
        model.slopes = nn.Parameter(torch.tensor([0.1, 0.2, -0.3, 1.5]))
        return model

    check(Case(build, {"norm": "right a"}, SIZES))


def test_a_mean_over_axis_is_a_mean() -> None:
    check(Case(written(lambda m, x: m.a(m.norm(x).mean(axis=(2, 3))), a=lambda: nn.Linear(4, 3)), {"norm": "right a"}))


def test_what_only_looks_like_an_activation_is_none() -> None:
    functions: tuple[Any, ...] = (
        lambda x: torch.ops.aten.elu_(x, 1.0, 2.0),
        lambda x: F.elu_(x, 1.0, 2.0),
        lambda x: x.clamp_min(0.5),
    )
    for function in functions:
        model, x = (
            randomize(
                Written(lambda m, x, function=function: m.a(function(m.norm(x))), a=conv(), norm=norm()).double()
            ),
            image(),
        )
        expected = model(x)
        with canonize(model):
            assert relative_error(model(x), expected) < 1e-12
