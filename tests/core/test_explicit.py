"""Functional operations and shared modules become modules of their own, and the function stays what it was."""

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import canonize, plan
from canon_bridge.core.layers import Add
from canon_bridge.core.lifts import LIFTS
from canon_bridge.core.trace import trace
from tests.conftest import Snapshot, relative_error

Function = Callable[..., Any]


class Written(nn.Module):
    """``function(self, *inputs)`` as forward, with the children given by name."""

    def __init__(self, function: Function, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.function = function
        self.double().eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(width: int = 4, rank: int = 2) -> nn.Module:
    return {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank](width, width, 3, padding=1)


def image(rank: int = 2, size: int = 7) -> Tensor:
    return torch.randn(2, 4, *(size,) * rank, dtype=torch.float64)


def check(model: nn.Module, x: Tensor, **options: Any) -> dict[str, nn.Module]:
    """Return the modules that appear in the block; each is called once, on tensors, and the function is the same."""
    before, expected = Snapshot.of(model), model(x.clone())
    known = dict(model.named_modules())
    calls: Counter[str] = Counter()
    with canonize(model, **options):
        new = {path: module for path, module in model.named_modules() if path not in known}
        for path, module in new.items():
            module.register_forward_hook(
                lambda _, args, kwargs, out, path=path: calls.update(
                    [path] if isinstance([*args, *kwargs.values()][0], Tensor) else []
                ),
                with_kwargs=True,
            )
        assert relative_error(model(x.clone()), expected) < 1e-12
    before.check()
    assert torch.equal(model(x.clone()), expected)
    assert calls == Counter(list(new))
    return new


RELU = nn.ReLU
# name: (rank, key of LIFTS, the call, the module that it becomes, attributes of that module)
SPELLINGS: dict[str, tuple[int, Any, Function, type[nn.Module], dict[str, Any]]] = {
    "x + y": (2, operator.add, lambda x, y: x + y, Add, {}),
    "x += y": (2, operator.iadd, operator.iadd, Add, {}),
    "torch.add": (2, torch.add, torch.add, Add, {}),
    "torch.add alpha": (2, torch.add, lambda x, y: torch.add(x, y, alpha=1), Add, {}),
    "torch.add keywords": (2, torch.add, lambda x, y: torch.add(other=y, input=x), Add, {}),
    "x.add": (2, "add", lambda x, y: x.add(y), Add, {}),
    "x.add keyword": (2, "add", lambda x, y: x.add(other=y), Add, {}),
    "x.add_": (2, "add_", lambda x, y: x.add_(y), Add, {}),
    "F.relu": (2, F.relu, lambda x, y: F.relu(x), RELU, {"inplace": False}),
    "F.relu in place": (2, F.relu, lambda x, y: F.relu(x, inplace=True), RELU, {"inplace": False}),
    "F.relu in place, by position": (2, F.relu, lambda x, y: F.relu(x, True), RELU, {}),
    "F.relu keywords": (2, F.relu, lambda x, y: F.relu(input=x, inplace=True), RELU, {}),
    "F.relu_": (2, F.relu_, lambda x, y: F.relu_(x), RELU, {}),
    "torch.relu": (2, torch.relu, lambda x, y: torch.relu(x), RELU, {}),
    "torch.relu keyword": (2, torch.relu, lambda x, y: torch.relu(input=x), RELU, {}),
    "torch.relu_": (2, torch.relu_, lambda x, y: torch.relu_(x), RELU, {}),
    "x.relu": (2, "relu", lambda x, y: x.relu(), RELU, {}),
    "x.relu_": (2, "relu_", lambda x, y: x.relu_(), RELU, {}),
}
for _rank in (1, 2, 3):
    for _place in (F, torch):
        for _kind, _name in (("Avg", "avg_pool"), ("Max", "max_pool")):
            _function = getattr(_place, f"{_name}{_rank}d", None)
            if _function in LIFTS:
                _module = getattr(nn, f"{_kind}Pool{_rank}d")
                _by_position = (3, 2, 1, True, False) if _kind == "Avg" else (3, 2, 1, 1, True)
                _prefix = f"{_place.__name__}.{_name}{_rank}d"
                SPELLINGS[_prefix] = (_rank, _function, lambda x, y, f=_function: f(x, 2), _module, {})
                SPELLINGS[f"{_prefix} keywords"] = (
                    _rank,
                    _function,
                    lambda x, y, f=_function: f(input=x, kernel_size=3, padding=1, ceil_mode=True),
                    _module,
                    {"ceil_mode": True},
                )
                SPELLINGS[f"{_prefix} by position"] = (
                    _rank,
                    _function,
                    lambda x, y, f=_function, a=_by_position: f(x, *a),
                    _module,
                    {"ceil_mode": True},
                )
            _function = getattr(_place, f"adaptive_{_name}{_rank}d", None)
            if _function in LIFTS:
                _module = getattr(nn, f"Adaptive{_kind}Pool{_rank}d")
                _call = (_rank, _function, lambda x, y, f=_function: f(x, 3), _module, {})
                SPELLINGS[f"{_place.__name__}.adaptive_{_name}{_rank}d"] = _call
SPELLINGS["F.avg_pool2d divisor"] = (
    *(2, F.avg_pool2d, lambda x, y: F.avg_pool2d(x, 2, divisor_override=3), nn.AvgPool2d),
    {"divisor_override": 3},
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_functional_operation_becomes_a_module_that_is_called_once(spelling: str) -> None:
    rank, target, function, kind, attributes = SPELLINGS[spelling]
    model = Written(
        lambda m, x: m.head(function(m.left(x), m.right(x))), left=conv(4, rank), right=conv(4, rank), head=nn.Tanh()
    )
    assert target in {node.target for node in trace(model).graph.nodes}  # the spelling is what it says
    (module,) = check(model, image(rank)).values()
    assert type(module) is kind
    assert {name: getattr(module, name) for name in attributes} == attributes
    assert not module.training


def test_every_entry_of_the_table_is_spelled_above() -> None:
    assert {target for _, target, *_ in SPELLINGS.values()} == set(LIFTS)


@pytest.mark.parametrize("spelling", [name for name, entry in SPELLINGS.items() if entry[3] in (Add, RELU)])
def test_a_tensor_that_was_overwritten_is_read_later_as_it_was_then(spelling: str) -> None:
    # Where the spelling works in place, y is the result; where it does not, y is still the input.
    def function(model: nn.Module, x: Tensor) -> Tensor:
        y, z = model.left(x), model.right(x)
        kept = y * 1
        result = operation(y, z)
        return torch.cat([y, result, kept, z], 1)

    _, _, operation, kind, _ = SPELLINGS[spelling]
    model = Written(function, left=conv(), right=conv())
    assert [type(module) for module in check(model, image()).values()] == [kind]


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


NOT_SUMS: dict[str, Function] = {
    "a number": lambda m, x: m.left(x) + 1,
    "a number before": lambda m, x: 1 + m.left(x),
    "an augmented number": lambda m, x: operator.iadd(m.left(x), 1),
    "a weight": lambda m, x: m.left(x) + m.left.bias,
    "a new tensor": lambda m, x: m.left(x) + torch.ones(1, dtype=torch.float64),
    "sizes": lambda m, x: m.left(x).view(x.size(0), x.shape[1] + x.size(2) - x.shape[3], -1),
    "a size and a number": lambda m, x: m.left(x).view(x.size(0) + 0, -1),
    "shapes": lambda m, x: m.left(x).view(x.shape[:1] + x.shape[1:]),
    "dim and len": lambda m, x: m.left(x).flatten(x.dim() + x.ndim - 7),
    "weighted": lambda m, x: torch.add(m.left(x), x, alpha=2),
}


@pytest.mark.parametrize("name", NOT_SUMS)
def test_what_is_not_the_sum_of_two_branches_is_left_alone(name: str) -> None:
    model = Written(NOT_SUMS[name], left=conv(7))
    assert check(model, torch.randn(2, 7, 7, 7, dtype=torch.float64)) == {}


def test_what_is_left_alone_although_its_name_is_in_the_table_is_told() -> None:
    model = Written(lambda m, x: torch.add(m.left(x), x, alpha=2), left=conv())
    assert plan(model).failures == (("", "add: alpha=2: a weighted sum is not the sum of two branches"),)
    assert "not explicit in the model itself: add: alpha=2" in str(plan(model))
