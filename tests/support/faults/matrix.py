"""The matrix: every pattern times every failure mode, and how many cases each cell has."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from tests.support.faults import frameworks, modes
from tests.support.faults.modes import Subject
from tests.support.faults.patterns import COPIES, PATTERNS, WRITE_ON_THEMSELVES, build

ORDERS: Final = ("left", "right")

# From a subject and a stride, of which one means every step, to the cases.
Mode = Callable[[Subject, int], Iterator[str]]

OUTSIDE: Final[dict[str, Mode]] = {
    f"{name}: {inject}s": partial(act, inject)
    for name, act, injects in (
        ("planning", modes.planning, ("operation", "line")),
        ("entry", modes.applying, ("operation", "write", "line")),
        ("exit", modes.undoing, ("operation", "write", "line")),
    )
    for inject in injects
}
INSIDE: Final[dict[str, Mode]] = {
    "block": lambda subject, stride: modes.normal(subject),
    "raised inside": lambda subject, stride: modes.in_block(subject),
    "hooks left": lambda subject, stride: modes.hooks_left(subject),
    "zennit raises": frameworks.zennit_raises,
    "Captum raises": frameworks.captum_raises,
}
MODES: Final[dict[str, Mode]] = {**INSIDE, **OUTSIDE}


def cells() -> Iterator[tuple[str, str]]:
    """Yield the name of a pattern and of a mode for each cell."""
    for pattern in PATTERNS:
        for mode in OUTSIDE if pattern in WRITE_ON_THEMSELVES else MODES:
            yield pattern, mode


def run(pattern: str, mode: str, stride: int = 1) -> int:
    """Run the cases of a cell, in the orders that there are for the pattern, and return how many there were.

    Raises
    ------
    AssertionError
        If a model does not come back to the bit.
    """
    count = 0
    for prefer in ("untangled",) if pattern == COPIES else ORDERS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Captum's, about its own workings
            count += sum(1 for _ in MODES[mode](Subject.of(*build(pattern), prefer), stride))
    return count
