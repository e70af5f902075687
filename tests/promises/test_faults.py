"""The matrix of faults: patterns times failure modes, a sample of the steps by default, every step in the slow mark."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from canon_bridge.core import restore
from canon_bridge.core.restore import Edits
from tests.support.faults.inject import Counter, Fault, at_lines, at_operations, at_writes
from tests.support.faults.matrix import MODES, cells, run
from tests.support.faults.modes import Subject
from tests.support.faults.patterns import PATTERNS, build

STRIDES = {"planning: lines": 450, "planning: operations": 7, "zennit raises": 31, "Captum raises": 41}
CELLS = [
    pytest.param(pattern, mode, marks=[pytest.mark.zennit] if mode == "zennit raises" else [])
    for pattern, mode in cells()
]


@pytest.mark.whole
@pytest.mark.parametrize(("pattern", "mode"), CELLS)
def test_the_model_is_itself_again_after_a_fault(pattern: str, mode: str, record_property: Any) -> None:
    record_property("cases", run(pattern, mode, STRIDES.get(mode, 31)))


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "mode"), CELLS)
def test_after_a_fault_at_any_step(pattern: str, mode: str, record_property: Any) -> None:
    record_property("cases", run(pattern, mode))


def test_every_pattern_meets_every_mode() -> None:
    assert len(PATTERNS) >= 20
    assert len(MODES) >= 13
    assert len(CELLS) >= 250


@pytest.mark.parametrize("inject", [at_operations, at_writes, at_lines])
def test_a_fault_is_raised_at_its_step(inject: Callable[[Counter], Any]) -> None:
    model, _ = build("left")
    subject = Subject.of(model, torch.randn(2, 4, 6, 6, dtype=torch.float64), "left")
    canonization = subject.canonization()
    counter = Counter()
    with inject(counter):
        canonization.apply()
    canonization.undo()
    assert counter.count > 10
    for k in (0, counter.count // 2, counter.count - 1):
        one = Counter(k)
        with pytest.raises(Fault), inject(one):
            canonization.apply()
        assert one.count > k
        assert one.where


def stop_at_the_first(self: Edits) -> None:
    while self._cleanups:
        self._cleanups.pop()()
    while self._stack:
        self._stack.pop().take_off()


def forget_one(self: Edits) -> None:
    for layer in self._stack[:1]:
        layer.old.popitem()
    UNDO(self)


def values_instead_of_objects(self: Edits) -> None:
    for layer in self._stack:
        for slot, old in layer.old.items():
            if isinstance(old, nn.Parameter):
                layer.old[slot] = nn.Parameter(old.detach(), old.requires_grad)
    UNDO(self)


UNDO = Edits.undo
WRONG = {
    "it stops at an exception": (stop_at_the_first, "exit: writes"),
    "it forgets a write": (forget_one, "block"),
    "it restores values instead of objects": (values_instead_of_objects, "block"),
    "entry does not undo": (lambda self: None, "entry: writes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_undo_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    undo, mode = WRONG[name]
    monkeypatch.setattr(Edits, "undo", undo)
    with pytest.raises(AssertionError):
        run("left", mode)


def unsorted(keys: Any, order: list[Any]) -> list[Any]:
    """Leave keys that come back behind the others."""
    return list(keys)


def test_a_wrong_order_of_keys_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "_arranged", unsorted)
    with pytest.raises(AssertionError):
        run("pruning, hooks", "block")


def test_a_patch_that_stays_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def cases() -> Iterator[str]:
        subject = Subject.of(*build("left"), "left")
        monkeypatch.setattr(torch, "zeros", lambda *_: None)
        subject.check("with a patch")
        yield ""

    with pytest.raises(AssertionError, match="patched"):
        list(cases())
