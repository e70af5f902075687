"""Sites are counted; structures of arguments are matched, unpacked and kept, with constants by value."""

import copy
import pickle
from collections import Counter, OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx

from canon_bridge.core.trace.flow import (
    DATA,
    Frame,
    Site,
    fits,
    fits_defaults,
    is_proxy,
    is_same,
    kept,
    pattern,
    unpack,
)

Pair = namedtuple("Pair", "left right")


def test_a_frame_counts_the_calls_of_each_thing_by_itself() -> None:
    frame = Frame("a.b", "a")
    sites = [frame.site(what) for what in (len, "relu", len, len)]
    assert sites == [Site("a.b", what, n) for what, n in ((len, 0), ("relu", 0), (len, 1), (len, 2))]
    assert frame.counts == Counter({len: 3, "relu": 1})
    assert Frame("c", "a").site(len) == Site("c", len, 0)


def test_there_is_one_data_however_it_is_stored() -> None:
    assert repr(DATA) == "data"
    assert copy.deepcopy(DATA) is DATA
    assert pickle.loads(pickle.dumps(DATA)) is DATA


def test_a_pattern_has_the_structure_and_the_constants_and_data_for_the_rest() -> None:
    x = torch.ones(1)
    assert pattern([x, (1, "a", None), {"b": x, "c": 2.0}]) == [DATA, (1, "a", None), {"b": DATA, "c": 2.0}]
    assert type(pattern(OrderedDict(a=True))) is dict
    assert pattern(OrderedDict(a=True)) == {"a": True}
    assert [pattern(value) for value in (proxy(), {1}, slice(1), torch.float32)] == [DATA] * 4
    assert pattern(Pair(1, torch.ones(1))) == {"left": 1, "right": DATA}
    assert pattern(Pair(proxy(), proxy())) is DATA
    assert is_proxy(proxy())
    assert not is_proxy(x)


@pytest.mark.parametrize(
    ("expected", "right", "wrong"),
    [
        ({"a": DATA, "b": 2}, {"b": 2, "a": torch.ones(1)}, {"a": torch.ones(1)}),
        ({"a": DATA}, OrderedDict(a=1), 3),
        ({"a": DATA}, {"a": 0}, {"a": 0, "b": 0}),
        ([DATA, 1], [2, 1], [2, 1, 1]),
        ([DATA, 1], [None, 1], (None, 1)),
        ((1, DATA), Pair(1, 2), (2, 2)),
        (None, None, torch.ones(1)),
        (1, 1, torch.ones(())),
        (None, None, np.zeros(3)),
        (0.5, np.float64(0.5), np.full(2, 0.5)),
        ("a", "a", "b"),
        (0.5, float("0.5"), 0.25),
        (DATA, None, ...),
    ],
)
def test_what_fits(expected: Any, right: Any, wrong: Any) -> None:
    assert fits(right, expected)
    assert fits(wrong, expected) is (expected is DATA)


def test_the_constant_nan_fits_itself() -> None:
    nan = float("nan")
    assert fits(nan, pattern(nan))
    assert fits(float("nan"), pickle.loads(pickle.dumps(pattern(nan))))
    assert not fits(1.0, nan)
    assert not fits(nan, 1.0)


def test_optional_arguments_that_are_given_must_fit_their_defaults() -> None:
    def forward(x: Any, flag: bool = False, *sizes: int, scale: Any = None) -> None:
        """Have defaults."""

    x = torch.ones(1)
    assert all(fits_defaults(forward, given) for given in ((x,), (x, False), (x, False, 3, 4)))
    assert not fits_defaults(forward, (x, True))
    assert not fits_defaults(forward, (x, x))
    assert fits_defaults(forward, ())  # which the call itself will refuse
    assert fits_defaults(lambda x, mask=None: x, (x, None))
    assert not fits_defaults(lambda x, mask=None: x, (x, x))


@dataclass(frozen=True)
class Output:
    logits: Any
    name: str


def proxy() -> Any:
    tracer = fx.Tracer()
    tracer.graph, tracer.root = fx.Graph(), torch.nn.Module()
    return tracer.create_proxy("placeholder", "whole", (), {})


def keys_of(node: fx.Node) -> list[Any]:
    """Return by which keys, one after the other, a part was taken from the whole."""
    return [] if node.op == "placeholder" else [*keys_of(node.args[0]), node.args[1]]


def test_a_proxy_is_given_the_structure_of_a_value_with_its_constants() -> None:
    x, whole = torch.ones(1), proxy()
    assert unpack(x, whole) is whole
    assert unpack(3, whole) == 3
    found = unpack({"a": [x, 2], "b": (None, Pair(x, "c"))}, whole)
    assert (found["a"][1], found["b"][0], found["b"][1].right) == (2, None, "c")
    assert type(found["b"][1]) is Pair
    assert keys_of(found["a"][0].node) == ["a", 0]
    assert keys_of(found["b"][1].left.node) == ["b", 1, 0]
    assert unpack(Pair(DATA, 2), Pair(3, 4)) == Pair(3, 2)
    assert type(unpack(OrderedDict(a=x), whole)) is OrderedDict


def test_a_data_class_is_unpacked_by_its_fields_and_stays_itself() -> None:
    like, whole = Output(torch.ones(1), "a"), proxy()
    twin = unpack(like, whole)
    assert type(twin) is Output
    assert twin.name == "a"
    assert (twin.logits.node.target, twin.logits.node.args) == (getattr, (whole.node, "logits"))
    assert isinstance(like.logits, torch.Tensor)
    assert unpack(Output, whole) is whole


def test_a_structure_that_is_kept_does_not_follow_changes_and_they_are_told() -> None:
    x, y = torch.ones(2)
    now = {"a": [x, (y, 1)], "b": OrderedDict(c=x)}
    before = kept(now)
    assert is_same(now, before)
    assert before["a"][0] is x
    assert type(before["b"]) is OrderedDict
    changes = (
        lambda: now["a"].append(x),
        lambda: now["b"].update(d=y),
        lambda: now["a"].__setitem__(0, x.clone()),
        lambda: now.update(a=now.pop("a")),
    )
    for change in changes:
        before = kept(now)
        change()
        assert not is_same(now, before)
        assert is_same(now, kept(now))
    assert not is_same([x], [y])
    for other in (None, x, (x,), {"a": x}):
        assert not is_same([x], other)
        assert not is_same({"b": [x]}, {"b": other})
    assert not is_same({"a": x}, None)
    assert not is_same({"a": x, "b": x}, {"b": x, "a": x})
