"""The figure: one row for each image, what the model saw and its maps, on one colour scale.

This file knows nothing about models or frameworks: it gets images and numbers.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from benchmarks.files import write_whole

INK = "#22262b"
FAINT = "#6f7782"
HAIRLINE = "#d5d9de"
BOX = "#e69f00"

# White in the middle, so that an empty map is as empty as the paper; both arms darken alike.
COLOURS = LinearSegmentedColormap.from_list(
    "blue_white_red", ["#08306b", "#2f7ebc", "#a6cee6", "#ffffff", "#fbb79b", "#dd4132", "#67000d"], N=511
)

# Inches: a panel, the gaps between panels, and the margins.
PANEL, GAP_X, GAP_Y = 1.9, 0.1, 0.27
LEFT, RIGHT, TOP, BOTTOM = 1.05, 0.85, 0.6, 0.72


@dataclass(frozen=True)
class Panel:
    """One map.

    Parameters
    ----------
    relevance : Tensor
        Shape ``(H, W)``, as shares of the map's total ``|relevance|``.
    title, subtitle : str
        Stand above the column, taken from the first row.
    note : str
        Stands below the map.
    """

    relevance: Tensor
    title: str
    subtitle: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One image and its maps.

    Parameters
    ----------
    image : Tensor
        Brightness in [0, 1], shape ``(H, W)``, shown as ink on paper, or ``(H, W, 3)``, shown in its colours.
    label, note : str
        Stand at the left, the note smaller.
    panels : tuple of Panel
        At least one.
    box : tuple of int or None
        Row and column of the upper left corner, and the side, of what a right map points at.
    """

    image: Tensor
    label: str
    note: str
    panels: tuple[Panel, ...]
    box: tuple[int, int, int] | None = None


def draw(rows: Sequence[Row], percentile: float = 99.5) -> Figure:
    """Draw the rows.

    Parameters
    ----------
    rows : sequence of Row
        At least one, with equally many panels.
    percentile : float
        The colours of a row end at this percentile of ``|relevance|`` over all its maps, so that a few pixels
        do not leave the rest pale.

    Returns
    -------
    Figure
        To be given to :func:`save`.
    """
    columns = 1 + len(rows[0].panels)
    width = LEFT + columns * (PANEL + GAP_X) - GAP_X + RIGHT
    height = TOP + len(rows) * (PANEL + GAP_Y) - GAP_Y + BOTTOM
    figure = Figure(figsize=(width, height), facecolor="white")
    for index, row in enumerate(rows):
        floor = height - TOP - PANEL - index * (PANEL + GAP_Y)
        lefts = [LEFT + column * (PANEL + GAP_X) for column in range(columns + 1)]
        axes = [_place(figure, left, floor, PANEL, PANEL) for left in lefts[:-1]]
        scale = _place(figure, lefts[-1], floor + 0.15 * PANEL, 0.07, 0.7 * PANEL)
        _draw_row(row, axes, scale, percentile)
        if index == 0:
            _draw_titles(row, axes)
    caption = (
        "Relevance of a pixel in % of its map's total |relevance|: red is for the class, blue against it.\n"
        f"One colour scale per row, ending at the {percentile:g}th percentile of its maps."
    )
    middle = LEFT + (columns * (PANEL + GAP_X) - GAP_X) / 2
    figure.text(middle / width, 0.1 / height, caption, ha="center", size=7.5, color=FAINT, linespacing=1.4)
    return figure


def _draw_titles(row: Row, axes: Sequence[Axes]) -> None:
    """Write the titles of the columns above the first row."""
    seen = "what the model sees" if row.box is None else "with the digit's box"
    titles = [("input", seen), *((panel.title, panel.subtitle) for panel in row.panels)]
    for axis, (title, subtitle) in zip(axes, titles, strict=True):
        _write(axis, title, (0.5, 1), (0, 18), "center", size=11, color=INK)
        _write(axis, subtitle, (0.5, 1), (0, 6), "center", size=8.5, color=FAINT)


def _place(figure: Figure, left: float, floor: float, width: float, height: float) -> Axes:
    """Add axes at a place given in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, floor / up, width / across, height / up))


def _write(
    axis: Axes,
    text: str,
    anchor: tuple[float, float],
    offset: tuple[float, float],
    align: str,
    **style: Any,
) -> None:
    """Write text at points away from an anchor, which is a share of the axes."""
    coordinates = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axis.annotate(text, anchor, offset, ha=align, **coordinates, **style)


def _draw_row(row: Row, axes: Sequence[Axes], scale: Axes, percentile: float) -> None:
    """Draw one image, its maps, and their common colour scale."""
    maps = 100 * torch.stack([panel.relevance for panel in row.panels]).double()
    limit = maps.abs().flatten().quantile(percentile / 100).item() or 1.0  # a map of zeros has no scale
    norm = Normalize(-limit, limit)
    axes[0].imshow(row.image.numpy(), cmap="gray_r", vmin=0, vmax=1)
    for axis, panel, values in zip(axes[1:], row.panels, maps, strict=True):
        axis.imshow(values.numpy(), cmap=COLOURS, norm=norm, interpolation="nearest")
        _write(axis, panel.note, (0.5, 0), (0, -11), "center", size=8, color=FAINT)
    for axis in axes:
        _frame(axis)
        if row.box is not None:
            _draw_box(axis, row.box, linewidth=1.6 if axis is axes[0] else 0.8)
    label = textwrap.fill(row.label, 12, break_long_words=False)
    size = 13 if len(label) < 3 else 9.5
    _write(axes[0], label, (0, 0.5), (-9, 1), "right", va="bottom", size=size, color=INK)
    _write(axes[0], row.note, (0, 0.5), (-9, -3), "right", va="top", size=8, color=FAINT)
    bar = axes[0].figure.colorbar(ScalarMappable(norm, COLOURS), cax=scale, ticks=[-limit, 0, limit])
    bar.ax.set_yticklabels([f"\u2212{limit:.2g} %", "0", f"+{limit:.2g} %"], size=7.5, color=FAINT)
    bar.ax.tick_params(length=0, pad=3)
    bar.outline.set_visible(False)


def _frame(axis: Axes) -> None:
    """Take away the ticks, and leave a hairline around the panel."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color=HAIRLINE, linewidth=0.6)


def _draw_box(axis: Axes, box: tuple[int, int, int], linewidth: float) -> None:
    """Draw the digit's box, strongly on the image and as a hint on a map."""
    row, column, side = box
    # Pixel centres lie on whole numbers, so a box around pixels begins half a pixel earlier.
    corner = (column - 0.5, row - 0.5)
    axis.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=BOX, linewidth=linewidth))


def save(figure: Figure, path: Path, dots_per_inch: int = 200) -> None:
    """Write a figure as a PNG file, all of it or nothing.

    Parameters
    ----------
    figure : Figure
        From :func:`draw`.
    path : Path
        Where to; its folder is made when it is missing.
    dots_per_inch : int
        Resolution.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dots_per_inch)
    write_whole(path, file.getvalue())
