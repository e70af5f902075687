"""The journal: every slot gets its former object back, in whatever order several journals are undone."""

import gc
import itertools
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from canon_bridge.core.restore import Edits, _Layer, paths, refill, run_all, slots, writes_in_force
from tests.support.snapshot import Snapshot


class Everything(nn.Module):
    """One slot of every kind, each with a neighbour behind it, so that a lost place in the order shows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.empty = nn.Parameter(torch.randn(0))
        self.register_parameter("bias", None)
        self.last = nn.Parameter(torch.randn(2))
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("hidden", torch.randn(3), persistent=False)
        self.child = nn.ReLU(True)
        self.other = nn.Linear(2, 2)
        self.flag = True
        self.behind = "behind"


VALUES = {
    ("_parameters", "weight"): lambda: nn.Parameter(torch.zeros(5)),
    ("_parameters", "bias"): lambda: nn.Parameter(torch.zeros(5)),
    ("_parameters", "new"): lambda: nn.Parameter(torch.zeros(5)),
    ("_buffers", "mean"): lambda: torch.zeros(5),
    ("_buffers", "hidden"): lambda: torch.zeros(5),
    ("_buffers", "new"): lambda: torch.zeros(5),
    ("_modules", "child"): nn.Identity,
    ("_modules", "new"): nn.Identity,
    ("__dict__", "flag"): lambda: False,
    ("__dict__", "new"): lambda: object(),
}


@pytest.mark.parametrize(("table", "name"), VALUES)
def test_a_slot_gets_its_object_and_its_place_back(table: str, name: str) -> None:
    model = Everything()
    before, edits, value = Snapshot(model), Edits(), VALUES[table, name]()
    edits.set(model, table, name, value)
    assert getattr(model, name) is value  # seen by torch's own look-up, so nothing is shadowed
    assert len(edits) == 1
    with pytest.raises(AssertionError):
        before.check()  # or the snapshot would not see a forgotten undo either
    edits.undo()
    before.check()


def test_all_slots_at_once_and_twice_over() -> None:
    model = Everything()
    before, edits = Snapshot(model), Edits()
    for _ in range(2):  # the second write must not take the value of the first for the original
        for (table, name), make in VALUES.items():
            edits.set(model, table, name, make())
    edits.undo()
    before.check()
    assert not writes_in_force(model)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize(("table", "name"), VALUES)
def test_journals_on_one_slot_are_undone_in_any_order(table: str, name: str, order: tuple[int, ...]) -> None:
    model = Everything()
    before = Snapshot(model)
    journals, values = [Edits() for _ in range(3)], [VALUES[table, name]() for _ in range(3)]
    for journal, value in zip(journals, values, strict=True):
        journal.set(model, table, name, value)
    alive = {0, 1, 2}
    for number in order:
        journals[number].undo()
        alive.discard(number)
        if alive:  # the youngest write that is still in force is what the slot holds
            assert slots(model, table)[name] is values[max(alive)]
    before.check()
    assert not writes_in_force(model)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_interleaved_journals_with_several_writes_each(order: tuple[int, ...]) -> None:
    model = Everything()
    before, journals = Snapshot(model), [Edits() for _ in range(3)]
    for number in (0, 1, 0, 2, 1, 0):
        for (table, name), make in VALUES.items():
            journals[number].set(model, table, name, make())
        journals[number].set_buffer(model, f"thr_{number}", torch.ones(2))
    for number in order:
        journals[number].undo()
    before.check()


def test_undo_puts_the_object_back_over_what_a_framework_wrote() -> None:
    model = Everything()
    before, edits = Snapshot(model), Edits()
    edits.set(model, "_parameters", "weight", nn.Parameter(torch.zeros(3)))
    edits.set(model, "_modules", "new", nn.Identity())
    model.weight = nn.Parameter(torch.ones(3))
    del model.new  # a key that is gone already is no error
    edits.undo()
    before.check()


def test_a_second_undo_does_nothing() -> None:
    model, edits, calls = Everything(), Edits(), []
    edits.set(model, "__dict__", "flag", False)
    edits.on_undo(lambda: calls.append(1))
    edits.undo()
    model.flag = "the user's own"
    edits.undo()
    assert model.flag == "the user's own"
    assert calls == [1]
    assert len(edits) == 0


def test_a_journal_can_be_used_again_after_undo() -> None:
    model, edits = Everything(), Edits()
    before = Snapshot(model)
    for _ in range(2):
        edits.set(model, "__dict__", "flag", False)
        edits.undo()
        before.check()


def test_a_transient_buffer_moves_with_the_module_but_is_not_in_its_state_dict() -> None:
    model, edits = Everything(), Edits()
    before, keys = Snapshot(model), list(model.state_dict())
    edits.set_buffer(model, "thr_sign", torch.ones(2))
    edits.set_buffer(model, "thr_value", torch.ones(2))
    assert list(model.state_dict()) == keys  # also "hidden" stays out
    assert {name for name, _ in model.named_buffers()} == {"mean", "hidden", "thr_sign", "thr_value"}
    edits.undo()
    before.check()
    edits.set_buffer(model, "thr_sign", torch.ones(2))
    assert model.double().thr_sign.dtype == torch.float64


def test_hooks_come_first_and_leave_no_trace() -> None:
    model, edits, calls = nn.ReLU(), Edits(), []
    model.register_forward_pre_hook(lambda module, args: calls.append("user"))
    before = Snapshot(model)
    edits.add_pre_hook(model, lambda module, args: calls.append("ours"))
    model(torch.ones(1))
    assert calls == ["ours", "user"]
    edits.undo()
    before.check()
    model(torch.ones(1))
    assert calls == ["ours", "user", "user"]


def test_clean_ups_run_newest_first_and_before_the_slots() -> None:
    model, edits, seen = Everything(), Edits(), []
    edits.set(model, "__dict__", "flag", False)
    edits.on_undo(lambda: seen.append(("first", model.flag)))
    edits.on_undo(lambda: seen.append(("second", model.flag)))
    edits.undo()
    assert seen == [("second", False), ("first", False)]


@pytest.mark.parametrize("error", [ValueError("one"), KeyboardInterrupt("one")])
def test_an_exception_in_a_clean_up_stops_neither_the_others_nor_the_slots(error: BaseException) -> None:
    model, edits, seen = Everything(), Edits(), []
    before = Snapshot(model)

    def fail(with_what: BaseException) -> None:
        seen.append(with_what)
        raise with_what

    edits.set(model, "_parameters", "weight", nn.Parameter(torch.zeros(3)))
    edits.on_undo(lambda: seen.append("oldest"))
    edits.on_undo(lambda: fail(RuntimeError("two")))
    edits.on_undo(lambda: fail(error))
    with pytest.raises(type(error), match="one"):  # the first one that happened
        edits.undo()
    assert [str(what) for what in seen] == ["one", "one", "two", "two", "oldest"]  # once more: it may be an interrupt
    before.check()
    edits.undo()  # nothing is left to do


def test_an_interrupted_undo_can_be_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, edits = Everything(), Edits()
    before = Snapshot(model)
    for (table, name), make in VALUES.items():
        edits.set(model, table, name, make())
    put_back, calls = _Layer._put_back, itertools.count()

    def interrupted(*arguments: object) -> None:
        put_back(*arguments)
        if next(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(_Layer, "_put_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        edits.undo()
    edits.undo()
    before.check()


def test_an_unknown_table_is_an_error_before_anything_is_written() -> None:
    model, edits = Everything(), Edits()
    with pytest.raises(KeyError):
        edits.set(model, "_tables", "name", 1)
    assert len(edits) == 0
    assert not writes_in_force(model)


def test_writes_in_force_tell_journals_apart() -> None:
    model, first, second = Everything(), Edits(), Edits()
    first.set(model.other, "__dict__", "flag", 1)
    one = writes_in_force(model)
    second.set(model.other, "__dict__", "flag", 1)  # the same value again is another write
    assert writes_in_force(model) != one
    second.undo()
    assert writes_in_force(model) == one
    first.undo()
    assert writes_in_force(model) == frozenset()


def test_a_dropped_journal_does_not_keep_the_model_alive() -> None:
    model, edits = Everything(), Edits()
    edits.set(model, "_parameters", "weight", nn.Parameter(torch.zeros(3)))
    gone = weakref.ref(model)
    del model, edits
    gc.collect()
    assert gone() is None


def test_paths_are_those_of_named_modules() -> None:
    model = nn.Sequential(Everything(), nn.Sequential(nn.ReLU(), Everything()))
    model.add_module("again", model[1])
    model.register_module("none", None)
    assert list(paths(model).items()) == [(module, path) for path, module in model.named_modules()]


@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize("times", [1, 2])
def test_an_action_that_raises_has_a_second_turn_and_no_third(failing: int, times: int) -> None:
    done: list[int] = []

    def act(item: int) -> None:
        done.append(item)
        if item == failing and done.count(item) <= times:
            raise ValueError(item, done.count(item))

    actions = [partial(act, item) for item in (1, 2, 3)]
    with pytest.raises(ValueError, match=rf"\({failing}, 1\)"):
        run_all(actions)
    assert sorted(done) == sorted([1, 2, 3, failing])
    assert not actions


def test_nothing_is_raised_where_nothing_fails() -> None:
    done: list[int] = []
    run_all([partial(done.append, 1), partial(done.append, 2)])
    assert done == [2, 1]


def test_a_dictionary_is_filled_in_the_order_of_the_items() -> None:
    keys = {"a": 1, "b": 2, "c": 3}
    refill(keys, {"c": 3, "a": 1})
    assert list(keys.items()) == [("c", 3), ("a", 1)]
