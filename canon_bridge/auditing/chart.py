"""The audit as a chart, with matplotlib."""

from typing import Any

from canon_bridge.auditing.causes import CAUSES
from canon_bridge.auditing.report import Audit

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = {
    "at the input": "#0072B2",
    "biases": "#56B4E9",
    "stabilisers": "#999999",
    "clipped": "#F0E442",
    "gates": "#E69F00",
    "elsewhere": "#D55E00",
}


def draw(audit: Audit, limit: int) -> Any:
    """Return a figure: what became of the score on the left, where on the right."""
    from matplotlib.figure import Figure

    entries = audit.largest(limit)
    figure = Figure(figsize=(11, 1.6 + 0.24 * max(len(entries), 6)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    labels = [label for label, _ in audit.totals()]
    left.barh(labels, [audit.share(value) for _, value in audit.totals()], color=list(COLOURS.values()))
    left.invert_yaxis()
    left.set_xlabel("share of f(x)")
    left.set_title(f"{audit.model}, {audit.rules}\ndefect {audit.defect:.0e} of |f(x)|", loc="left", fontsize=10)
    paths = [entry.path for entry in entries]
    ahead, behind = [0.0] * len(entries), [0.0] * len(entries)
    for cause in CAUSES:
        values = [audit.share(entry.taken[cause]) for entry in entries]
        starts = [a if value >= 0 else b for value, a, b in zip(values, ahead, behind, strict=True)]
        right.barh(paths, values, left=starts, color=COLOURS[cause], label=cause)
        ahead = [a + max(value, 0) for a, value in zip(ahead, values, strict=True)]
        behind = [b + min(value, 0) for b, value in zip(behind, values, strict=True)]
    right.invert_yaxis()
    right.set_xlabel("taken, share of f(x)")
    right.set_title("where most was taken", loc="left", fontsize=10)
    right.tick_params(axis="y", labelsize=8)
    right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.axvline(0, color="black", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
