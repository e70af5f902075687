"""Which entry of a table a module has: its type's, also before parametrizations; a subclass's where it changes nothing.

A subclass that changes anything the base class computes with has no entry, whatever else it does.
"""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from canon_bridge import canonize, plan
from canon_bridge.core.activations import ACTIVATIONS, MAX_POOLS
from canon_bridge.core.layers.linear import LINEAR
from canon_bridge.core.norms import NORMS, is_norm
from canon_bridge.core.operations import MODULES
from canon_bridge.core.registry import find_entry
from tests.support.errors import relative_error
from tests.support.pieces import check, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

TABLES = (NORMS, LINEAR, ACTIVATIONS, MAX_POOLS, MODULES)
TYPES = [(table, kind) for table in TABLES for kind in table if not isinstance(kind, str)]
EVERY = pytest.mark.parametrize(("table", "kind"), TYPES, ids=[kind.__name__ for _, kind in TYPES])


def bare(kind: type[nn.Module]) -> nn.Module:
    """Return a module of the type, without what its constructor would put into it."""
    module = object.__new__(kind)
    nn.Module.__init__(module)
    return module


def subclass(kind: type[nn.Module], *more: type, **body: Any) -> type[nn.Module]:
    return type("Sub", (*more, kind), body)


@EVERY
def test_the_type_itself_and_subclasses_that_change_nothing(table: dict[Any, Any], kind: type[nn.Module]) -> None:
    entry = table[kind]
    assert find_entry(table, bare(kind)) is entry
    harmless = {
        "__init__": lambda self: None,
        "__doc__": "Ours.",
        "__repr__": lambda self: "ours",
        "extra_repr": lambda self: "ours",
        "reset_parameters": lambda self: None,
        "_load_from_state_dict": lambda self, *args: None,
        "something_of_our_own": lambda self: 3,
        "expansion": 4,
    }
    assert find_entry(table, bare(subclass(kind))) is entry
    assert find_entry(table, bare(subclass(kind, **harmless))) is entry
    assert find_entry(table, bare(subclass(subclass(kind, **harmless)))) is entry
    generic = type("Generic", (kind,), {"__annotations__": {"note": str}, "__constants__": ["note"]})
    assert find_entry(table, bare(generic)) is entry
    mixin = type("Mixin", (), {"describe": lambda self: "ours"})
    assert find_entry(table, bare(subclass(kind, mixin))) is entry


@EVERY
def test_subclasses_that_change_what_is_computed(table: dict[Any, Any], kind: type[nn.Module]) -> None:
    class Mixin:
        def forward(self, input: Tensor) -> Tensor:
            return input

    changes: dict[str, object] = {
        "forward": lambda self, x: x,
        "__call__": lambda self, x: x,
        "_call_impl": lambda self, x: x,
        "__getattr__": lambda self, name: None,
        "training": False,
    }
    for name, value in changes.items():
        changed = subclass(kind, **{name: value})
        assert find_entry(table, bare(changed)) is None, name
        # Nor does a subclass of it that changes nothing in turn.
        assert find_entry(table, bare(subclass(changed))) is None, name
    assert find_entry(table, bare(subclass(kind, Mixin))) is None
    assert find_entry(table, bare(subclass(subclass(kind), Mixin))) is None


def test_a_qualified_name_is_as_good_as_the_type() -> None:
    named = type("Named", (nn.Module,), {"__module__": "elsewhere.layers"})
    inner = type("Named", (nn.Module,), {"__module__": "elsewhere.layers", "__qualname__": "Outer.Named"})
    table = {"elsewhere.layers.Named": 1, nn.ReLU: 2}
    assert find_entry(table, named()) == 1
    assert find_entry(table, subclass(named)()) == 1
    assert find_entry(table, subclass(named, forward=lambda self, x: x)()) is None
    assert find_entry(table, inner()) is None
    assert find_entry(table, type("Named", (nn.Module,), {"__module__": "elsewhere"})()) is None
    assert find_entry(table, nn.Sequential()) is None


def test_the_nearest_entry_counts() -> None:
    near = subclass(nn.ReLU)
    assert find_entry({nn.ReLU: 1, near: 2}, near()) == 2
    assert find_entry({nn.ReLU: 1, near: 2}, subclass(near)()) == 2
    assert find_entry({nn.ReLU: 1, near: 2}, nn.ReLU()) == 1
    changed = subclass(nn.ReLU, forward=lambda self, x: x)
    assert find_entry({nn.ReLU: 1, changed: 2}, subclass(changed)()) == 2


def test_a_parametrized_layer_is_of_the_type_that_it_was() -> None:
    layer = parametrizations.weight_norm(nn.Conv2d(2, 2, 1))
    assert type(layer) is not nn.Conv2d
    assert LINEAR.find(layer) is LINEAR[nn.Conv2d]
    other = parametrizations.weight_norm(subclass(nn.Conv2d, forward=lambda self, x: x)(2, 2, 1))
    assert LINEAR.find(other) is None


class Configured(nn.BatchNorm2d):
    """As libraries have it: a constructor of its own, and a name."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3)


class Wider(nn.Conv2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)


class Doubled(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Unchecked(nn.BatchNorm2d):
    def _check_input_dim(self, input: Tensor) -> None:
        pass


class Doubling(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return 2 * super()._conv_forward(input, weight, bias)


BUILD: dict[str, Callable[[], nn.Module]] = {
    "a norm": lambda: nn.Sequential(conv(), Configured(4), nn.ReLU(), conv()),
    "a convolution": lambda: nn.Sequential(nn.Tanh(), norm(), Wider(4), nn.Tanh()),
    "an activation": lambda: nn.Sequential(nn.Tanh(), norm(), subclass(nn.ReLU)(), conv()),
    "a pool": lambda: nn.Sequential(nn.Tanh(), norm(), subclass(nn.AvgPool2d)(2), conv()),
}


@pytest.mark.parametrize("name", BUILD)
def test_a_subclass_that_overrides_nothing_is_merged(name: str) -> None:
    model = randomize(BUILD[name]().double())
    assert len(plan(model).merges) == 1
    check(model, image())


@pytest.mark.parametrize("kind", [Doubled, Unchecked])
def test_a_norm_that_computes_otherwise_is_refused_and_named(kind: type[nn.Module]) -> None:
    model, x = randomize(nn.Sequential(conv(), kind(4), nn.ReLU(), conv()).double()), image()
    before, expected = Snapshot(model), model(x)
    assert not is_norm(model[1])
    made = plan(model)
    assert (made.merges, made.leftovers) == ((), ())
    (refusal,) = made.refusals
    assert refusal.norm == "1"
    assert f"its forward may differ from a BatchNorm's ({kind.__name__})" in refusal.reason
    with canonize(model):
        assert relative_error(model(x), expected) < 1e-14
    before.check()


def test_a_linear_layer_that_computes_otherwise_takes_nothing() -> None:
    model, x = randomize(nn.Sequential(nn.Tanh(), norm(), Doubling(4, 4, 1)).double()), image()
    expected = model(x)
    assert plan(model).merges == ()
    assert [leftover.norm for leftover in plan(model).leftovers] == ["1"]
    with canonize(model):
        assert relative_error(model(x), expected) < 1e-14
