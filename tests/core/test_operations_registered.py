"""What ``register_operation`` teaches is known to planning, tracing and the rules of both frameworks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize, plan, register_operation
from canon_bridge.captum import LRP, presets
from canon_bridge.core import operations
from canon_bridge.core.operations import Kind
from canon_bridge.zennit import ModelCanonizer
from tests.support.errors import relative_error
from tests.support.in_zennit import TARGET, attribute, epsilon_composite
from tests.support.models import gradient_times_input
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

LRP_0 = 1e-30


def rectified(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.3 * x)


def moved(x: Tensor) -> Tensor:
    return x.flatten(2).roll(7, -1).view(x.shape)


def largest(x: Tensor) -> Tensor:
    return x.unfold(3, 2, 2).amax(-1).repeat_interleave(2, 3)


def weighted(x: Tensor) -> Tensor:
    return torch.einsum("nchw,wv->nchv", x, torch.linspace(-1, 1, 36, dtype=x.dtype).view(6, 6))


def both(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def gated(x: Tensor, y: Tensor) -> Tensor:
    return x * y.sigmoid()


torch.fx.wrap("rectified")
torch.fx.wrap("moved")
torch.fx.wrap("largest")
torch.fx.wrap("weighted")
torch.fx.wrap("both")
torch.fx.wrap("gated")


class Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return torch.where(x > 0, x, factor * x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, gradients[0], ctx.factor * gradients[0]), None


class Turned(torch.autograd.Function):
    """Linear: a sum of each channel and the next one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x + 0.5 * x.roll(1, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] + 0.5 * gradients[0].roll(-1, 1)


@torch.library.custom_op("canon_tests::halved", mutates_args=())
def halved(x: Tensor, factor: float) -> Tensor:
    return factor * (x + x.flip(3))


@halved.register_fake
def _(x: Tensor, factor: float) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.factor = inputs[1]


def _halved_backward(ctx: Any, gradient: Tensor) -> Any:
    return ctx.factor * (gradient + gradient.flip(3)), None


halved.register_autograd(_halved_backward, setup_context=_keep)

OPERATOR = torch.ops.canon_tests.halved

# name: (what is registered, its kind, the operation as forward calls it)
TAUGHT: dict[str, tuple[Callable[..., Any], str, Callable[[Tensor], Tensor]]] = {
    "wrapped, element-wise": (rectified, "elementwise", lambda h: rectified(h)),
    "wrapped, movement": (moved, "movement", lambda h: moved(h)),
    "wrapped, selection": (largest, "selection", lambda h: largest(h)),
    "wrapped, linear": (weighted, "linear", lambda h: weighted(h)),
    "wrapped, sum": (both, "sum", lambda h: both(h, 0.5 * h.flip(2))),
    "wrapped, by name": (both, "sum", lambda h: both(x=h, y=h.flip(2))),
    "autograd function, element-wise": (Rectified.apply, "elementwise", lambda h: Rectified.apply(h, 0.2)),
    "autograd function, linear": (Turned.apply, "linear", lambda h: Turned.apply(h)),
    "custom operator": (OPERATOR, "linear", lambda h: OPERATOR(h, 0.4)),
    "overload of a custom operator": (OPERATOR.default, "linear", lambda h: OPERATOR.default(h, 0.4)),
    "custom operator by an overload": (OPERATOR.default, "linear", lambda h: OPERATOR(h, factor=0.4)),
    "custom operator by its function": (halved, "linear", lambda h: halved(h, 0.4)),
}
UNKNOWN = [name for name in TAUGHT if name not in ("autograd function, element-wise",)]


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(operations, "_BY_FUNCTION", dict(operations._BY_FUNCTION))
    return iter(())


