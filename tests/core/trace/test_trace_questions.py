"""What a forward asks of how it is run, of a type or a device, and of what others hold: answered right, or refused."""

import contextlib
import copy
import random
from collections.abc import Callable
from random import gauss
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from canon_bridge import OtherCourseError, TracingError, canonize, plan
from tests.support.pieces import Written, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

PREFER = ["left", "right"]
Forward = Callable[[Any, Tensor], Tensor]


def model_of(function: Forward) -> nn.Module:
    """Return two convolutions around a BatchNorm, and what the function makes of the features."""
    return randomize(Written(lambda m, x: m.b(function(m, m.norm(m.a(x)))), a=conv(), norm=norm(), b=conv()))


def is_as_before(model: nn.Module, x: Tensor, **options: Any) -> None:
    before, expected = Snapshot(model), model(x)
    with canonize(model, **options):
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    before.check()


# What depends on how the model is run, and how to run it otherwise than where it is canonized.
STATES: dict[str, tuple[Forward, Callable[[], Any]]] = {
    "gradients": (lambda m, h: h * 2 if torch.is_grad_enabled() else h, torch.no_grad),
    "inference mode": (lambda m, h: h * 2 if torch.is_inference_mode_enabled() else h, torch.inference_mode),
    "autocast": (
        lambda m, h: h * 2 if torch.is_autocast_enabled("cpu") else h,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ),
}


@pytest.mark.parametrize("prefer", PREFER)
@pytest.mark.parametrize("name", STATES)
def test_a_forward_that_asks_how_it_is_run_is_refused_where_that_is_otherwise(name: str, prefer: str) -> None:
    function, otherwise = STATES[name]
    model, x = model_of(function), image()
    is_as_before(model, x, prefer=prefer)
    with canonize(model, prefer=prefer), otherwise(), pytest.raises(OtherCourseError, match="computes something else"):
        model(x)


def test_a_plan_under_autocast_is_another_one() -> None:
    model, x = model_of(STATES["autocast"][0]), image()
    for context in (contextlib.nullcontext, STATES["autocast"][1], contextlib.nullcontext):
        with context():
            expected = model(x)
            with canonize(model):
                torch.testing.assert_close(model(x), expected, rtol=0.1, atol=0.1)


def saved(h: Tensor) -> Tensor:
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    mean = h.mean()
    torch.set_grad_enabled(before)
    return h + mean


@pytest.mark.parametrize(
    "function",
    [
        lambda m, h: (torch.is_grad_enabled(), h.mul(2))[1],
        lambda m, h: saved(h),
        lambda m, h: h.mul(2) if m.training and torch.is_grad_enabled() else h,
    ],
)
def test_a_question_without_consequences_is_none(function: Forward) -> None:
    model, x = model_of(function), image()
    is_as_before(model, x)
    with torch.no_grad():
        is_as_before(model, x)


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize(
    "function", [lambda m, h: h * 2 if h.is_leaf else h, lambda m, h: h * 2 if h.grad_fn is None else h]
)
def test_what_autograd_knows_of_a_tensor_is_asked_for_a_gradient(function: Forward, with_example: bool) -> None:
    model, x = model_of(function), image()
    options = {"example_inputs": x} if with_example else {}
    with torch.no_grad():
        is_as_before(model, x, **options)
    with canonize(model, **options), pytest.raises(OtherCourseError, match="where a gradient is wanted"):
        model(x)


ANSWERED: dict[str, Forward] = {
    "the name of a type": lambda m, h: h * 2 if h.type() == "torch.DoubleTensor" else h,
    "the beginning of one": lambda m, h: h * 2 if not h.type().startswith("torch.cuda") else h,
    "typename": lambda m, h: h * 2 if torch.typename(h) == "torch.DoubleTensor" else h,
    "a type that is meant": lambda m, h: h.type(torch.float32).type(dtype=torch.float64),
    "the number of a device": lambda m, h: h * 2 if h.device.index is None else h,
    "whether a method can be called": lambda m, h: h * 2 if callable(h.size) and callable(h.relu) else h,
    "whether a property can be": lambda m, h: h * 2 if not callable(h.ndim) else h,
    "isinstance of torch.jit": lambda m, h: h * 2 if torch.jit.isinstance(h, Tensor) else h,
    "an index of numpy": lambda m, h: h[:, np.array([2, 0, 3, 1])][..., np.array([True, False] * 3)],
    "a deep copy": lambda m, h: h + copy.deepcopy(h.detach()),
}


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("name", ANSWERED)
def test_what_is_known_is_answered(name: str, with_example: bool) -> None:
    x = image()
    is_as_before(model_of(ANSWERED[name]), x, **({"example_inputs": x} if with_example else {}))


def seeded(m: Any, h: Tensor) -> Tensor:
    generator = torch.Generator(device=h.device)
    assert isinstance(generator, torch.Generator)
    generator.manual_seed(h.ndim)
    return h[:, torch.randperm(4, generator=generator)] + torch.rand(4, 1, 1, generator=generator)


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("prefer", PREFER)
def test_a_generator_that_forward_makes_is_made_at_each_call(prefer: str, with_example: bool) -> None:
    x = image()
    is_as_before(model_of(seeded), x, prefer=prefer, **({"example_inputs": x} if with_example else {}))


