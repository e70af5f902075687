"""The report of an audit: numbers, a table, a chart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from canon_bridge.auditing.causes import CAUSES, LOST
from canon_bridge.core import align, folded, html_table


@dataclass(frozen=True)
class Entry:
    """What became of relevance at one module, over all its calls.

    Attributes
    ----------
    path : str
        Its name in the model.
    kind : str
        Its type.
    rule : str
        The rule on it, or ``""``.
    is_container : bool
        Whether it calls other modules; ``taken`` is then what its own forward does besides.
    calls : int
        How often it was called.
    arrived, handed_down : float
        The sum of the relevance at its output, and at its inputs.
    flow : float
        The sum of the absolute relevance at its output or its inputs, whichever is larger.
    taken : mapping of str to float
        What became of the difference, by cause; negative where relevance appeared.
    """

    path: str
    kind: str
    rule: str
    is_container: bool
    calls: int
    arrived: float
    handed_down: float
    flow: float
    taken: Mapping[str, float]

    @property
    def lost(self) -> float:
        """The relevance that no rule accounts for."""
        return sum(self.taken[cause] for cause in LOST)


@dataclass(frozen=True)
class Audit:
    """Where the relevance of one attribution went; returned by :func:`canon_bridge.audit`.

    Attributes
    ----------
    model, rules : str
        What was audited.
    score : float
        :math:`f(x)`, summed over the batch.
    scale : float
        :math:`|f(x)|`, summed over the batch.
    relevance : float
        The relevance at the inputs.
    entries : tuple of Entry
        One for each module that was called, in the order of the first call.
    eps : float
        The rounding of the data type, 2.2e-16 for float64 and 1.2e-7 for float32.
    """

    model: str
    rules: str
    score: float
    scale: float
    relevance: float
    entries: tuple[Entry, ...]
    eps: float

    def taken(self, cause: str) -> float:
        """Return what one cause (``biases``, ``stabilisers``, ``clipped``, ``gates``, ``elsewhere``) took in total."""
        return sum(entry.taken[cause] for entry in self.entries)

    @property
    def lost(self) -> float:
        """All relevance that no rule accounts for, each module by its absolute value so that nothing cancels."""
        return sum(abs(entry.lost) for entry in self.entries)

    @property
    def defect(self) -> float:
        """What was lost, relative to :math:`|f(x)|`."""
        return self.lost / self.scale if self.scale else float("inf") if self.lost else 0.0

    @property
    def widest(self) -> Entry:
        """The module with the largest flow, the sum of absolute relevance."""
        return max(self.entries, key=lambda entry: entry.flow)

    @property
    def defect_of_flow(self) -> float:
        """What was lost, relative to the largest flow: rounding in float64 is 1e-14 or less."""
        flow = max(self.widest.flow, self.scale)
        return self.lost / flow if flow else 0.0

    def worst(self, limit: int = 10) -> list[Entry]:
        """Return the modules that lost most: more than rounding, a thousand times ``eps`` of what flows there."""
        lost = [entry for entry in self.entries if abs(entry.lost) > 1e3 * self.eps * max(entry.flow, self.scale)]
        return sorted(lost, key=lambda entry: -abs(entry.lost))[:limit]

    def largest(self, limit: int = 10) -> list[Entry]:
        """Return the modules where most relevance was taken, whatever the cause."""
        return sorted(self.entries, key=_size, reverse=True)[:limit]

    def totals(self) -> list[tuple[str, float]]:
        """Return what became of the score: each label and its sum; they add up to the score."""
        labels = ("at the input", "biases", "stabilisers", "clipped constants", "gates", "elsewhere")
        return list(zip(labels, (self.relevance, *map(self.taken, CAUSES)), strict=True))

    def __str__(self) -> str:
        """Return totals and a table of the modules that matter."""
        return "\n".join([*self._head(), "", *self.table(self.worst() or self.largest())])

    def _head(self) -> list[str]:
        lines = [f"Relevance of {self.model}, {self.rules}: where f(x) = {self.score:.6g} went", ""]
        for label, value in self.totals():
            lines.append(f"  {label:<20}{value:>14.6g}{100 * self.share(value) + 0.0:10.1f} %")
        widest = self.widest
        lines += [
            "",
            f"defect: {self.defect:.1e} of |f|, {self.defect_of_flow:.1e} of the largest flow",
            f"largest flow: {widest.flow / self.scale if self.scale else widest.flow:.3g} |f| at {widest.path} "
            f"({widest.kind})",
        ]
        count = len(self.worst(len(self.entries)))
        where = f"relevance is lost at {count} modules, those with most:" if count else "where most was absorbed:"
        return [*lines, "", where]

    def table(self, entries: Sequence[Entry]) -> list[str]:
        """Return a table of these modules as lines, in per cent of the score."""
        return list(align([_HEADER, *self._rows(entries)], left=3))

    def _rows(self, entries: Sequence[Entry]) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for entry in entries:
            values = (entry.arrived, entry.handed_down, *(entry.taken[cause] for cause in CAUSES))
            rows.append(
                (entry.path, entry.kind, entry.rule or _NO_RULE[entry.is_container], *map(self._percent, values))
            )
        return rows

    def _repr_html_(self) -> str:
        """Return the audit for a notebook: totals, then the modules that matter."""
        title, *_ = self._head()
        totals = [(label, f"{value:.6g}", f"{100 * self.share(value) + 0.0:.1f} %") for label, value in self.totals()]
        worst = self.worst()
        where = (
            f"where relevance is lost: {len(self.worst(len(self.entries)))} modules"
            if worst
            else "where most was taken"
        )
        return (
            f'<div style="max-width:60em"><p><b>{escape(title)}</b><br>defect: {self.defect:.1e} of |f|, '
            f"{self.defect_of_flow:.1e} of the largest flow</p>"
            + html_table(("what became of it", "relevance", "share"), totals, left=1)
            + folded(f"{where}, in % of f(x)", html_table(_HEADER, self._rows(worst or self.largest()), left=3), True)
            + "</div>"
        )

    def _percent(self, value: float) -> str:
        share = 100 * self.share(value)
        if abs(share) < 5e-3:
            return "-"
        return f"{share:.2f}" if abs(share) < 1e4 else f"{share:.1e}"

    def share(self, value: float) -> float:
        """Return relevance relative to :math:`|f(x)|`, with the sign of :math:`f(x)`: positive speaks for the score."""
        return value / math.copysign(self.scale, self.score) if self.scale else 0.0

    def bars(self, limit: int = 16) -> Any:
        """Draw the totals and the modules where most was taken, as bars; needs matplotlib.

        Parameters
        ----------
        limit : int, default 16
            How many modules.

        Returns
        -------
        matplotlib.figure.Figure
            Save it with ``.savefig(path)``.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        from canon_bridge.auditing.chart import draw

        return draw(self, limit)


_HEADER = ("module", "type", "rule", "arrived", "handed down", *CAUSES)
_NO_RULE = {False: "none: gradient", True: "(own forward)"}


def _size(entry: Entry) -> float:
    return max(map(abs, entry.taken.values()))
