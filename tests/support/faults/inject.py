"""Faults that are raised at one step of what the package does: a tensor operation, a write, or a line of its source."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import canon_bridge
from canon_bridge.core.restore import Edits, _Layer

PACKAGE = str(Path(canon_bridge.__file__).resolve().parent)


class Fault(BaseException):
    """No ``Exception``, as an interrupt is none."""


class Counter:
    """Counts steps, and raises at one of them (never, if that is -1)."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.count = at, 0
        self.where = ""

    def step(self, where: str = "") -> None:
        """Count a step; raise if it is the one."""
        self.count += 1
        if self.count - 1 == self.at:
            self.where = where
            raise Fault(where)


class _Operations(TorchDispatchMode):
    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counter.step(str(func))
        return func(*args, **(kwargs or {}))


def at_operations(counter: Counter) -> AbstractContextManager[Any]:
    """Raise in place of the k-th tensor operation."""
    return _Operations(counter)


@contextmanager
def at_writes(counter: Counter) -> Iterator[None]:
    """Raise before and after each write of the journal and each of their undos, on the table of the class."""
    places: list[tuple[type, str]] = [
        *((Edits, name) for name in ("set", "set_class", "add_pre_hook", "on_undo")),
        *((_Layer, name) for name in ("take_off", "_put_back", "forget")),
    ]
    originals = [(owner, name, vars(owner)[name]) for owner, name in places]

    def faulty(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            counter.step(f"before {name}")
            result = function(*args)
            counter.step(f"after {name}")
            return result

        return call

    for owner, name, function in originals:
        setattr(owner, name, faulty(name, function))
    try:
        yield
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


@contextmanager
def at_lines(counter: Counter) -> Iterator[None]:
    """Raise before each line of the package that is run, the first time that it is: as an interrupt might."""
    seen: set[tuple[str, int]] = set()

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        place = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and place not in seen:
            seen.add(place)
            counter.step(f"{Path(place[0]).name}:{place[1]} in {frame.f_code.co_name}")
        return local

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


INJECTORS: dict[str, Callable[[Counter], AbstractContextManager[Any]]] = {
    "operation": at_operations,
    "write": at_writes,
    "line": at_lines,
}


def steps(inject: str, action: Callable[[], object]) -> int:
    """Return how many steps an action has, by running it once without a fault."""
    counter = Counter()
    with torch.random.fork_rng(), INJECTORS[inject](counter):
        action()
    return counter.count
