"""The measures in one picture: a row for each, a column for each architecture, and in a panel the orders by rule."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from benchmarks.files import write_whole
from benchmarks.quality.examine import METRICS
from benchmarks.quality.page import orders, rules
from benchmarks.quality.results import Results
from benchmarks.quality.ways import BASELINES, UNCANONIZED, Way, twins

_DRAWN = {
    "share": "positive relevance\nin the box",
    "rank": "rank accuracy",
    "flipping": "class probability\nwhile flipping",
    "gini": "Gini index",
    "sensitivity": "max sensitivity",
    "randomisation": "correlation with maps\nof random weights",
}
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # told apart by everyone
_MARKERS = "osD^"
_LINES = {"gradient times input": "--", "random": ":"}
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
}


def draw(results: Results, path: Path) -> None:
    """Write the picture.

    Parameters
    ----------
    results : Results
        What was measured.
    path : Path
        Where to, a PNG.
    """
    names = list(results.accuracies)
    with mpl.rc_context(_STYLE):
        canvas = Figure(figsize=(3.05 * len(names) + 0.9, 1.62 * len(_DRAWN) + 1.2), layout="constrained")
        grid = canvas.subplots(len(_DRAWN), len(names), sharex=True, sharey="row", squeeze=False)
        for row, (metric, title) in zip(grid, _DRAWN.items(), strict=True):
            for axes, architecture in zip(row, names, strict=True):
                _draw_panel(axes, results, metric, architecture)
            direction = "↑" if METRICS[metric].is_better_high else "↓"
            row[0].set_ylabel(f"{title}\n({direction} better)")
        for axes, architecture in zip(grid[0], names, strict=True):
            axes.set_title(architecture)
        canvas.align_ylabels()
        handles = [
            Line2D([], [], color=color, marker=marker, ls="", label=rule)
            for color, marker, rule in zip(_COLORS, _MARKERS, rules(results), strict=False)
        ]
        handles += [Line2D([], [], color="0.35", ls=style, lw=1.1, label=name) for name, style in _LINES.items()]
        canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        content = io.BytesIO()
        canvas.savefig(content, dpi=150, format="png")
    write_whole(path, content.getvalue())


def _draw_panel(axes: Axes, results: Results, metric: str, architecture: str) -> None:
    """Draw mean and interval of every order and rule, and the baselines as lines."""
    is_ratio = METRICS[metric].is_ratio
    back = math.exp if is_ratio else float
    for name, style in _LINES.items():
        assert name in BASELINES
        middle = results.interval(metric, architecture, Way("", name)).mean
        axes.axhline(back(middle), color="0.35", ls=style, lw=1.1, zorder=1)
    shown = orders(results)
    for place, order in enumerate(shown):
        if order in twins():
            axes.axvspan(place - 0.5, place + 0.5, color="0.94", lw=0, zorder=0)
        for number, rule in enumerate(rules(results)):
            found = results.interval(metric, architecture, Way(rule, order))
            if math.isnan(found.mean):
                continue
            x = place + 0.24 * (number - (len(rules(results)) - 1) / 2)
            half = found.half if math.isfinite(found.half) else 0.0
            ends = [back(found.mean - half), back(found.mean + half)]
            axes.plot([x, x], ends, color=_COLORS[number], lw=1.4, zorder=2)
            face = "white" if order == UNCANONIZED else _COLORS[number]
            axes.plot(x, back(found.mean), _MARKERS[number], color=_COLORS[number], mfc=face, ms=4.5, zorder=3)
    axes.set_xlim(-0.5, len(shown) - 0.5)
    axes.set_xticks(range(len(shown)), [order.replace(", ", "\n").replace("un-", "un-\n") for order in shown])
    axes.tick_params(axis="x", length=0, labelsize=7.2)
    axes.grid(axis="y", color="0.88", lw=0.6, zorder=0)
    axes.set_axisbelow(True)
    if is_ratio:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
