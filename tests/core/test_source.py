"""What is in a forward is written into the new one whatever its name and its repr: children, functions, constants."""

import functools
import inspect
import math
import warnings
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from canon_bridge import canonize, plan
from canon_bridge.captum import LRP, presets
from canon_bridge.core.source import write_forward
from canon_bridge.core.written import Written
from canon_bridge.zennit import ModelCanonizer
from tests.support.errors import relative_error
from tests.support.in_zennit import TARGET, attribute, epsilon_composite
from tests.support.models import gradient_times_input
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

TOLERANCE = 1e-12
LRP_0 = 1e-30
ODD = ("in", "for", "class", "None", "a-b", "0", 'a"b', "a\\b", "ä", "_", "lambda")


def compiled(graph: fx.Graph, signature: inspect.Signature) -> Any:
    return Written(*write_forward(graph, signature), "test", signature).__wrapped__


with warnings.catch_warnings(action="ignore"):
    traced = torch.jit.trace(lambda y: y.abs() * 2, torch.ones(2, 4, 4, 4, dtype=torch.float64))


class Network(nn.Module):
    """A function of children between layers that are rewritten around it."""

    def __init__(self, function, **children: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        h = self.function(self, F.relu(self.norm(self.conv(x))))
        return self.head(h.mean((2, 3)) + 0.5)


def traced_in_forward(self, h):
    return torch.jit.trace(lambda y: y.abs() * 2, torch.ones(2, 4, 4, 4, dtype=torch.float64))(h)


def scripted_in_forward(self, h):
    @torch.jit.script
    def inner(y: Tensor) -> Tensor:
        return y.abs() * 3

    return inner(h)


def convs(*names: str) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Conv2d(4, 4, 1) for name in names})


class Children(nn.Module):
    """A container whose own children have the odd names, and are called twice."""

    def __init__(self) -> None:
        super().__init__()
        for name in ODD:
            self.add_module(name, nn.Conv2d(4, 4, 1))

    def forward(self, h: Tensor) -> Tensor:
        for child in (*self.children(), *self.children()):
            h = torch.tanh(h) * 0.5 + child(h)
        return h


class Parameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ParameterDict({name: nn.Parameter(torch.randn(4, 1, 1)) for name in ODD})

    def forward(self, h: Tensor) -> Tensor:
        for parameter in self.all.values():
            h = h * parameter + 0.1
        return h


CASES = {
    "a traced lambda": lambda: Network(lambda self, h: traced(h)),
    "a lambda traced in forward": lambda: Network(traced_in_forward),
    "a function scripted in forward": lambda: Network(scripted_in_forward),
    "a partial": lambda: Network(lambda self, h: functools.partial(F.leaky_relu, negative_slope=0.2)(h - 1)),
    "children of odd names": lambda: Network(lambda self, h: self.c(h), c=Children()),
    "a dictionary of odd names": lambda: Network(lambda self, h: sum(c(h) for c in self.d.values()), d=convs(*ODD)),
    "an odd name called twice": lambda: Network(lambda self, h: self.d["in"](self.d["in"](h)), d=convs("in")),
    "parameters of odd names": lambda: Network(lambda self, h: self.p(h), p=Parameters()),
    "a number of numpy": lambda: Network(lambda self, h: h * np.float64(2.5) + np.float32(0.5)),
    "no finite numbers": lambda: Network(lambda self, h: h.clamp(-math.inf, math.inf)),
    "a size": lambda: Network(lambda self, h: F.interpolate(h, size=torch.Size([5, 6]))),
    "a slice of a slice": lambda: Network(lambda self, h: (h * 2)[..., ::2, 1:]),
}


@pytest.mark.zennit
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("name", CASES)
def test_the_new_forward_is_that_of_the_model(name: str, prefer: str) -> None:
    model = randomize(CASES[name]().double()).eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    expected, before = model(x).detach(), Snapshot(model)
    assert plan(model, prefer=prefer).uncovered == ()
    with canonize(model, prefer=prefer):
        assert relative_error(model(x).detach(), expected) < TOLERANCE
    before.check()
    if name != "children of odd names":  # tanh is no piecewise-linear function
        wanted = gradient_times_input(model, x)
        by_zennit = attribute(model, x, epsilon_composite(LRP_0, [ModelCanonizer(prefer=prefer)]))
        by_captum = LRP(model, presets.epsilon(LRP_0), prefer=prefer).attribute(x, target=TARGET)
        assert max(relative_error(found, wanted) for found in (by_zennit, by_captum)) < 1e-9


Pair = namedtuple("Pair", "left right")


def test_every_kind_of_argument_is_written() -> None:
    def record(*args, **kwargs):
        return args, kwargs

    graph = fx.Graph()
    x, more, named = (graph.placeholder(name) for name in ("input", "*more", "**named"))
    given = (Pair(x, 1), [x, (x,), ()], {"k": x}, slice(None, x, None), None, 1j, float("nan"), record, ..., "a'\"\n")
    called = graph.call_function(record, given, {"class": x, "a b": more})
    graph.output((called, named))

    def signature(input, /, *more, last=record, **named): ...

    function = compiled(graph, inspect.signature(signature))
    ((args, kwargs), rest), value = function(None, 5, 6, 7, other=8), 5
    assert args[:5] == (Pair(value, 1), [value, (value,), ()], {"k": value}, slice(None, value, None), None)
    assert type(args[0]) is Pair
    assert (args[5], args[7], args[8], args[9]) == (1j, record, ..., "a'\"\n")
    assert math.isnan(args[6])
    assert (kwargs, rest) == ({"class": value, "a b": (6, 7)}, {"other": 8})
    assert (
        str(inspect.signature(function)).replace(repr(record), "record")
        == "(__self, input, /, *more, last=record, **named)"
    )


def test_names_of_arguments_are_taken_by_nothing_else() -> None:
    graph = fx.Graph()
    values = [graph.placeholder(name) for name in ("_self", "__self", "_1", "torch", "forward", "relu")]
    graph.output(graph.call_function(torch.relu, (values[2],), {}))
    function = compiled(graph, inspect.signature(lambda _self, __self, _1, torch, forward, relu: 0))
    assert function(None, 0, 0, torch.tensor(-3.0), 0, 0, 0) == 0


def test_values_that_nobody_reads_any_more_are_free() -> None:
    import weakref

    seen: list[weakref.ref[Tensor]] = []

    def first(x):
        y = x + 1
        seen.append(weakref.ref(y))
        return y

    def third(x):
        assert seen[0]() is None
        return x

    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(third, (graph.call_function(torch.neg, (graph.call_function(first, (x,)),)),)))
    assert compiled(graph, inspect.signature(lambda x: 0))(None, torch.tensor(1.0)) == -2
