"""The page ``docs/quality.md``: every word about what is better comes from the figures."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.quality.examine import METRICS
from benchmarks.quality.results import Interval, Results
from benchmarks.quality.ways import BASELINES, ORDERS, RULES, UNCANONIZED, Way, twins

DEFAULT = "left, absorb"


def markdown(results: Results, plot: str) -> str:
    """Return the page.

    Parameters
    ----------
    results : Results
        What was measured.
    plot : str
        Where the plot is, as seen from the page.
    """
    parts = (_head(results), _in_short(results), [f"![The measures, by architecture, rule and order]({plot})"])
    sections = (
        *parts,
        _clipped(results),
        _exceptions(results),
        _limits(),
        *(_table(results, each) for each in METRICS),
    )
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def orders(results: Results) -> list[str]:
    """Return the orders that were measured, un-canonized first."""
    there = {record.way.order for record in results.records}
    return [order for order in ORDERS if order in there]


def rules(results: Results) -> list[str]:
    """Return the rules that were measured."""
    there = {record.way.rule for record in results.records}
    return [rule for rule in RULES if rule in there]


def seeds(results: Results) -> int:
    """Return how many networks there are of an architecture, at most."""
    return max((len(found) for found in results.accuracies.values()), default=0)


def _head(results: Results) -> list[str]:
    extent, scene = results.settings["extent"], results.settings["training"]["scene"]
    right = [accuracy for found in results.accuracies.values() for accuracy in found.values()] or [0.0]
    area = (scene["digit"] / scene["canvas"]) ** 2
    return [
        "# Are canonized maps better?",
        "",
        f"Made by {'; then by '.join(results.runs)}.",
        "",
        *_wrapped(
            f"Small networks, {seeds(results)} of each architecture ({', '.join(results.accuracies)}), learn to read",
            "the handwritten digits of scikit-learn among clutter that is cut from other digits;",
            f"they read {min(right):.1%} to {max(right):.1%} of the held-out ones right.",
            f"So it is known where relevance belongs: in the digit's box, {area:.0%} of the image.",
            f"Of each network {extent['images']} digits that it reads right are explained;",
            f"noise and random weights go over {extent['disturbed']} of them. In float64, by zennit's rules;",
            "the maps of `canon_bridge.captum` are the same ([parity.md](parity.md)), so one framework is enough.",
        ),
        "",
        *_wrapped(
            "Each figure is the mean over the networks, each trained from a seed of its own on a split of its own,",
            "with Student's 95 % interval. *Better* and *worse* compare maps of the same networks: the interval of the",
            "difference leaves out zero. Of forty comparisons one would be better, and one worse, by chance alone.",
        ),
    ]


def _in_short(results: Results) -> list[str]:
    canonized = [order for order in orders(results) if order != UNCANONIZED]
    pairs = [(architecture, rule) for architecture in results.accuracies for rule in rules(results)]
    rows = _counts({order: (order, pairs) for order in canonized}, results)
    lines = [
        "## In short",
        "",
        *_wrapped(
            "Pahde et al. 2023 (*Optimizing Explanations by Network Canonization and Hyperparameter Search*) found",
            "that canonization improves most measures on most architectures, with exceptions.",
            "Here, against the network as it is: in",
            f"how many of the {len(pairs)} pairs of architecture and rule canonized maps are better / worse",
            "(the others cannot be told apart), by `prefer` and `clipped`:",
        ),
        "",
        *_grid(["measure", *canonized], rows),
    ]
    if DEFAULT not in canonized:
        return lines
    names = list(results.accuracies)
    own = {name: (DEFAULT, [(name, rule) for rule in rules(results)]) for name in names}
    return [
        *lines,
        "",
        f"The default, *{DEFAULT}*, by architecture (of {len(rules(results))} rules each):",
        "",
        *_grid(["measure", *names], _counts(own, results)),
        "",
        *_wrapped(*_most(results, pairs)),
    ]


def _counts(columns: Mapping[str, tuple[str, Sequence[tuple[str, str]]]], results: Results) -> list[list[str]]:
    """Return the rows of a table of counts: for each column an order, and the pairs that are counted."""
    rows = [
        [
            METRICS[metric].title,
            *(_written(_count(results, [metric], pairs, order)) for order, pairs in columns.values()),
        ]
        for metric in METRICS
    ]
    total = [_written(_count(results, METRICS, pairs, order)) for order, pairs in columns.values()]
    return [*rows, ["**all**", *(_bold(count, True) for count in total)]]


def _most(results: Results, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Say what holds for more than half."""
    names = results.accuracies
    measures = {_short(metric): _count(results, [metric], pairs, DEFAULT) for metric in METRICS}
    own = {name: _count(results, METRICS, [pair for pair in pairs if pair[0] == name], DEFAULT) for name in names}
    return [
        f"So with the default more than half of the pairs improve in: {_split(measures)}. Over all measures and rules,",
        f"more than half of the comparisons improve on: {_split(own)}.",
    ]


def _split(counts: Mapping[str, Counter[int]]) -> str:
    """Name those that improve in more than half of their comparisons, then the others."""
    most = [name for name, count in counts.items() if count[1] > count.total() / 2]
    others = [f"{name} ({count[1]} of {count.total()})" for name, count in counts.items() if name not in most]
    return f"{', '.join(most) or 'none'}" + (f"; fewer: {', '.join(others)}" if others else "")


def _count(results: Results, metrics: Iterable[str], pairs: Sequence[tuple[str, str]], order: str) -> Counter[int]:
    return Counter(
        results.verdict(metric, architecture, Way(rule, order), Way(rule, UNCANONIZED))
        for metric in metrics
        for architecture, rule in pairs
    )


