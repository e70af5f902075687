"""The figures as text, and as the page ``docs/speed.md``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.report import shorten
from benchmarks.speed.figures import MIB, MILLISECONDS, RATIO, ROWS, Figure, goal
from benchmarks.speed.parts import Parts

_HEADER = ("what", "model", "prefer", "images", "goal", "before", "now", "quartiles", "n")
_RULE = ("---", "---", "---", "---", "---:", "---:", "---:", "---:", "---:")


@dataclass
class Document:
    """A whole run: how it was made, and its figures; what is written as JSON.

    Attributes
    ----------
    command, setting : str
        What was run, and on what: versions, threads, clock, device.
    norms : dict
        Number of BatchNorms of each model.
    figures : list of Figure
        All that was measured.
    parts : list of Parts
        What some of them are made of.
    """

    command: str
    setting: str
    norms: dict[str, int] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    parts: list[Parts] = field(default_factory=list)

    @classmethod
    def read(cls, content: dict[str, Any]) -> Document:
        """Return the run that was written as JSON."""
        figures = [Figure(**figure) for figure in content["figures"]]
        parts = [Parts(**found) for found in content.get("parts", [])]
        return cls(content["command"], content["setting"], content["norms"], figures, parts)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        whole = {name: [one.as_dict() for one in getattr(self, name)] for name in ("figures", "parts")}
        return {**vars(self), **whole}

    def named(self, row: str) -> list[Figure]:
        """Return the figures of a row."""
        return [figure for figure in self.figures if figure.row == row]


def amount(value: float | None, unit: str) -> str:
    """Write a figure with its unit; forwards and ratios have none."""
    if value is None:
        return ""
    if unit in (MILLISECONDS, MIB):
        return f"{value:.0f} {unit}" if abs(value) >= 10 else f"{value:.1f} {unit}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def text(figure: Figure) -> str:
    """Return one line of text for a figure."""
    title = ROWS[figure.row][1].replace("`", "")
    what = f"{title:<72} {figure.model:<16} {figure.prefer:<6} {_images(figure):<9}"
    if figure.value is None:
        return f"{what} {shorten(figure.note, 90)}"
    return f"{what} {amount(figure.value, figure.unit):>9}  ({_quartiles(figure)}), n = {figure.repetitions}"


def markdown(document: Document, before: Document | None, plot: str | None) -> str:
    """Return the page: one table for each section, with what each figure should come to and what it was before.

    Parameters
    ----------
    document : Document
        What was measured.
    before : Document, optional
        An earlier run.
    plot : str, optional
        Where the plot is, as seen from the page.
    """
    lines = [
        "# What canonization costs",
        "",
        f"Made by `{document.command}`; {document.setting}.",
        "",
        "Times are in units of the model's own forward (evaluation mode, no gradients, same images), which runs before",
        "each thing that is timed; a figure is the median of n such rounds, beside it the first and third quartile.",
        "Random weights, random BatchNorm statistics of both signs, float32. *Goal*: at most; what is over it is bold.",
        "*Before*: " + (f"{before.setting}." if before else "no earlier run was given (`--before`)."),
    ]
    if plot is not None:
        lines += ["", f"![Cost in forwards of the model, against the goals; time of the plan by depth; memory]({plot})"]
    former = {figure.key: figure for figure in before.figures} if before else {}
    for section in dict.fromkeys(section for section, _ in ROWS.values()):
        rows = [row for row in ROWS if ROWS[row][0] == section]
        figures = [figure for row in rows for figure in document.named(row)]
        if figures:
            lines += ["", f"## {section}", "", _line(_HEADER), _line(_RULE)]
            lines += [_line(_cells(figure, former.get(figure.key), document.figures)) for figure in figures]
    if document.parts:
        lines += [
            "",
            "## What they are made of",
            "",
            "By torch's profiler, which makes each operation longer, in one run; where the Python is, by `cProfile` in",
            "another run: in modules of `canon_bridge` and in other packages.",
        ]
        head = ("what", "model", "prefer", "shares of its time", "where its Python is")
        lines += ["", _line(head), _line(("---",) * len(head))]
        lines += [_line(_shares(found)) for found in document.parts]
    return "\n".join([*lines, "", *_NOTES])


_NOTES = (
    "*What entering adds*: the first attribution of a context, with entry and exit, less the second, when the context",
    "is open already. *Growth*: the power of the number of BatchNorms, from the smallest to the largest of the",
    "DenseNets and of the residual nets (blocks of convolution, BatchNorm and ReLU beside a shortcut); 1 is linear.",
    "*Memory*: once for each line, in a process of its own: the peak of the resident set while `canonize(model)` is",
    "planned and applied, less what was resident before; merged tensors are those that the canonical model has and the",
    "model has not. *Import*: processor time of fresh processes that find bytecode, as an installed package has it.",
    "zennit has canonizers of its own for ResNets and VGGs.",
    "",
)


def _cells(figure: Figure, former: Figure | None, figures: Sequence[Figure]) -> tuple[str, ...]:
    most = goal(figure, figures)
    now = amount(figure.value, figure.unit) or shorten(figure.note, 90).replace("|", "\\|")
    if most is not None and figure.value is not None and figure.value > most:
        now = f"**{now}**"
    return (
        ROWS[figure.row][1],
        figure.model,
        figure.prefer,
        _images(figure),
        amount(most, figure.unit),
        amount(former.value, former.unit) if former else "",
        now,
        _quartiles(figure),
        str(figure.repetitions or ""),
    )


def _shares(found: Parts) -> tuple[str, ...]:
    columns = (found.shares, found.python)
    texts = (", ".join(f"{name} {share:.0%}" for name, share in one.items() if share >= 0.01) for one in columns)
    return ROWS[found.row][1], found.model, found.prefer, *texts


def _images(figure: Figure) -> str:
    return f"{figure.batch} x {figure.size} px" if figure.batch else ""


def _quartiles(figure: Figure) -> str:
    if figure.repetitions < 2:
        return ""
    return f"{amount(figure.low, RATIO)} to {amount(figure.high, RATIO)}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
