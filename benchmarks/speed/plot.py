"""One picture of the figures: cost against the goals, the plan's time by depth, memory by what is merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.speed.figures import SLACK_MIB, Figure, goal
from benchmarks.speed.models import RESIDUAL
from benchmarks.speed.page import Document

_TITLES = {
    "first": "first entry + exit",
    "again": "entry + exit, plan known",
    "ours_more": "zennit: what entering each time adds",
    "ours_over_plain": "zennit, open: canonical less un-canonized",
    "forward": "forward inside the block",
    "copy": "forward of a canonized copy",
    "lrp_over_zennit": "our LRP in Captum, over un-canonized zennit",
}
_COLORS = ("#0072B2", "#56B4E9", "#009E73", "#004D40", "#D55E00", "#CC79A7", "#E69F00")  # told apart by everyone
_MARKERS = {"left": "o", "right": "s", "untangled": "^"}
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}


def draw(document: Document, before: Document | None, path: Path) -> None:
    """Write the picture.

    Parameters
    ----------
    document : Document
        What was measured; largest batch and other sizes are in the page alone.
    before : Document, optional
        An earlier run, drawn faintly.
    path : Path
        Where to.
    """
    models = [name for name in document.norms if not name.startswith(RESIDUAL)] or list(document.norms)
    colors = dict(zip(models, _COLORS * (1 + len(models) // len(_COLORS)), strict=False))
    with mpl.rc_context(_STYLE):
        canvas = Canvas(figsize=(10.5, 5.8), layout="constrained")
        grid = canvas.add_gridspec(2, 2, width_ratios=(1.75, 1))
        _draw_costs(canvas.add_subplot(grid[:, 0]), document, before, colors)
        _draw_growth(canvas.add_subplot(grid[0, 1]), document)
        _draw_memory(canvas.add_subplot(grid[1, 1]), document, colors)
        handles = [Line2D([], [], ls="", marker="o", color=color, label=name) for name, color in colors.items()]
        handles += [
            Line2D([], [], ls="", marker=marker, color="0.35", mfc="none", label=f'prefer="{prefer}"')
            for prefer, marker in _MARKERS.items()
        ]
        handles.append(Line2D([], [], ls="", marker="|", ms=11, mew=2, color="black", label="goal, at most"))
        if before is not None:
            handles.append(Line2D([], [], ls="", marker="o", color="0.8", label="before"))
        canvas.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, dpi=160)


def _chosen(document: Document, row: str) -> list[Figure]:
    """Return the figures of a row for one image at the usual size."""
    found = [figure for figure in document.named(row) if figure.value is not None and figure.batch == 1]
    usual = max((figure.size for figure in document.named("first")), default=0)
    return [figure for figure in found if figure.size == usual]


def _draw_costs(axes: Axes, document: Document, before: Document | None, colors: Mapping[str, str]) -> None:
    """Draw a band for each row, and in it a line for each model and prefer: quartiles, median, goal, and before."""
    axes.set_title("Cost, in forwards of the model itself")
    for height, row in enumerate(_TITLES):
        if height % 2 == 0:
            axes.axhspan(height - 0.5, height + 0.5, color="0.955", lw=0, zorder=0)
        figures = sorted(_chosen(document, row), key=lambda f: (list(colors).index(f.model), f.prefer))
        former = {figure.key: figure for figure in _chosen(before, row)} if before else {}
        for number, figure in enumerate(figures):
            place = height + 0.76 * ((number + 0.5) / len(figures) - 0.5)
            color, marker = colors[figure.model], _MARKERS[figure.prefer]
            if figure.key in former:
                past = _seen(former[figure.key].value)
                axes.plot([past, _seen(figure.value)], [place] * 2, color="0.8", lw=0.8, zorder=1)
                axes.plot(past, place, marker, color="0.75", ms=3.5, mew=0, zorder=2)
            axes.plot([_seen(figure.low), _seen(figure.high)], [place] * 2, color=color, lw=1, zorder=3)
            axes.plot(_seen(figure.value), place, marker, color=color, ms=5, mew=0, zorder=4)
            most = goal(figure, document.figures)
            if most is not None:
                axes.plot([most] * 2, [place - 0.38 / len(figures), place + 0.38 / len(figures)], "k-", lw=1.6)
    axes.set_yticks(range(len(_TITLES)), list(_TITLES.values()))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(_TITLES) - 0.5, -0.5)
    axes.set_xscale("log")
    _write_numbers(axes.xaxis)
    axes.axvline(1, color="0.6", lw=0.8, ls=(0, (3, 3)), zorder=1)
    axes.grid(axis="x", color="0.88", lw=0.6, zorder=0)
    axes.spines["left"].set_visible(False)


_SMALLEST = 0.05  # a difference that is less, or negative, stands at the edge


def _seen(value: float | None) -> float:
    return max(value or 0.0, _SMALLEST)


def _draw_growth(axes: Axes, document: Document) -> None:
    axes.set_title("Time of the plan, by depth")
    for prefix, color, label in ((RESIDUAL, "#D55E00", "residual nets"), ("densenet", "#0072B2", "DenseNets")):
        for prefer, style in (("left", "-"), ("right", "--")):
            points = sorted(
                (document.norms[figure.model], figure.milliseconds)
                for figure in document.named("plan")
                if figure.model.startswith(prefix) and figure.prefer == prefer and figure.milliseconds is not None
            )
            if points:
                axes.plot(*zip(*points, strict=True), style, color=color, marker=_MARKERS[prefer], ms=4, label=label)
                label = "_"
    axes.set(xscale="log", yscale="log", xlabel="BatchNorms", ylabel="milliseconds")
    low, high = axes.get_xlim()
    base = axes.get_ylim()[0]
    axes.plot([low, high], [base, base * high / low], ":", color="0.5", lw=1, label="linear")
    axes.set_xlim(low, high)
    _write_numbers(axes.xaxis)
    _write_numbers(axes.yaxis)
    axes.legend(frameon=False, loc="upper left")


def _draw_memory(axes: Axes, document: Document, colors: Mapping[str, str]) -> None:
    axes.set_title("Memory that entry adds")
    merged = {figure.key[1:]: figure.value for figure in document.named("merged")}
    sizes: list[float] = []
    for figure in document.named("memory"):
        size = merged.get(figure.key[1:])
        if size is not None and figure.value is not None:
            sizes.append(size)
            color = colors.get(figure.model, "0.5")
            axes.plot(size, figure.value, _MARKERS[figure.prefer], color=color, ms=5, mew=0)
    most = max(sizes, default=1.0)
    line = [most * step / 200 for step in range(1, 220)]
    axes.plot(line, [1.2 * x + SLACK_MIB for x in line], color="black", lw=1.2, label="goal: 1.2 merged + 20 MiB")
    axes.plot(line, line, ":", color="0.5", lw=1, label="the merged tensors")
    axes.set(xscale="log", yscale="log", xlabel="merged tensors, MiB", ylabel="peak added, MiB")
    if sizes:
        axes.set_xlim(0.7 * min(sizes), 1.4 * max(sizes))
        axes.set_ylim(bottom=0.7 * min(sizes))
    _write_numbers(axes.xaxis)
    _write_numbers(axes.yaxis)
    axes.legend(frameon=False)


def _write_numbers(axis: Axis) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
