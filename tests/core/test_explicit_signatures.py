"""The forward that is written for a container takes the course that the user's forward takes, whatever it is given."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import canonize
from tests.core.test_explicit import Written, check, conv, image
from tests.support.errors import relative_error
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


class Skip(nn.Module):
    """An optional second input, as decoders have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = F.relu(self.conv(x))
        if skip is not None:
            x = x + skip
        return x


class Flag(Skip):
    def forward(self, x: Tensor, *, double: bool = False) -> Tensor:
        x = F.relu(self.conv(x))
        return x + x if double else x


class Number(Skip):
    """The sum of numbers stands before the sum of tensors: counting sums must not mistake one for the other."""

    def forward(self, x: Tensor, size: int = 1) -> Tensor:
        size = size + 1
        return F.avg_pool2d(self.conv(x), size) + F.max_pool2d(x, size)


class Listed(Skip):
    """The sum of lists stands before the sum of tensors."""

    def forward(self, x: list[Tensor], others: list[Tensor]) -> Tensor:
        x = x + others
        return self.conv(x[0]) + x[1]


CALLS: dict[str, tuple[type[nn.Module], Callable[[nn.Module, Tensor], Any]]] = {
    "no second input": (Skip, lambda m, x: m.inner(x)),
    "a second input": (Skip, lambda m, x: m.inner(x, x)),
    "a second input by keyword": (Skip, lambda m, x: m.inner(x, skip=x)),
    "None for the second input": (Skip, lambda m, x: m.inner(x, None)),
    "no flag": (Flag, lambda m, x: m.inner(x)),
    "a flag": (Flag, lambda m, x: m.inner(x, double=True)),
    "no number": (Number, lambda m, x: m.inner(x)),
    "a number": (Number, lambda m, x: m.inner(x, 2)),
    "lists": (Listed, lambda m, x: m.inner([x], [x * 2, x * 3])),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_container_is_given(call: str) -> None:
    kind, function = CALLS[call]
    check(Written(function, inner=kind()), image())


class Optional(nn.Module):
    """The second input decides what stands between a BatchNorm and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), conv()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        x = torch.tanh(x) if mask is None else x * mask
        return F.relu(self.conv(x))


@pytest.mark.parametrize("as_example", [False, True])
@pytest.mark.parametrize("inputs", [(image(),), (image(), None), (image(), image())], ids=["none", "None", "mask"])
def test_a_model_with_an_optional_input(inputs: tuple[Tensor | None, ...], as_example: bool) -> None:
    model = randomize(Optional().double())
    before, expected = Snapshot(model), model(*inputs)
    with canonize(model, prefer="right", example_inputs=inputs if as_example else None):
        if as_example or inputs[1:] in ((), (None,)):
            assert relative_error(model(*inputs), expected) < 1e-12
        else:  # without an example the forward that leaves it out is the one that counts
            with pytest.raises(ValueError, match=r"mask.*example_inputs"):
                model(*inputs)
    before.check()


class Many(nn.Module):
    """Any inputs, a dictionary as output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, *inputs: Tensor, **named: Tensor) -> dict[str, Any]:
        total = F.relu(self.conv(inputs[0])) + inputs[1]
        return {"sum": total, "rest": [F.relu(named["last"]), (total,)]}


def test_several_inputs_and_nested_outputs() -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        out = model.inner(x, x * 2, last=-x)
        first, (second,) = out["rest"]
        return out["sum"] + F.relu(first) + second

    assert len(check(Written(function, inner=Many()), image())) == 8
    model, x = Many().double().eval(), image()
    expected = model(x, x, last=x)["rest"][0]
    with canonize(model):
        assert torch.equal(model(x, x, last=x)["rest"][0], expected)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), x


def test_a_parent_that_asks_for_the_type_of_what_its_child_returns() -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        out = model.inner(x)
        return F.relu(out[0] if isinstance(out, tuple) else out)

    check(Written(function, inner=Pair()), image())


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "a buffer": lambda model: model.mean.add_(1),
    "a flag": lambda model: setattr(model, "doubled", True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_forward_reads_what_is_there_when_it_runs_and_not_when_the_plan_is_made(change: str) -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        y = F.relu(model.left(x) + (model.mean * 2)[:, None, None])
        return y * 2 if model.doubled else y

    model, x = Written(function, left=conv()), image()
    model.register_buffer("mean", torch.randn(4, dtype=torch.float64))
    model.doubled = False
    canonization = canonize(model)
    CHANGES[change](model)
    expected = model(x)
    try:
        canonization.apply()
    except RuntimeError:
        return  # a plan may also say that it is out of date
    value = model(x)
    canonization.undo()
    assert relative_error(value, expected) < 1e-12


def test_gradients_that_forward_stops_stay_stopped() -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = F.relu(model.left(x))
        return y + x

    model, x = Written(function, left=conv()), image().requires_grad_()
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    with canonize(model):
        assert torch.equal(torch.autograd.grad(model(x).sum(), x)[0], expected)


KEPT: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "a counter": lambda m, y: setattr(m, "calls", m.calls + 1),
    "a tensor": lambda m, y: setattr(m, "last", y),
    "a list": lambda m, y: m.seen.append(y),
    "a buffer": lambda m, y: m.steps.add_(1),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_forward_writes_down_it_writes_down_in_the_block_too(kind: str) -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        y = F.relu(model.left(x))
        KEPT[kind](model, y)
        return y

    model, x = Written(function, left=conv()), image()
    model.calls, model.last, model.seen = 0, None, []
    model.register_buffer("steps", torch.zeros((), dtype=torch.float64))
    expected, canonization = model(x), canonize(model)
    for count in (2, 3):  # running the model puts no plan out of date
        with canonization:
            assert torch.equal(model(x), expected)
        written = {"a counter": model.calls, "a list": len(model.seen), "a buffer": int(model.steps)}
        assert written.get(kind, count) == count
    assert kind != "a tensor" or torch.equal(model.last, expected)