class Model(nn.Module):
    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.operation = operation
        self.last, self.fc = nn.Conv2d(4, 5, 3, padding=1), nn.Linear(180, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.operation(self.relu(self.norm(self.conv(x))))
        return self.fc(self.relu(self.last(h)).flatten(1))


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return randomize(Model(TAUGHT[name][2]).double()), torch.randn(2, 3, 6, 6, dtype=torch.float64)


def by_captum(model: nn.Module, x: Tensor, prefer: Any) -> Tensor:
    return LRP(model, presets.epsilon(LRP_0), prefer=prefer).attribute(x, target=TARGET)


def by_zennit(model: nn.Module, x: Tensor, prefer: Any) -> Tensor:
    return attribute(model, x, epsilon_composite(LRP_0, [ModelCanonizer(prefer=prefer)]))


@pytest.mark.parametrize("name", UNKNOWN)
def test_before_it_is_taught_it_is_named(name: str) -> None:
    model, x = build(name)
    before, expected = Snapshot(model), model(x)
    assert len(plan(model).uncovered) == 1
    for prefer in ("left", "right"):
        with canonize(model, prefer=prefer):
            assert relative_error(model(x), expected) < 1e-12
    before.check()


@pytest.mark.parametrize("by", [by_captum, by_zennit])
@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("name", TAUGHT)
def test_once_it_is_taught_its_rule_holds_in_both_frameworks(name: str, prefer: str, by: Callable[..., Tensor]) -> None:
    function, kind, _ = TAUGHT[name]
    register_operation(function, kind)
    model, x = build(name)
    before, expected = Snapshot(model), gradient_times_input(model, x)
    assert plan(model, prefer=prefer).uncovered == ()  # and a warning would be an error
    assert relative_error(by(model, x, prefer), expected) < 1e-9
    before.check()


def test_of_a_product_the_signal_takes_all() -> None:
    register_operation(gated, "product")
    torch.manual_seed(3)
    model = randomize(Model(lambda h: gated(h, h.mean((2, 3), keepdim=True))).double())
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert plan(model).uncovered == ()
    maps = [by(model, x, "left") for by in (by_captum, by_zennit)]
    assert relative_error(maps[0], maps[1]) < 1e-12


def test_a_norm_passes_what_was_taught_to_keep_its_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    model.add_module("last", Written())
    model = randomize(model.double())
    assert [merge.norm for merge in plan(model).merges] == []
    register_operation(moved, "movement")
    assert [merge.chain.targets for merge in plan(model).merges] == [("last.conv",)]
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = model(x)
    with canonize(model):
        assert relative_error(model(x), expected) < 1e-12


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(moved(x))


def test_a_maker_makes_the_module() -> None:
    register_operation(rectified, "elementwise", make=lambda: nn.LeakyReLU(0.3))
    model, x = build("wrapped, element-wise")
    expected = model(x)
    with canonize(model):
        assert [type(module) for name, module in model.named_modules() if name == "rectified"] == [nn.LeakyReLU]
        assert relative_error(model(x), expected) < 1e-12


def test_what_cannot_be_taught_is_refused() -> None:
    with pytest.raises(TypeError, match="it must be callable"):
        register_operation("relu", "elementwise")
    for module in (nn.ReLU, nn.ReLU()):
        with pytest.raises(TypeError, match=r"a module: teach it with register_activation"):
            register_operation(module, "elementwise")
    with pytest.raises(TypeError, match="make is 3"):
        register_operation(moved, "movement", make=3)
    for kind in ("sideways", "linear layer", Kind.RANDOM, Kind.WITHOUT_RULE):
        with pytest.raises(ValueError, match="it must be one of 'elementwise', 'linear'"):
            register_operation(moved, kind)
    register_operation(moved, Kind.MOVEMENT)
    found = operations.operation_of_function(moved)
    assert found is not None
    assert found.kind is Kind.MOVEMENT


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (torch.special.erfcx, "linear"),
        (lambda x: 2 * x + 1, "linear"),
        (lambda x: x.flatten(1).sort().values.view_as(x), "movement"),
        (lambda x: x - x.mean(-1, keepdim=True), "elementwise"),
        (lambda x: x.flip(-1), "elementwise"),
    ],
)
def test_what_turns_out_to_be_something_else_is_refused(function: Any, kind: str) -> None:
    with pytest.raises(ValueError, match="teach what it is"):
        register_operation(function, kind)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: x * torch.arange(x.shape[-1]), "elementwise"),
        (lambda x: x.cumsum(-1), "linear"),
        (lambda x: x + torch.rand_like(x), "elementwise"),
        (lambda x, size: x[..., :size], "movement"),
    ],
)
def test_what_may_be_what_was_said_is_taken(function: Any, kind: str) -> None:
    register_operation(function, kind)
