"""Tracing, whether it works or not, leaves a model as it was: no ``_tensor_constant``, no attribute, no statistics.

fx itself stores tensors that a forward creates on the user's model.
"""

import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from canon_bridge import TracingError, canonize, canonized_copy, plan
from tests.support.pieces import Written, check, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


def body(m: Any, x: Tensor) -> Tensor:
    return m.b(F.relu(m.norm(m.a(x))))


def make(function: Callable[[Any, Tensor], Any]) -> nn.Module:
    model = randomize(Written(function, a=conv(), norm=norm(), b=conv(), inner=Written(created, c=conv())))
    model.plain = torch.randn(4, 1, 1, dtype=torch.float64)
    model.several = [torch.ones(1), torch.zeros(1)]
    model.by_name = {"a": torch.ones(1)}
    return model


def created(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.c(x)) + torch.full((1,), 3.0, dtype=torch.float64)


CREATED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a new tensor": lambda m, x: body(m, x) + torch.ones(4, 1, 1, dtype=torch.float64),
    "several": lambda m, x: body(m, x * torch.tensor(2.0)) + torch.arange(6.0, dtype=torch.float64),
    "the same twice": lambda m, x: (t := torch.ones(6, dtype=torch.float64), body(m, x + t) * t)[1],
    "a plain attribute": lambda m, x: body(m, x) * m.plain,
    "one in a list": lambda m, x: body(m, x) * m.several[0].double() + m.by_name["a"].double(),
    "in a container": lambda m, x: m.inner(body(m, x)),
    "in a container, twice": lambda m, x: m.inner(m.inner(body(m, x))),
    "one with the device of a parameter": lambda m, x: body(m, x) + torch.zeros(6, device=m.a.weight.device).double(),
}


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("name", CREATED)
def test_tensors_that_forward_creates(name: str, with_example: bool) -> None:
    model, x = make(CREATED[name]), image()
    options = {"example_inputs": x} if with_example else {}
    before = Snapshot(model)
    plan(model, **options)
    before.check()
    assert not [key for module in model.modules() for key in vars(module) if key.startswith("_tensor_constant")]
    check(model, x, **options)
    assert not [key for module in model.modules() for key in vars(module) if key.startswith("_tensor_constant")]


def test_fx_itself_would_leave_them() -> None:
    model = Written(lambda m, x: x + torch.ones(1))
    fx.Tracer().trace(model)
    assert "_tensor_constant0" in vars(model)


def branch(m: Any, x: Tensor) -> Tensor:
    x = body(m, x + torch.ones(6, dtype=torch.float64))
    if x.sum() > 0:
        return m.inner(x) + 1
    return m.inner(x)


def raises(m: Any, x: Tensor) -> Tensor:
    x = branch(m, x) if x.sum() > -1e9 else x
    raise ValueError("in the end")


def writes(m: Any, x: Tensor) -> Tensor:
    m.seen, m.plain = x, torch.ones(1)
    m.several.append(x)
    m.by_name["b"] = x
    m.a.extra = 3
    m.norm.running_mean.add_(1)
    del m.inner.function
    return m.missing(x)


FAILING: dict[str, Callable[[Any, Tensor], Any]] = {
    "a branch": branch,
    "an error": raises,
    "what it writes": writes,
    "a list": lambda m, x: [body(m, part[None]) for part in x],
    "a branch in a checkpointed part": lambda m, x: torch.utils.checkpoint.checkpoint(
        branch, m, x, use_reentrant=False
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_forward_that_cannot_be_traced(name: str) -> None:
    model, x = make(FAILING[name]), image()
    before, state, enabled = Snapshot(model), torch.get_rng_state(), torch.is_grad_enabled()
    for function in (plan, canonize, canonized_copy):
        with pytest.raises(TracingError):
            function(model)
        before.check()
    if name in ("an error", "what it writes"):
        with pytest.raises(TracingError):
            plan(model, example_inputs=x)
    else:
        plan(model, example_inputs=x)
    before.check()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() == enabled
    assert nn.Module.__call__.__module__ == "torch.nn.modules.module"


class InterruptError(BaseException):
    pass


def test_an_interrupt_in_forward() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        m.seen = x + torch.ones(1)
        raise InterruptError

    model = make(function)
    before = Snapshot(model)
    with pytest.raises(InterruptError):
        plan(model)
    before.check()


def test_a_plan_that_nobody_holds_keeps_nothing_alive() -> None:
    model = make(CREATED["in a container"])
    canonization = canonize(model, example_inputs=image())
    with canonization:
        pass
    gone = weakref.ref(model)
    del model, canonization
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("was_enabled", [True, False])
@pytest.mark.parametrize("model", [nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), nn.BatchNorm2d(4)])
def test_collection_of_garbage_is_as_before(model, was_enabled):
    (gc.enable if was_enabled else gc.disable)()
    try:
        with contextlib.suppress(ValueError):  # a norm in training mode cannot be planned
            plan(model)
        assert gc.isenabled() is was_enabled
    finally:
        gc.enable()


class Store:
    """A plain object that a forward keeps something in."""

    def __init__(self) -> None:
        self.items: list[Any] = []


LIST: list[Any] = []
DICTIONARY: dict[str, Any] = {}
OBJECT = Store()


class Keeping(nn.Module):
    """A forward that keeps its features somewhere outside of the modules."""

    shared: list[Any] = []  # noqa: RUF012 - of the class is what is tested

    def __init__(self, place: str) -> None:
        super().__init__()
        self.conv, self.norm, self.place, self.store = conv(), norm(), place, Store()

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.norm(self.conv(x)))
        if self.place == "attribute of an object":
            self.store.features = features
        elif self.place == "list of an object":
            self.store.items.append(features)
        elif self.place == "list":
            LIST.append(features)
        elif self.place == "dictionary":
            DICTIONARY["features"] = features
        elif self.place == "object":
            OBJECT.features = features
        else:
            self.shared.append(features)
        return features

    def kept(self) -> Any:
        places = {
            "attribute of an object": [getattr(self.store, "features", None)],
            "list of an object": self.store.items,
            "list": LIST,
            "dictionary": [DICTIONARY.get("features")],
            "object": [getattr(OBJECT, "features", None)],
            "list of the class": self.shared,
        }
        return places[self.place][-1] if places[self.place] else None


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize(
    "place", ["attribute of an object", "list of an object", "list", "dictionary", "object", "list of the class"]
)
def test_what_a_forward_keeps_outside_of_modules_is_kept_in_the_block_alone(place: str, with_example: bool) -> None:
    model, x = randomize(Keeping(place).double()), image()
    for keeper in (LIST, DICTIONARY, Keeping.shared, vars(OBJECT)):
        keeper.clear()
    options = {"example_inputs": x} if with_example else {}
    uncovered = plan(model, **options).uncovered
    assert model.kept() is None
    assert "into a list or a dictionary" in uncovered[0].reason
    with canonize(model, **options):
        assert model.kept() is None
        output = model(x)
        assert model.kept() is output
