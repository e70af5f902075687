"""A written forward computes its source on the module that it is bound to, checks its arguments, and can be stored."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge.core.portable import Portable
from canon_bridge.core.trace.flow import DATA
from canon_bridge.core.written import Written

SOURCE = "def forward(self, x, flag=False):\n    return pool(self.layer(x) * factor, 2)"


def of(function: Any) -> inspect.Signature:
    return inspect.signature(function)


def original(x: Tensor, flag: bool = False) -> Tensor:
    """Stand for the forward in whose place the written one comes."""
    return x


def own(self: nn.Module, x: Tensor, flag: bool = False) -> Tensor:
    return x + 1


LAMBDA = lambda self, x, flag=False: x + 1  # noqa: E731 - pickle does not find it


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.eval()


def test_it_is_bound_like_a_method_and_its_names_are_those_that_it_was_given() -> None:
    written = Written(SOURCE, {"pool": F.max_pool1d, "factor": 3}, "a.b", of(original))
    module, x = Holder(), torch.ones(1, 4)
    bound: Any = type("Bound", (Holder,), {"forward": written})
    assert bound.forward is written
    assert torch.equal(written(module, x), F.max_pool1d(module.layer(x) * 3, 2))
    bound = bound()
    assert torch.equal(bound(x, flag=True), F.max_pool1d(bound.layer(x) * 3, 2))
    assert written.__name__ == "forward"
    assert written.__code__.co_filename == "<canon_bridge: forward of a.b>"
    assert Written(SOURCE, {}, "", of(original)).__code__.co_filename == "<canon_bridge: forward of the model>"


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_what_is_stored_has_its_source_its_names_and_its_checks(how: str) -> None:
    names = {"pool": F.max_pool1d, "factor": 3}
    written = Written(SOURCE, names, "a.b", of(original), (), {"flag": False}, {"training": False})
    again = copy.deepcopy(written) if how == "deepcopy" else pickle.loads(pickle.dumps(written))
    assert (again is written) == (how == "deepcopy")
    module, x = Holder(), torch.randn(1, 4)
    assert torch.equal(again(module, x), written(module, x))
    assert str(again.signature) == ("(x, flag=False)" if how == "pickle" else str(written.signature))
    with pytest.raises(ValueError, match=r"^a\.b was called with another flag"):
        again(module, x, True)
    with pytest.raises(ValueError, match="training mode"):
        again(module.train(), x)
    twice = pickle.loads(pickle.dumps(again))
    assert isinstance(again.names["pool"], Portable) == (how == "pickle")
    assert again.__wrapped__.__globals__["pool"] is F.max_pool1d
    assert torch.equal(twice(module.eval(), x), written(module, x))


def test_a_function_may_stand_in_the_place_of_a_source() -> None:
    written, module, x = Written(own, {}, "", of(original), expected={"flag": False}), Holder(), torch.ones(2)
    assert written.__code__ is own.__code__
    again = pickle.loads(pickle.dumps(written))
    assert again.body is own
    without_name = Written(LAMBDA, {}, "", of(original), expected={"flag": False})
    found = pickle.loads(pickle.dumps(without_name))
    assert found.body is LAMBDA
    for forward in (written, again, without_name, found):
        assert torch.equal(forward(module, x), x + 1)
        with pytest.raises(
            ValueError, match=r"^the model was called with another flag than .*\(False\); pass example_in"
        ):
            forward(module, x, flag=True)


def test_arguments_are_checked_however_they_are_passed_and_defaults_too() -> None:
    def signed(x: Any, flag: Any = True, *, pair: Any = (1, 2)) -> None:
        """Stand for the forward in whose place the written one comes."""

    expected = {"x": DATA, "flag": True, "pair": (1, DATA)}
    source = "def forward(self, x, flag=True, *, pair=(1, 2)):\n    return x"
    written, module = Written(source, {}, "a", of(signed), expected=expected), Holder()
    for arguments, keywords in (
        ((5,), {}),
        ((5, True), {}),
        ((), {"x": 5, "flag": True}),
        ((5,), {"pair": (1, "any")}),
    ):
        assert written(module, *arguments, **keywords) == 5
    for arguments, keywords, name in (
        ((5, False), {}, "flag"),
        ((5,), {"pair": (2, 2)}, "pair"),
        ((5,), {"pair": 1}, "pair"),
    ):
        with pytest.raises(ValueError, match=f"^a was called with another {name} than it was canonized for"):
            written(module, *arguments, **keywords)
    with pytest.raises(ValueError, match=r"another flag .*\(False\)"):
        Written(source, {}, "a", of(signed), expected={"flag": False})(module, 5)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_checked_where_it_matters(training: bool) -> None:
    module, x = Holder().train(training), torch.ones(1)
    for flags in ({"training": training}, {}):
        assert torch.equal(Written(own, {}, "a", of(original), flags=flags)(module, x), x + 1)
    now = "training" if training else "evaluation"
    with pytest.raises(ValueError, match=f"^a is in {now} mode now, .*canonized in the other one"):
        Written(own, {}, "a", of(original), flags={"training": not training})(module, x)


@pytest.mark.parametrize("found", [2, True, 1.0, None, torch.ones(2)])
def test_a_flag_must_be_what_the_source_holds(found: Any) -> None:
    module, x = Holder(), torch.ones(1)
    written = Written(own, {}, "a", of(original), flags={"number": 1})
    module.number = 1
    assert torch.equal(written(module, x), x + 1)
    module.number = found
    with pytest.raises(ValueError, match=r"^a has number=.* now, .* canonized with 1\. Set it before"):
        written(module, x)
    del module.number
    with pytest.raises(ValueError, match=r"^a has number=None now"):
        written(module, x)


def test_what_the_source_puts_out_behind_its_result_is_set_on_the_module() -> None:
    source, module = "def forward(self, x):\n    return (x, x), x + 1, x + 2", Holder()
    assert Written(source, {}, "a", of(original), written=("last", "count"))(module, 3) == (3, 3)
    assert (module.last, module.count) == (4, 5)
    with pytest.raises(ValueError, match="zip"):
        Written(source, {}, "a", of(original), written=("last",))(module, 3)
