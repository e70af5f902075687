"""A plan as a drawing: each chain as it is written, and beside it as it is in the canonical model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from os.path import commonprefix
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import TextPath

from canon_bridge.core import Leftover, Plan, Refusal, Untangled
from canon_bridge.core.plan import Entry, Words, kind_of

_LAYER, _NORM, _ACTIVATION, _STAYS, _GONE, _OPERATION = "layer", "norm", "activation", "stays", "gone", "operation"
# Okabe and Ito's colours, which colour-blind readers can tell apart: the edge of a box, and what fills it.
_COLOURS: Final = {
    _LAYER: ("#0072B2", "#e3f0f8"),
    _NORM: ("#D55E00", "#fbe9de"),
    _ACTIVATION: ("#009E73", "#e0f4ee"),
    _STAYS: ("#D55E00", "#f3b48c"),
    _GONE: ("#999999", "white"),
    _OPERATION: ("white", "white"),
}
_SIZE, _LINE, _GAP, _PAD = 8.0, 11.0, 20.0, 5.0  # in points: of the font, of a line, of an arrow, in a box
_MOST = 3  # names in a box


@dataclass(frozen=True)
class _Box:
    """One module, several that are alike, or an operation in a chain: what it is called, and what it is."""

    names: tuple[str, ...]
    role: str
    kind: str

    @property
    def lines(self) -> tuple[str, ...]:
        more = (f"and {len(self.names) - _MOST} more",) if len(self.names) > _MOST + 1 else ()
        shown = self.names[:_MOST] if more else self.names
        return (*shown, *more, *((self.role,) if self.role else ()))

    @property
    def width(self) -> float:
        return max(map(_width, self.lines)) + 2 * _PAD

    @property
    def height(self) -> float:
        return _LINE * len(self.lines) + 2 * _PAD


@dataclass(frozen=True)
class _Row:
    """One chain, or several that are alike."""

    label: tuple[str, ...]
    before: tuple[_Box, ...]
    after: tuple[_Box, ...]

    @property
    def height(self) -> float:
        return max(box.height for box in (*self.before, *self.after)) + 12


def draw(plan: Plan, only: str | None = None) -> Figure:
    """Draw a plan; see :meth:`canon_bridge.Plan.draw`."""
    rows = list(_alike(plan) if only is None else _each(plan, only))
    if not rows:
        where = f"in {only!r}" if only is not None else "in the model"
        raise ValueError(f"there is no BatchNorm {where}: nothing to draw. Give the path of a module that has some.")
    labels = max(_width(line) for row in rows for line in row.label) + 14
    lengths = [max(_length(side) for side in sides) for sides in ([r.before for r in rows], [r.after for r in rows])]
    starts = (12 + labels, 12 + labels + lengths[0] + 36)
    width = starts[1] + lengths[1] + 12
    height = sum(row.height for row in rows) + 62
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    title = axes.text(12, 18, f"{plan.model}{f': {only}' if only else ''}", size=11, weight="bold", va="center")
    options = f"prefer={plan.options.prefer!r}"
    axes.annotate(options, (1, 0.5), (10, 0), xycoords=title, textcoords="offset points", size=_SIZE, va="center")
    for start, words in zip(starts, ("as written", "canonical"), strict=True):
        axes.text(start, 34, words, size=9, color="0.35", va="center", style="italic")
    top = 48.0
    for number, row in enumerate(rows):
        if number % 2 == 0:
            axes.axhspan(top, top + row.height, color="0.965", lw=0, zorder=0)
        middle = top + row.height / 2
        axes.text(12, middle, "\n".join(row.label), size=_SIZE, va="center", color="0.2", linespacing=1.4)
        for start, boxes in zip(starts, (row.before, row.after), strict=True):
            _draw_boxes(axes, start, middle, boxes)
        top += row.height
    return figure


def _alike(plan: Plan) -> Iterator[_Row]:
    """Yield a row for each way that BatchNorms go, with the first that goes it."""
    norms = {entry.norm for entry in plan.entries}
    for _, entries in plan.ways():
        first = entries[0]
        paths = [first.norm, *getattr(first, "targets", ())]
        inside = commonprefix(  # noqa: RUF071 - of lists of names
            [path.split(".")[:-1] for path in paths]
        )
        label = (
            f"{len(entries)} times" if len(entries) > 1 else "once",
            *((f"in {'.'.join(inside)}",) if inside else ()),
        )
        yield _Row(label, *_chain(first, norms, "".join(f"{name}." for name in inside)))


def _each(plan: Plan, only: str) -> Iterator[_Row]:
    """Yield a row for each BatchNorm in a module."""
    norms = {entry.norm for entry in plan.entries}
    inside = f"{only}." if only else ""
    for number, entry in enumerate(plan.entries, 1):
        if entry.norm == only or entry.norm.startswith(inside):
            yield _Row((str(number),), *_chain(entry, norms, inside))


def _chain(entry: Entry, norms: set[str], inside: str) -> tuple[tuple[_Box, ...], tuple[_Box, ...]]:
    """Return the boxes of a chain as written, and in the canonical model."""

    def box(paths: Sequence[str], role: str, kind: str) -> _Box:
        return _Box(tuple(path.removeprefix(inside) for path in paths), role, kind)

    norm, gone = box([entry.norm], "BatchNorm", _NORM), box([entry.norm], "identity", _GONE)
    if isinstance(entry, Leftover):
        return (norm,), (box([entry.norm], "per-channel linear layer", _LAYER),)
    if isinstance(entry, Refusal):
        return (norm,), (box([entry.norm], "stays", _STAYS),)
    if isinstance(entry, Untangled):
        between = [_Box((name,), "", _OPERATION) for name in entry.through]
        rest = ", rest linear" if entry.rest else ""
        layers = box(entry.targets, "read by others, too", _LAYER), box(entry.targets, "a copy of each", _LAYER)
        selects = box([entry.norm], f"selects its copies{rest}", _LAYER if entry.rest else _GONE)
        return (layers[0], *between, norm), (layers[1], *between, selects)
    between = [_between(name, inside)[0] for name in entry.chain.through]
    changed = [_between(name, inside)[1] for name in entry.chain.through]
    of_norms = set(entry.targets) <= norms
    written = box(entry.targets, "BatchNorm" if of_norms else "linear", _NORM if of_norms else _LAYER)
    merged = box(entry.targets, "takes its map" if of_norms else "linear, merged", written.kind)
    if entry.chain.direction == "left":
        return (written, *between, norm), (merged, *changed, gone)
    return (norm, *between, written), (gone, *changed, merged)


def _between(name: str, inside: str) -> tuple[_Box, _Box]:
    """Return what lies on the way as written, and what becomes of it: words that name a module are changed."""
    if not isinstance(name, Words):
        operation = _Box((name,), "", _OPERATION)
        return operation, operation
    kind = kind_of(name)
    path = name.removeprefix(f"{kind} ").removeprefix(inside)
    new = "thresholded ReLU" if kind == "ReLU" else "max or min, by sign" if "Pool" in kind else f"{kind}, absorbs"
    return _Box((path,), kind, _ACTIVATION), _Box((path,), new, _ACTIVATION)


def _length(boxes: Sequence[_Box]) -> float:
    return sum(box.width for box in boxes) + _GAP * (len(boxes) - 1)


def _draw_boxes(axes: Axes, start: float, middle: float, boxes: Sequence[_Box]) -> None:
    for number, box in enumerate(boxes):
        if number:
            arrow = {"arrowstyle": "-|>", "color": "0.35", "lw": 0.8, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (start - 2, middle), (start - _GAP + 2, middle), arrowprops=arrow)
        edge, fill = _COLOURS[box.kind]
        low = middle - box.height / 2
        line_style = "--" if box.kind == _GONE else "-"
        shape: Any = {"boxstyle": "round,pad=0,rounding_size=3", "ec": edge, "fc": fill, "lw": 0.9, "ls": line_style}
        axes.add_patch(FancyBboxPatch((start, low), box.width, box.height, **shape))
        for line, text in enumerate(box.lines):
            is_role = box.role and line == len(box.lines) - 1
            colour = "0.55" if box.kind == _GONE else edge if is_role else "black"
            position = (start + box.width / 2, low + _PAD + _LINE * (line + 0.5))
            axes.text(*position, text, size=_SIZE, color=colour, ha="center", va="center")
        start += box.width + _GAP


@cache
def _width(text: str) -> float:
    """Return how wide a line of text is, in points."""
    return float(TextPath((0, 0), text, size=_SIZE).get_extents().width) if text.strip() else 0.0
