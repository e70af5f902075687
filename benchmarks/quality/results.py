"""What was measured, as JSON that a run which was cut goes on with, and the intervals that make it evidence."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t

from benchmarks.files import write_whole
from benchmarks.quality.examine import METRICS
from benchmarks.quality.ways import Way

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Record:
    """What one way came to for one network.

    Attributes
    ----------
    architecture, seed : str, int
        Which network.
    way : Way
        How the maps were made.
    figures : dict of str to float
        One for each metric, the mean over images.
    """

    architecture: str
    seed: int
    way: Way
    figures: dict[str, float]


@dataclass
class Results:
    """All that was measured.

    Attributes
    ----------
    settings : dict
        What figures depend on; those of other settings do not stand beside them.
    runs : list of str
        Command, commit and versions of each run that measured something.
    accuracies : dict
        Share of held-out digits read right, by architecture and seed.
    records : list of Record
        In the order in which they came.
    """

    settings: dict[str, Any]
    runs: list[str] = field(default_factory=list)
    accuracies: dict[str, dict[int, float]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Return what was written."""
        content = json.loads(path.read_text())
        accuracies = {
            name: {int(seed): value for seed, value in of.items()} for name, of in content["accuracies"].items()
        }
        records = [Record(**{**record, "way": Way(**record["way"])}) for record in content["records"]]
        return cls(content["settings"], content["runs"], accuracies, records)

    def write(self, path: Path) -> None:
        """Write it, one record a line."""
        head = {name: value for name, value in vars(self).items() if name != "records"}
        lines = ",\n".join(json.dumps(asdict(record)) for record in self.records)
        write_whole(path, f'{json.dumps(head)[:-1]}, "records": [\n{lines}\n]}}\n')

    def missing(self, architecture: str, seed: int, ways: Sequence[Way]) -> list[Way]:
        """Return those of the ways that are not there for a network."""
        there = {record.way for record in self.records if (record.architecture, record.seed) == (architecture, seed)}
        return [way for way in ways if way not in there]

    def values(self, metric: str, architecture: str, way: Way) -> dict[int, float]:
        """Return a metric by seed; the logarithm of one whose networks differ by factors."""
        change = math.log if METRICS[metric].is_ratio else float
        found = [record for record in self.records if (record.architecture, record.way) == (architecture, way)]
        return {record.seed: change(record.figures[metric]) for record in found}

    def interval(self, metric: str, architecture: str, way: Way) -> Interval:
        """Return the mean of :meth:`values` over networks."""
        return Interval.of(list(self.values(metric, architecture, way).values()))

    def verdict(self, metric: str, architecture: str, way: Way, reference: Way) -> int:
        """Return 1 where a way is better than a reference, -1 where it is worse, 0 where the interval does not say.

        The interval is that of the differences, each between maps of the same network.
        """
        values, others = (self.values(metric, architecture, one) for one in (way, reference))
        sign = Interval.of([values[seed] - others[seed] for seed in values if seed in others]).sign
        return sign if METRICS[metric].is_better_high else -sign

    def differ(self, architecture: str, way: Way, other: Way) -> bool:
        """Return whether two ways differ in a figure of the same network; equal maps are equal in all."""
        pairs = [[self.values(metric, architecture, one) for one in (way, other)] for metric in METRICS]
        return any(one[seed] != two[seed] for one, two in pairs for seed in one.keys() & two.keys())


@dataclass(frozen=True)
class Interval:
    """A mean, and Student's 95 % interval for it; of a single value the interval has no end."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Return that of values that are independent; of none, not a number."""
        if not values:
            return cls(math.nan, math.nan)
        if len(values) == 1:
            return cls(values[0], math.inf)
        quantile = float(t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1))
        return cls(fmean(values), quantile * stdev(values) / math.sqrt(len(values)))

    @property
    def sign(self) -> int:
        """Return 1 or -1 where the interval is above or below zero, else 0."""
        return (self.mean > self.half) - (self.mean < -self.half)
