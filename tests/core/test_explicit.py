"""Functional operations and shared modules become modules of their own, and the function stays what it was."""

import operator
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import canonize
from canon_bridge.core.explicit import Arithmetic, BatchNorm, Gated, signal_of
from tests.support.calls import WAYS, Tensors, accepted, inputs, rank_of, spellings
from tests.support.errors import relative_error
from tests.support.pieces import Function, Written
from tests.support.snapshot import Snapshot


def conv(width: int = 4, rank: int = 2) -> nn.Module:
    return {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank](width, width, 3, padding=1)


def image(rank: int = 2, size: int = 7) -> Tensor:
    return torch.randn(2, 4, *(size,) * rank, dtype=torch.float64)


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    result = model(*(value.clone() for value in inputs))
    return list(result) if isinstance(result, list) else [result]


def check(model: nn.Module, *inputs: Tensor, **options: Any) -> dict[str, nn.Module]:
    """Return the modules that appear in the block; each is called once, on tensors, and the function is the same."""
    before, expected = Snapshot(model), outputs(model, inputs)
    known = dict(model.named_modules())
    calls: Counter[str] = Counter()
    with canonize(model, **options):
        new = {path: module for path, module in model.named_modules() if path not in known}
        for path, module in new.items():
            module.register_forward_hook(
                lambda _, args, kwargs, out, path=path: calls.update(
                    [path] if any(isinstance(a, Tensor) for a in (*args, *kwargs.values())) else []
                ),
                with_kwargs=True,
            )
        for value, right in zip(outputs(model, inputs), expected, strict=True):
            assert relative_error(value, right) < 1e-12
    before.check()
    assert all(torch.equal(*pair) for pair in zip(outputs(model, inputs), expected, strict=True))
    assert calls == Counter(list(new))
    return new


def test_the_signal_is_what_is_named_else_the_only_tensor_else_the_larger_one() -> None:
    small, large = torch.ones(2, 1), torch.ones(2, 3)
    assert [signal_of(named, small, large) for named in (0, 1, None)] == [0, 1, 1]
    pairs = (large, small), (2.0, small), (small, 2.0), (large, large)
    assert [signal_of(None, *pair) for pair in pairs] == [0, 1, 0, None]


def test_a_norm_of_given_tensors_is_the_formula() -> None:
    x, (mean, weight, bias), variance = image(), torch.randn(3, 4).double(), torch.rand(4).double()
    found = BatchNorm(mean, variance, weight, bias, 0.1)(x)
    for channel, (m, v, w, b) in enumerate(zip(mean, variance, weight, bias, strict=True)):
        assert relative_error(found[:, channel], (x[:, channel] - m) / (v + 0.1).sqrt() * w + b) < 1e-14


SPELLINGS = [(n, title, target) for n in WAYS for title, target in spellings(n) if accepted(target, n)]
# Whose result is not as large as the input.
SIZED = ("linear", "mean", "interpolate")
SHAPED = [entry for entry in SPELLINGS if entry[0] not in SIZED and "pool" not in entry[0] and "conv" not in entry[0]]
MODULES = {"sub": "subtract", "mul": "multiply", "div": "divide"}


