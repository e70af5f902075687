"""What is explained, what came out, and the table that says how right it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks.digits.network import Recipe, Trained, accuracy, draw_held_out
from benchmarks.digits.scenes import Canvases
from benchmarks.digits.ways import WAYS, Outcome, disagreement, explain, share_inside


@dataclass(frozen=True)
class Findings:
    """What came out for one trained network.

    Parameters
    ----------
    accuracy : float
        Share of the held-out digits that it reads right.
    canvases : Canvases
        What was explained.
    targets, logits : Tensor
        The explained class of each, the top one, and its logit, shape ``(N,)``.
    single, double : tuple of Outcome
        All ways, in float32 and in float64.
    """

    accuracy: float
    canvases: Canvases
    targets: Tensor
    logits: Tensor
    single: tuple[Outcome, ...]
    double: tuple[Outcome, ...]


def investigate(recipe: Recipe, trained: Trained, count: int) -> Findings:
    """Explain the first held-out digits in all ways, in float32 and in float64."""
    model, held_out = trained.model, draw_held_out(recipe)
    chosen = held_out[:count]
    with torch.no_grad():
        logits, targets = model(chosen.images).max(1)
    single = explain(model, chosen.images, targets)
    double = explain(copy.deepcopy(model).double(), chosen.images.double(), targets)
    return Findings(accuracy(model, held_out), chosen, targets, logits, single, double)


def table(found: Sequence[Findings]) -> str:
    """Lay out the figures of merit as aligned text, one column for each way.

    Parameters
    ----------
    found : sequence of Findings
        Of one network; or of several that differ in their seed, then a cell is the median, and the range stands below.

    Returns
    -------
    str
        Several lines without a trailing line break.
    """
    lines: list[tuple[str, list[str]]] = []
    for name, measure, write in _ROWS:
        ways = list(zip(*map(measure, found), strict=True))
        lines.append((name, [_middle(values, write) for values in ways]))
        if any(ranges := [_range(values, write) for values in ways]):
            lines.append((f"  range over {len(found)} networks", ranges))
    margin = max(len(name) for name, _ in lines) + 2
    width = max(12, *(len(cell) + 2 for _, cells in lines for cell in cells))
    groups = "".join(title.rjust(2 * width) for title in ("without canonization", "with canon_bridge"))
    names = "".join(way.framework.rjust(width) for way in WAYS)
    rule = "-" * (margin + len(WAYS) * width)
    body = [name.ljust(margin) + "".join(cell.rjust(width) for cell in cells) for name, cells in lines]
    return "\n".join([" " * margin + groups, " " * margin + names, rule, *body])


Values = list[float | str | None]  # one for each way: a number, the error of the framework, or nothing to say


def _middle(values: Sequence[float | str | None], write: Callable[[float], str]) -> str:
    """Write the median; where there is none, the error that the framework gave."""
    return write(median(numbers)) if (numbers := _numbers(values)) else next(filter(None, map(_text, values)), "")


def _range(values: Sequence[float | str | None], write: Callable[[float], str]) -> str:
    """Write the smallest and the largest, if they differ."""
    low, high = (write(end(numbers)) if (numbers := _numbers(values)) else "" for end in (min, max))
    return "" if low == high else f"{low} to {high}"


def _numbers(values: Sequence[float | str | None]) -> list[float]:
    """Return the numbers, if all networks have one."""
    return [value for value in values if isinstance(value, int | float)] if not any(map(_text, values)) else []


def _text(value: float | str | None) -> str:
    return value if isinstance(value, str) else ""


def _of_maps(measure: Callable[[Tensor, Findings], Tensor]) -> Callable[[Findings], Values]:
    """Measure each map; where there is none, say which error the framework gave."""
    return lambda found: [
        outcome.failure if outcome.relevance is None else measure(outcome.relevance, found).item()
        for outcome in found.single
    ]


def _sums(maps: Tensor, found: Findings) -> Tensor:
    """Compare what arrives at the input with the logit that was sent; 1 means that nothing is lost."""
    return maps.sum((1, 2)) / found.logits


def _gaps(outcomes: Sequence[Outcome]) -> Values:
    """Compare the frameworks with one another, once without canonization and once with."""
    gaps = (disagreement(outcomes[0], outcomes[1]), disagreement(outcomes[2], outcomes[3]))
    plain, canonized = ("not comparable" if gap is None else gap for gap in gaps)
    return [None, plain, None, canonized]


def _tiny(value: float) -> str:
    """Write an error so that an exact zero is told from a small number."""
    return "0" if value == 0 else f"{value:.1e}"


_ROWS: tuple[tuple[str, Callable[[Findings], Values], Callable[[float], str]], ...] = (
    ("BatchNorms left", lambda found: [outcome.batch_norms_left for outcome in found.single], "{:.0f}".format),
    ("function error, float32", lambda found: [outcome.function_error for outcome in found.single], _tiny),
    ("function error, float64", lambda found: [outcome.function_error for outcome in found.double], _tiny),
    ("sum of relevance / logit", _of_maps(lambda maps, found: _sums(maps, found).median()), "{:.2f}".format),
    ("  5th percentile", _of_maps(lambda maps, found: _sums(maps, found).quantile(0.05)), "{:.2f}".format),
    ("  95th percentile", _of_maps(lambda maps, found: _sums(maps, found).quantile(0.95)), "{:.2f}".format),
    (
        "positive relevance in digit's box",
        _of_maps(lambda maps, found: share_inside(maps, found.canvases.box_masks()).mean()),
        "{:.0%}".format,
    ),
    (
        "  chance: the box's share of the area",
        lambda found: [found.canvases.scene.box_share] * len(WAYS),
        "{:.0%}".format,
    ),
    (
        "  chance: the box's share of the ink",
        lambda found: [share_inside(found.canvases.images[:, 0], found.canvases.box_masks()).mean().item()] * len(WAYS),
        "{:.0%}".format,
    ),
    ("zennit against Captum, worst map, float32", lambda found: _gaps(found.single), _tiny),
    ("zennit against Captum, worst map, float64", lambda found: _gaps(found.double), _tiny),
)
