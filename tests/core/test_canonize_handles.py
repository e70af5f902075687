"""One canonization used again and again, by handles, nested, and next to others of the same model."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from canon_bridge import Canonization, canonize
from tests.core.test_canonize_restore import small
from tests.support.errors import alive, relative_error
from tests.support.pieces import conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


def test_handles_do_what_the_block_does() -> None:
    model, x = small(), image()
    before, expected = Snapshot(model), model(x)
    canonization = canonize(model)
    assert isinstance(canonization, Canonization)
    before.check()  # nothing happens before it is entered
    for _ in range(2):
        assert canonization.apply() is model
        assert alive(model) == []
        assert relative_error(model(x), expected) < 1e-12
        canonization.undo()
        before.check()
    canonization.undo()
    before.check()


def test_new_values_are_used_at_the_next_entry() -> None:
    model, x = small(), image()
    canonization = canonize(model)
    with canonization:
        model(x)
    randomize(model, seed=7, eps=0.3)  # an eps of its own, too
    fresh = {key: torch.randn_like(value) for key, value in model.state_dict().items() if "conv" in key}
    model.load_state_dict({**model.state_dict(), **fresh})
    before, expected = Snapshot(model), model(x)
    with canonization:
        assert relative_error(model(x), expected) < 1e-12
    before.check()


def test_a_change_of_dtype_between_two_entries() -> None:
    model, x = small(), image()
    canonization = canonize(model)
    with canonization:
        pass
    model.float()
    expected = model(x.float())
    with canonization:
        assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
        assert relative_error(model(x.float()), expected) < 1e-5


def test_a_second_entry_while_inside_is_refused_and_changes_nothing() -> None:
    model, x = small(), image()
    before, expected = Snapshot(model), model(x)
    canonization = canonize(model)
    with canonization:
        inside = Snapshot(model)
        with pytest.raises(RuntimeError, match="canonical already"), canonization:
            pass
        inside.check()
        assert relative_error(model(x), expected) < 1e-12
    before.check()


@pytest.mark.parametrize("second", ["left", "right"])
def test_nested_blocks(second: str) -> None:
    model, x = small(), image()
    before, expected = Snapshot(model), model(x)
    with canonize(model):
        inside = Snapshot(model)
        with canonize(model, prefer=second) as again:
            assert again is model
            assert relative_error(model(x), expected) < 1e-12
        inside.check()
        assert alive(model) == []
    before.check()


@pytest.mark.parametrize("build", [small, lambda: randomize(nn.Sequential(conv(), norm()).double())])
def test_two_plans_of_the_same_state_cannot_both_be_in_force(build: Callable[[], nn.Module]) -> None:
    model, x = build(), image()  # the second one gets no new modules, which would give it away
    before, expected = Snapshot(model), model(x)
    first, second = canonize(model), canonize(model, prefer="right")
    with first:
        inside = Snapshot(model)
        with pytest.raises(RuntimeError, match=r"canonize\(model\) anew"):
            second.apply()
        inside.check()
    before.check()
    with second:  # its plan holds again
        assert relative_error(model(x), expected) < 1e-12
    before.check()


def test_handles_that_overlap_are_undone_in_either_order() -> None:
    model, x = small(), image()
    before, expected = Snapshot(model), model(x)
    for order in itertools.permutations(range(3)):
        stack = []
        for prefer in ("left", "right", "left"):
            stack.append(canonize(model, prefer=prefer))
            stack[-1].apply()
        for number in order:
            stack[number].undo()
        before.check()
        assert torch.equal(model(x), expected)


def test_a_plan_that_is_out_of_date_is_refused() -> None:
    model = small()
    canonization = canonize(model)
    model[1] = norm().double().eval()
    before = Snapshot(model)
    with pytest.raises(RuntimeError, match=r"canonize\(model\) anew"):
        canonization.apply()
    before.check()


def test_a_block_on_a_layer_that_is_merged_already() -> None:
    model, x = small(), image()
    before, expected = Snapshot(model), model(x)
    for prefer in ("left", "right"):
        with canonize(model, prefer=prefer):
            for layer in (module for module in list(model.modules()) if isinstance(module, nn.Conv2d)):
                with canonize(layer):
                    assert relative_error(model(x), expected) < 1e-12
        before.check()


def test_there_is_nothing_to_keep_before_the_block() -> None:
    model = small()
    before, canonization = Snapshot(model), canonize(model)
    canonization.keep()
    before.check()
    with canonization:
        pass
    before.check()