def every(found: list[tuple[str, str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("name", "target"), [pytest.param(n, t, id=f"{title}") for n, title, t in found])


def named(new: dict[str, nn.Module], name: str) -> list[nn.Module]:
    """Return the new modules that were made for an entry of the table."""
    name = MODULES.get(name, name)
    return [module for path, module in new.items() if path == name or path.startswith(f"{name}_")]


def test_every_way_has_spellings() -> None:
    assert {name for name, _, _ in SPELLINGS} == set(WAYS)
    assert len(SPELLINGS) > 120


@every(SPELLINGS)
def test_each_call_becomes_a_module_that_is_called_once(name: str, target: Any) -> None:
    ways = accepted(target, name)

    def function(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
        return [way(model, x.clone(), y.clone()) for way in ways]

    model = Tensors(function, rank_of(name))
    modules = named(check(model, *inputs(name)), name)
    assert len(modules) == len(ways) >= 1
    for module in modules:
        assert not module.training
        assert not getattr(module, "inplace", False)


@every(SHAPED)
def test_a_tensor_that_was_overwritten_is_read_later_as_it_was_then(name: str, target: Any) -> None:
    # Where the spelling works in place, y is the result; where it does not, y is still the input.
    ways = accepted(target, name)

    def function(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
        results: list[Tensor] = []
        for way in ways:
            first, second = x.clone(), y.clone()
            kept = first.clone()
            result = way(model, first, second)
            results += [first, second, kept, result]
        return [torch.cat(results, 1)]

    model = Tensors(function, rank_of(name))
    assert len(named(check(model, *inputs(name)), name)) == len(ways)


ALIASES: dict[str, Function] = {
    "a view written, the base read": lambda m, x: (y := m.left(x), F.relu_(y.flatten(1)), y * 2)[-1],
    "the base written, an old view read": lambda m, x: (y := m.left(x), v := y.flatten(1), F.relu_(y), v * 2)[-1],
    "a slice added to, the base read": lambda m, x: (y := m.left(x), operator.iadd(y[:, :2], x[:, 2:]), y * 2)[-1],
    "identity, then a module in place": lambda m, x: (y := m.left(x), m.relu(m.same(y)) + y)[-1],
    "dropout, then a module in place": lambda m, x: (y := m.left(x), m.relu(m.dropout(y)) + y)[-1],
    "a view that is an attribute": lambda m, x: (y := m.left(x).relu().mT, operator.iadd(y, x), y * 2)[-1],
    "detached, then a module in place": lambda m, x: (y := m.left(x), m.relu(y.detach()) + y)[-1],
}


@pytest.mark.parametrize("alias", ALIASES)
def test_a_tensor_that_was_overwritten_under_another_name_is_read_as_it_was_then(alias: str) -> None:
    model = Written(ALIASES[alias], left=conv(), same=nn.Identity(), dropout=nn.Dropout(), relu=nn.ReLU(True))
    check(model, image())


class Inner(nn.Module):
    """It overwrites its argument, which its caller reads again."""

    def __init__(self, overwrite: Function) -> None:
        super().__init__()
        self.conv = conv()
        self.relu = nn.ReLU(True)
        self.overwrite = overwrite

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.overwrite(self, x))


OVERWRITES: dict[str, Function] = {
    "a module": lambda m, x: m.relu(x),
    "a function": lambda m, x: F.relu(x, inplace=True),
    "a method": lambda m, x: x.relu_(),
    "a sum": lambda m, x: operator.iadd(x, m.conv(x)),
}


@pytest.mark.parametrize("overwrite", OVERWRITES)
def test_an_argument_that_a_child_overwrites_is_read_by_its_parent_as_it_was_then(overwrite: str) -> None:
    inner = Inner(OVERWRITES[overwrite])
    model = Written(lambda m, x: (y := m.left(x), m.inner(y) + y)[-1], left=conv(), inner=inner)
    check(model, image())


def test_a_second_call_site_of_a_module_in_place_inside_a_child_overwrites_for_its_parent() -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        y = model.left(model.relu(model.left(x)))
        return model.inner(y) + y

    inner = Inner(OVERWRITES["a module"])
    check(Written(function, left=conv(), relu=inner.relu, inner=inner), image())


# The expected operand with the data.
ONE_OPERAND: dict[str, tuple[Function, int]] = {
    "a number": (lambda m, x: m.left(x) + 1, 0),
    "a number before": (lambda m, x: 1 + m.left(x), 1),
    "an augmented number": (lambda m, x: operator.iadd(m.left(x), 1), 0),
    "a weight": (lambda m, x: m.left(x) + m.left.bias, 0),
    "a new tensor": (lambda m, x: m.left(x) + torch.ones(1, dtype=torch.float64), 0),
    "a number less": (lambda m, x: 1 - m.left(x), 1),
    "a factor": (lambda m, x: m.left(x) * 3, 0),
    "a weight for a factor": (lambda m, x: m.left.bias * m.left(x), 1),
    "a size for a factor": (lambda m, x: m.left(x) * x.shape[1], 0),
    "a divisor": (lambda m, x: m.left(x) / 3, 0),
    "a divided number": (lambda m, x: 3 / (m.left(x).exp()), 1),
}


@pytest.mark.parametrize("name", ONE_OPERAND)
def test_one_operand_may_be_no_data(name: str) -> None:
    function, signal = ONE_OPERAND[name]
    new = check(Written(function, left=conv(7)), torch.randn(2, 7, 7, 7, dtype=torch.float64))
    (module,) = (module for module in new.values() if isinstance(module, Arithmetic))
    assert module.signal == signal


NOT_SUMS: dict[str, Function] = {
    "sizes": lambda m, x: m.left(x).view(x.size(0), x.shape[1] + x.size(2) - x.shape[3], -1),
    "a size and a number": lambda m, x: m.left(x).view(x.size(0) + 0, -1),
    "shapes": lambda m, x: m.left(x).view(x.shape[:1] + x.shape[1:]),
    "dim and len": lambda m, x: m.left(x).flatten(x.dim() + x.ndim - 7),
}


@pytest.mark.parametrize("name", NOT_SUMS)
def test_what_is_not_the_sum_of_two_branches_is_left_alone(name: str) -> None:
    model = Written(NOT_SUMS[name], left=conv(7))
    assert check(model, torch.randn(2, 7, 7, 7, dtype=torch.float64)) == {}


@pytest.mark.parametrize("dim", [1, -1])
def test_a_gated_linear_unit_is_that_of_torch(dim: int) -> None:
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    assert torch.equal(Gated(dim)(x), F.glu(x, dim))
    model = Written(lambda m, x: F.glu(m.left(x), dim), left=conv())
    assert [type(module) for module in check(model, torch.randn(2, 4, 6, 6, dtype=torch.float64)).values()][:1] == [
        Gated
    ]
