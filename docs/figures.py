"""Draw the figures of the page on the mathematics: ``python docs/figures.py`` writes ``docs/figures/*.svg``.

Every curve is computed from the formula beside it; the same run gives the same bytes.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent / "figures"
BLUE, ORANGE, GREY, LIGHT = "#1f5a99", "#c4561a", "#5b6472", "#eef1f5"
STYLE = {
    "svg.hashsalt": "canon_bridge",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
}


def boxes(axis: Axes, height: float, label: str, texts: list[tuple[str, str]]) -> None:
    """Draw a row of named boxes with arrows between them."""
    axis.text(0.2, height, label, va="center", color=GREY)
    for index, (name, formula) in enumerate(texts):
        centre = 2.9 + 2.6 * index
        colour = {"BatchNorm": ORANGE, "identity": GREY}.get(name, BLUE)
        box = {"boxstyle": "round,pad=0.45", "facecolor": LIGHT, "edgecolor": colour}
        axis.text(centre, height, f"{name}\n{formula}", ha="center", va="center", bbox=box, linespacing=1.5, size=9)
        if index:
            arrow = {"arrowstyle": "->", "color": GREY}
            axis.annotate("", (centre - 0.93, height), (centre - 1.67, height), arrowprops=arrow)


def rows(before: list[tuple[str, str]], after: list[tuple[str, str]]) -> Figure:
    """Draw a chain before and after its merge."""
    width = 2.9 + 2.6 * (len(before) - 1) + 1.4
    figure = Figure(figsize=(0.78 * width, 1.9))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(0, 2))
    axis.set_axis_off()
    boxes(axis, 1.5, "as written", before)
    boxes(axis, 0.5, "canonical", after)
    return figure


def left() -> Figure:
    """Draw the merge to the left."""
    return rows(
        [("linear", "$W x + c$"), ("BatchNorm", "$s\\,x + b$")],
        [("linear", "$(sW)\\,x + (s c + b)$"), ("identity", "$x$")],
    )


def right() -> Figure:
    """Draw the merge to the right, through a ReLU."""
    return rows(
        [("BatchNorm", "$s\\,x + b$"), ("ReLU", "$\\max(x, 0)$"), ("linear", "$W x + c$")],
        [("identity", "$x$"), ("thresholded", "$\\max(x, -b/s)$"), ("linear", "$(W s)\\,x + (c + W b)$")],
    )


def border() -> Figure:
    """Draw what a shift of one becomes behind a 3x3 convolution with zero padding, measured by running it."""
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
    shift = torch.ones(1, 1, 7, 7)
    exact = torch.nn.functional.conv2d(shift, kernel[None, None], padding=1)[0, 0]
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    axes = figure.subplots(1, 3)
    panels = ((kernel, "kernel $W$"), (exact.new_ones(7, 7), "one number for each channel"), (exact, "the border map"))
    for axis, (values, title) in zip(axes, panels, strict=True):
        axis.imshow(values, cmap="Blues", vmin=0, vmax=1.3)
        for (row, column), value in np.ndenumerate(values.numpy()):
            colour = "white" if value > 0.7 else "black"
            axis.text(column, row, f"{value:.2f}".removeprefix("0"), ha="center", va="center", size=7, color=colour)
        axis.set_title(title, size=10)
        axis.set(xticks=[], yticks=[])
    axes[1].set_xlabel("wrong at the border", color=ORANGE)
    axes[2].set_xlabel("right everywhere", color=BLUE)
    return figure


def curves(function: Callable[[torch.Tensor], torch.Tensor], name: str, is_relu: bool) -> Figure:
    """Draw an activation behind a map, and what takes its place, for a scale of either sign."""
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    x = torch.linspace(-3, 3, 601)
    for axis, (scale, shift) in zip(figure.subplots(1, 2, sharey=True), ((0.5, 0.5), (-0.5, 0.5)), strict=True):
        whole = function(scale * x + shift)
        axis.axhline(0, color=GREY, linewidth=0.5)
        axis.axvline(0, color=GREY, linewidth=0.5)
        axis.plot(x, whole, color=ORANGE, linestyle="--", label=f"${name}(s x + b)$")
        axis.plot(x, (whole - shift) / scale, color=BLUE, label="what takes its place")
        if is_relu:
            threshold = -shift / scale
            clipped = (-3, threshold) if scale > 0 else (threshold, 3)
            axis.axvspan(*clipped, color="#dde3ec", label="clipped", zorder=0)
            axis.plot([threshold], [threshold], "o", color=BLUE, markersize=4)
            axis.annotate("$t = -b/s$", (threshold, threshold), (6, -14), textcoords="offset points", color=BLUE)
        axis.set(title=f"$s = {scale}$, $b = {shift}$", xlabel="$x$", ylim=(-3, 3.2), xlim=(-3, 3))
        axis.legend(loc="upper left" if scale > 0 else "lower right", fontsize=8, frameon=False)
    return figure


def thresholded() -> Figure:
    """Draw the thresholded ReLU."""
    return curves(torch.relu, "\\mathrm{relu}", True)


def general() -> Figure:
    """Draw the general form, for SiLU."""
    return curves(torch.nn.functional.silu, "\\mathrm{silu}", False)


def pooling() -> Figure:
    """Draw a window of max pooling behind a positive and a negative scale."""
    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    values = np.array([0.6, 1.8, -0.7, 1.1])
    for axis, scale in zip(figure.subplots(1, 2), (0.5, -0.5), strict=True):
        winner = int(np.argmax(scale * values))
        position = np.arange(4)
        colours = [BLUE if index == winner else "#b9c7d9" for index in position]
        axis.bar(position - 0.2, values, 0.38, color=colours)
        axis.bar(position + 0.2, scale * values, 0.38, color=[ORANGE if i == winner else "#ecc9b4" for i in position])
        axis.axhline(0, color=GREY, linewidth=0.8)
        kind = "largest" if scale > 0 else "smallest"
        axis.set_title(f"$s = {scale}$: the winner is the {kind} $x$", size=10)
        axis.set(xticks=[], ylim=(-1.2, 2.2))
        axis.text(3.5, 2.0, "$x$", color=BLUE, ha="right")
        axis.text(3.5, 1.6, "$s\\,x$", color=ORANGE, ha="right")
    return figure


def concatenation() -> Figure:
    """Draw which channels of a map behind a concatenation belong to which branch."""
    figure = Figure(figsize=(6.4, 1.8))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 10), ylim=(0, 3))
    axis.set_axis_off()
    branches = ((2, 3, "branch 1: channels 0 to 2", BLUE), (5, 4, "branch 2: channels 3 to 6", ORANGE))
    for start, count, name, colour in branches:
        for index in range(count):
            for height in (0.3, 1.6):
                axis.add_patch(
                    matplotlib.patches.Rectangle((start + index, height), 0.9, 0.55, facecolor=LIGHT, edgecolor=colour)
                )
            axis.annotate(
                "", (start + index + 0.45, 1.55), (start + index + 0.45, 0.9), arrowprops={"arrowstyle": "->"}
            )
        axis.text(start + count / 2 - 0.05, 2.4, name, ha="center", color=colour)
    axis.text(1.8, 1.87, "linear layers", ha="right", va="center", color=GREY, size=9)
    axis.text(1.8, 0.57, "$(s, b)$", ha="right", va="center", color=GREY)
    return figure


def copies() -> Figure:
    """Draw a layer with two readers, as written and with a copy for each."""
    figure = Figure(figsize=(7.2, 3.0))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 10.4), ylim=(0, 4.2))
    axis.set_axis_off()
    written = ("linear\n$W x + c$", "BatchNorm\n$s_%d\\,x + b_%d$", ORANGE)
    canonical = ("linear\n$(s_1 W)\\,x + (s_1 c + b_1)$\n$(s_2 W)\\,x + (s_2 c + b_2)$", "select\ncopy %d", BLUE)
    for label, height, (layer, reader, colour) in (("as written", 3.1, written), ("canonical", 1.0, canonical)):
        axis.text(0.2, height, label, va="center", color=GREY)
        for number, offset in ((1, 0.5), (2, -0.5)):
            text = reader.replace("%d", str(number))
            for centre, name, edge in ((6.6, text, colour), (9.0, "ReLU", BLUE)):
                box = {"boxstyle": "round,pad=0.4", "facecolor": LIGHT, "edgecolor": edge}
                axis.text(centre, height + offset, name, ha="center", va="center", bbox=box, linespacing=1.4, size=9)
            arrow = {"arrowstyle": "->", "color": GREY}
            axis.annotate("", (5.75, height + offset), (4.6, height), arrowprops=arrow)
            axis.annotate("", (8.4, height + offset), (7.5, height + offset), arrowprops=arrow)
        box = {"boxstyle": "round,pad=0.45", "facecolor": LIGHT, "edgecolor": BLUE}
        axis.text(3.2, height, layer, ha="center", va="center", bbox=box, linespacing=1.5, size=9)
    return figure


def tiny_scales() -> Figure:
    """Draw the error of the quotient and of the product, in float32, against float64."""
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    shift = -torch.linspace(0.1, 1, 91, dtype=torch.float64)[
        :, None
    ]  # the largest error of many shifts is a smooth curve
    single, b = x.float(), shift.float()
    scales = torch.logspace(-44, 0, 177, dtype=torch.float64)
    divided, guarded = [], []
    for scale in scales:
        exact, s = torch.relu(scale.float().double() * x + b.double()), scale.float()
        divided.append(float((s * torch.maximum(single, -b / s) + b - exact).abs().max()))
        guarded.append(float((torch.maximum(s * single, -b) + b - exact).abs().max()))
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    axis = figure.subplots()
    bad = ~np.isfinite(divided)
    floor = 1e-9
    axis.loglog(
        scales, np.maximum(np.where(bad, np.nan, divided), floor), color=ORANGE, label="$s\\,\\max(x, -b/s) + b$"
    )
    axis.loglog(scales, np.maximum(guarded, floor), color=BLUE, linestyle="--", label="$\\max(s\\,x, -b) + b$")
    axis.axvspan(1e-46, float(scales[bad.nonzero()[0].max()]), color=LIGHT, zorder=0)
    axis.text(2e-44, 3e-8, "the quotient\noverflows", color=ORANGE, size=9, va="bottom")
    axis.axvline(1e-12, color=GREY, linewidth=0.8)
    axis.text(2e-12, 3e-8, "from here on\ndivided", color=GREY, size=9, va="bottom")
    axis.set(xlabel="scale $s$", ylabel="error in float32", ylim=(3e-10, 1e-5), xlim=(1e-46, 3))
    axis.legend(fontsize=9, frameon=False, loc="upper center")
    return figure


FIGURES = (left, right, border, thresholded, general, pooling, concatenation, copies, tiny_scales)


def main() -> None:
    """Write all figures."""
    FOLDER.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for draw in FIGURES:
            draw().savefig(FOLDER / f"{draw.__name__}.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
