"""Times in units of the model's own forward: rounds in which each thing that is timed follows a forward.

Other processes slow everything that a round holds, so a ratio within a round says what medians of separate runs do not.
"""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.speed.figures import FORWARDS, MILLISECONDS, RATIO, Figure
from tests.support.measure import first_line

FEWEST = 3  # rounds, however long they take
Call = Callable[[], object]


@dataclass(frozen=True)
class Clock:
    """How seconds are counted.

    One thread on the CPU counts its processor time, which the load of other processes does not stretch; several
    threads, or a GPU that is waited for, count the time on the wall.
    """

    device: str = "cpu"
    threads: int = 1

    @property
    def name(self) -> str:
        """What it counts, in words."""
        return "processor time" if self._is_alone else "wall clock"

    @property
    def _is_alone(self) -> bool:
        return self.device == "cpu" and self.threads == 1

    def now(self) -> float:
        """Return the time in seconds, when all that was begun has ended."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.process_time() if self._is_alone else time.perf_counter()

    def seconds(self, call: Call) -> float:
        """Return how long a call takes."""
        start = self.now()
        call()
        return self.now() - start


@dataclass(frozen=True)
class Probe:
    """Something to time in each round: seconds for each row that it fills, with one ``prefer`` or with none."""

    prefer: str
    rows: tuple[str, ...]
    run: Callable[[Clock], Mapping[str, float]]


@dataclass(frozen=True)
class Rounds:
    """How often to measure: a number of rounds, fewer if they take more seconds, but three."""

    most: int
    seconds: float

    def __iter__(self) -> Iterator[int]:
        start = time.perf_counter()
        for number in range(self.most):
            if number >= FEWEST and time.perf_counter() - start > self.seconds:
                return
            gc.collect()
            yield number


Found = dict[tuple[str, str], list[float]]  # by prefer and row, one for each round


def interleave(clock: Clock, forward: Call, probes: Sequence[Probe], rounds: Rounds, **of: Any) -> list[Figure]:
    """Time each probe in turn, a forward before each, round after round.

    Parameters
    ----------
    clock : Clock
        What counts.
    forward : callable
        The model's own forward.
    probes : sequence of Probe
        What is timed; one that raises is dropped, and its figures say what it raised.
    rounds : Rounds
        How often.
    **of
        Model, batch and size, for the figures.
    """
    forward()
    seconds: Found = defaultdict(list)
    shares: Found = defaultdict(list)
    raised: dict[Probe, str] = {}
    for _ in rounds:
        units: list[float] = []
        found: dict[tuple[str, str], float] = {}
        for probe in [probe for probe in probes if probe not in raised]:
            units.append(clock.seconds(forward))
            try:
                found |= {(probe.prefer, row): value for row, value in probe.run(clock).items()}
            except Exception as error:
                raised[probe] = f"raises {first_line(error)}"
        forwards = median(units)
        seconds["", "own_forward"].append(forwards)
        for key, value in found.items():
            seconds[key].append(value)
            shares[key].append(value / forwards)
        for key, value in _compared(found, forwards).items():
            shares[key].append(value)
    milliseconds = [1000 * second for second in seconds["", "own_forward"]]
    figures = [Figure.of("own_forward", milliseconds, unit=MILLISECONDS, **of)]
    for (prefer, row), values in shares.items():
        times = seconds.get((prefer, row))
        unit = RATIO if row == "lrp_over_zennit" else FORWARDS
        time_itself = 1000 * median(times) if times else None
        figures.append(Figure.of(row, values, prefer=prefer, unit=unit, milliseconds=time_itself, **of))
    for probe, note in raised.items():
        figures += [Figure(row, prefer=probe.prefer, note=note, **of) for row in probe.rows]
    return figures


def _compared(found: Mapping[tuple[str, str], float], forward: float) -> dict[tuple[str, str], float]:
    """Return what only two probes of one round say together."""
    plain = found.get(("", "plain_open"))
    if plain is None:
        return {}
    opened = {prefer: value for (prefer, row), value in found.items() if row == "ours_open"}
    ours = {(prefer, "ours_over_plain"): (value - plain) / forward for prefer, value in opened.items()}
    called = {prefer: value for (prefer, row), value in found.items() if row == "lrp"}
    return ours | {(prefer, "lrp_over_zennit"): value / plain for prefer, value in called.items()}