DRAWN: dict[str, Forward] = {
    "random": lambda m, h: h * random.random(),
    "by its own name": lambda m, h: h * gauss(0.0, 1.0),
    "numpy": lambda m, h: h * np.random.rand(),
    "a course": lambda m, h: h if random.random() < 0.5 else h * 2,
}


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("name", DRAWN)
def test_random_numbers_without_torch_are_refused(name: str, with_example: bool) -> None:
    model, x = model_of(DRAWN[name]), image()
    before, state = Snapshot(model), (random.getstate(), np.random.get_state()[1].tolist())
    with pytest.raises(TracingError, match="draw them by torch"):
        plan(model, **({"example_inputs": x} if with_example else {}))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state
    before.check()
    assert callable(gauss)
    assert isinstance(random.random(), float)


def test_they_are_nobodys_business_where_they_are_not_drawn() -> None:
    is_as_before(model_of(lambda m, h: h * random.random() if m.training else h), image())


@pytest.mark.parametrize("with_example", [False, True])
def test_a_forward_that_seeds_a_generator_which_it_holds_stays_as_it_is(with_example: bool) -> None:
    def function(m: Any, h: Tensor) -> Tensor:
        m.generator.manual_seed(0)
        return h.relu() + torch.rand(4, 1, 1, generator=m.generator)

    model, x = model_of(function), image()
    model.generator = torch.Generator().manual_seed(5)
    state = model.generator.get_state()
    options = {"example_inputs": x} if with_example else {}
    named = plan(model, **options).uncovered
    assert torch.equal(model.generator.get_state(), state)
    assert any("it seeds a generator" in operation.reason for operation in named)
    is_as_before(model, x, **options)


def test_planning_changes_nothing_of_the_process() -> None:
    def function(m: Any, h: Tensor) -> Tensor:
        torch.manual_seed(5)
        torch.set_default_dtype(torch.float16)
        return h + torch.rand(4, 1, 1)

    model = model_of(function)
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    plan(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == dtype


WRITING: dict[str, Callable[[Any, Tensor], object]] = {
    "an object": lambda m, h: setattr(m.store, "kept", h),
    "a module": lambda m, h: setattr(m.b, "kept", h),
}


@pytest.mark.parametrize("place", WRITING)
def test_a_course_that_nothing_would_check_is_refused(place: str) -> None:
    """A forward that has to stay as it is cannot check that it takes the course that the plan is made for."""

    def function(m: Any, h: Tensor) -> Tensor:
        WRITING[place](m, h)
        return h * 2 if h.sum() > 0 else m.a(h)

    model, x = model_of(function), image()
    model.store = SimpleNamespace()
    with pytest.raises(TracingError, match="only a new forward would notice"):
        plan(model, example_inputs=x)


@pytest.mark.parametrize("place", WRITING)
def test_a_course_that_is_known_needs_no_check(place: str) -> None:
    def function(m: Any, h: Tensor) -> Tensor:
        WRITING[place](m, h)
        return h * 2 if h.ndim == 4 and h.shape[1] == 4 else m.a(h)

    model, x = model_of(function), image()
    model.store = SimpleNamespace()
    assert plan(model).uncovered
    with canonize(model, example_inputs=x):
        model(x)


@pytest.mark.parametrize("run_before", [False, True])
@pytest.mark.parametrize("prefer", PREFER)
def test_what_a_part_leaves_on_a_module_outside_of_the_model(prefer: str, run_before: bool) -> None:
    outside = [nn.Module()]

    def leave(m: Any, x: Tensor) -> Tensor:
        outside[0].seen = m.conv(x) * 2
        return m.conv(x)

    part = Written(leave, conv=conv())
    part.outside = outside
    model, x = model_of(lambda m, h: h + outside[0].seen), image()
    model.a, model.outside = part, outside
    randomize(model)
    expected = model(x)
    del outside[0].seen
    if run_before:
        model(image(2, 4, 6, 6))
    former = getattr(outside[0], "seen", None)
    made = plan(model, prefer=prefer)
    assert getattr(outside[0], "seen", None) is former
    assert made.uncovered
    with canonize(model, prefer=prefer):
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_a_call_of_its_own_around_the_model_is_named() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(), norm()

        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x - 0.5) * 2

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    model = randomize(Around().double())
    (named,) = plan(model).uncovered
    assert named.what == "__call__"
    assert "nn.Sequential(model)" in named.reason
    assert plan(nn.Sequential(model)).uncovered == ()
    is_as_before(nn.Sequential(model), image())


@pytest.mark.parametrize("prefer", PREFER)
def test_the_flag_of_a_container_says_nothing_of_what_it_overwrites(prefer: str) -> None:
    gate = Written(lambda m, h: h * h.sigmoid())
    gate.inplace = True
    model = model_of(lambda m, h: m.gate(h) + h)
    model.gate = gate
    is_as_before(model, image(), prefer=prefer)


class Several(nn.Conv2d):
    """A convolution that returns something besides, or nothing."""

    second: Any = None

    def forward(self, input: Tensor) -> tuple[Tensor, Any]:
        output = super().forward(input)
        return output, None if self.second is None else output * self.second


@pytest.mark.parametrize("second", [None, 2.0])
@pytest.mark.parametrize("prefer", PREFER)
def test_what_a_layer_returns_whose_forward_is_not_known(prefer: str, second: float | None) -> None:
    def function(m: Any, h: Tensor) -> Tensor:
        h, more = m.several(h)
        return h if more is None else h + more

    model, x = model_of(function), image()
    model.several = Several(4, 4, 3, padding=1).double().eval()
    model.several.second = second
    with pytest.raises(TracingError, match="takes apart what several returns"):
        plan(model)
    is_as_before(model, x, prefer=prefer, example_inputs=x)
    (named,) = plan(model, prefer=prefer, example_inputs=x).uncovered
    assert (named.path, named.what) == ("several", "Several")