def _written(count: Counter[int]) -> str:
    return f"{count[1]} / {count[-1]}"


def _clipped(results: Results) -> list[str]:
    """Compare absorb with pass, wherever both were measured and differ."""
    rows: list[list[str]] = []
    total: Counter[int] = Counter()
    for architecture in results.accuracies:
        for passing, absorbing in twins().items():
            for rule in rules(results):
                one, other = Way(rule, absorbing), Way(rule, passing)
                if results.differ(architecture, one, other):
                    row, verdicts = _both(results, architecture, one, other)
                    rows.append([architecture, f"{(ORDERS[passing] or {})['prefer']}", rule, *row])
                    total.update(verdicts)
    if not rows:
        return []
    return [
        "## Absorb or pass: the choice that decides",
        "",
        *_wrapped(
            "A BatchNorm before a ReLU merges to the right, and the ReLU becomes a thresholded one: below its",
            "threshold it puts out a constant. Relevance that reaches the constant is either *absorbed* there, as by a",
            "bias, or *passed* on to an input that had no part in it. The two differ wherever there is such a unit.",
            f"In the {len(rows)} rows below, which are all where they differ, absorb is better than pass in",
            f"{total[1]} comparisons, worse in {total[-1]}, and not told apart in {total[0]}. Cells: pass → absorb,",
            "the better one bold where the interval of the difference leaves out zero.",
        ),
        "",
        *_grid(["architecture", "prefer", "rule", *(_short(metric) for metric in METRICS)], rows),
    ]


def _both(results: Results, architecture: str, one: Way, other: Way) -> tuple[list[str], list[int]]:
    cells: list[str] = []
    verdicts: list[int] = []
    for metric in METRICS:
        verdict = results.verdict(metric, architecture, one, other)
        new, old = (_middle(metric, results.interval(metric, architecture, way)) for way in (one, other))
        cells.append(f"{_bold(old, verdict < 0)}\u00a0→\u00a0{_bold(new, verdict > 0)}")
        verdicts.append(verdict)
    return cells, verdicts


def _exceptions(results: Results) -> list[str]:
    """Name what the default makes worse."""
    lines: list[str] = []
    for order in orders(results):
        if order == UNCANONIZED or order in twins():
            continue
        found = [
            f"{_short(metric)} ({'; '.join(worse)})" for metric in METRICS if (worse := _worse(results, metric, order))
        ]
        lines.append(f"- *{order}*: {', '.join(found) or 'nothing'}.")
    return ["## What canonization makes worse", "", *lines] if lines else []


def _worse(results: Results, metric: str, order: str) -> list[str]:
    """Name the rules, and on which architectures."""
    found: list[str] = []
    for rule in rules(results):
        way, reference = Way(rule, order), Way(rule, UNCANONIZED)
        names = [name for name in results.accuracies if results.verdict(metric, name, way, reference) < 0]
        if names:
            found.append(f"{rule} on {', '.join(names)}")
    return found


def _table(results: Results, metric: str) -> list[str]:
    """Lay out one measure: a row for each architecture and rule, a column for each order."""
    about = METRICS[metric]
    rows: list[list[str]] = []
    for architecture in results.accuracies:
        for rule in rules(results):
            reference = Way(rule, UNCANONIZED)
            cells = [_cell(results, metric, architecture, Way(rule, order), reference) for order in orders(results)]
            rows.append([architecture, rule, *cells])
    baselines = [
        [architecture, *(_cell(results, metric, architecture, Way("", name), None) for name in BASELINES)]
        for architecture in results.accuracies
    ]
    return [
        f"## {about.title[0].upper()}{about.title[1:]}",
        "",
        *_wrapped(
            f"{about.meaning} {'More' if about.is_better_high else 'Less'} is better.",
            "Bold: better than un-canonized; struck out: worse.",
        ),
        "",
        *_grid(["architecture", "rule", *orders(results)], rows),
        "",
        *_grid(["baselines", *BASELINES], baselines),
    ]


def _cell(results: Results, metric: str, architecture: str, way: Way, reference: Way | None) -> str:
    interval = results.interval(metric, architecture, way)
    written = f"{_middle(metric, interval)}{_spread(metric, interval)}"
    verdict = results.verdict(metric, architecture, way, reference) if reference else 0
    return f"~~{written}~~" if verdict < 0 else _bold(written, verdict > 0)


def _middle(metric: str, interval: Interval) -> str:
    return _number(math.exp(interval.mean)) if METRICS[metric].is_ratio else _number(interval.mean)


def _spread(metric: str, interval: Interval) -> str:
    """Write the interval: plus and minus, or its ends where it is one of factors."""
    if not math.isfinite(interval.half):
        return ""
    if METRICS[metric].is_ratio:
        low, high = (_number(math.exp(interval.mean + side * interval.half)) for side in (-1, 1))
        return f" ({low} to {high})"
    return f" ± {interval.half:.3f}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.0f}" if abs(value) < 1000 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def _short(metric: str) -> str:
    return METRICS[metric].title.partition(": ")[2]


def _bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text


def _limits() -> list[str]:
    return [
        "## How to read it",
        "",
        *_wrapped(
            "No measure stands alone: a random map changes most with random weights, the image itself withstands noise",
            "best, and a map that explodes at one pixel is the least complex; a way is good where it is good by all.",
            "Epsilon with absorb is gradient times input, to the stabilisers, where activations are constant below",
            "zero alone; a ReLU6 is constant above 6, too, and zennit's rule passes relevance on there.",
            "The networks are small, and the background is exactly zero, where none of these rules puts relevance.",
        ),
    ]


def _wrapped(*sentences: str) -> list[str]:
    return textwrap.wrap(" ".join(sentences), 118, break_long_words=False, break_on_hyphens=False)


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
