"""The keywords of ``canonize``: what is not allowed is told so, with what is; and what a framework may leave out."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from canon_bridge import canonize, canonized_copy, plan
from canon_bridge.core.options import Backend, Options, Scope
from canon_bridge.core.restore import Edits
from tests.support.snapshot import Snapshot

PUBLIC = (canonize, plan, canonized_copy)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval()


@pytest.mark.parametrize("function", PUBLIC)
@pytest.mark.parametrize(
    ("keyword", "allowed"), [("prefer", "'left', 'right'"), ("clipped", "'absorb', 'pass'"), ("leftover", "'linear'")]
)
@pytest.mark.parametrize("value", ["Left", "", None, 1, ["left"]])
def test_an_unknown_keyword_value_is_told_what_is_allowed(
    function: Any, keyword: str, allowed: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=f"^{keyword} is .*must be one of {allowed}"):
        function(small(), **{keyword: value})


@pytest.mark.parametrize("value", [[torch.ones(1)], 3, {"x": torch.ones(1)}])
def test_example_inputs_of_another_type(value: Any) -> None:
    with pytest.raises(TypeError, match="must be a tensor or a tuple"):
        canonize(small(), example_inputs=value)


def test_what_is_allowed_is_taken_and_the_message_names_all_of_it() -> None:
    assert Options() == Options("left", "absorb", "linear", None)
    for allowed in ("left", "right", "untangled"):
        assert Options(prefer=allowed).prefer == allowed
    assert Options(clipped="pass", leftover="keep").leftover == "keep"
    given: Any = "leftt"
    with pytest.raises(ValueError, match=r"^prefer is 'leftt'; it must be one of 'left', 'right', 'untangled'\.$"):
        Options(prefer=given)
    given = []
    with pytest.raises(TypeError, match=r"^example_inputs is a list; .*the positional arguments of the model\.$"):
        Options(example_inputs=given)


def test_example_inputs_become_positional_arguments() -> None:
    x = torch.ones(2, 3)
    (argument,) = Options(example_inputs=x).arguments or ()
    assert argument is x
    for given in ((x, 2), (), None):
        assert Options(example_inputs=given).arguments is given


def test_options_and_scopes_are_checked_once_and_do_not_change() -> None:
    for made in (Options(), Scope(), Backend()):
        field: Any = dataclasses.fields(made)[0]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, field.name, "anything")


def test_the_core_itself_has_no_wishes() -> None:
    backend, module, edits = Backend(), small(), Edits()
    before = Snapshot(module)
    assert backend.adapt(module) is module
    backend.prepare(edits, module)
    assert len(edits) == 0
    before.check()
    assert not any((backend.scratch, backend.leaves_hook, backend.differentiable))
    assert Scope() == Scope(kinds=None, explicit=True)
