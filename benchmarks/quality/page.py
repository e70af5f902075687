"""The page ``docs/quality.md``: every word about what is better comes from the figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from benchmarks.quality.examine import METRICS
from benchmarks.quality.results import Interval, Results
from benchmarks.quality.ways import BASELINES, ORDERS, RULES, UNCANONIZED, Way

DEFAULT = "left, absorb"
_WORDS = {1: "better", -1: "worse", 0: "not told apart"}


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
    sections = (*parts, _clipped(results), _exceptions(results), *(_table(results, metric) for metric in METRICS))
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
    right = [accuracy for found in results.accuracies.values() for accuracy in found.values()]
    area = (scene["digit"] / scene["canvas"]) ** 2
    return [
        "# Are canonized maps better?",
        "",
        f"Made by {results.made}.",
        "",
        f"Small networks, {seeds(results)} of each architecture ({', '.join(results.accuracies)}), learn to read the",
        "handwritten digits of scikit-learn among clutter that is cut from other digits; they read",
        f"{min(right, default=0):.0%} to {max(right, default=0):.0%} of held-out ones right. So it is known where relevance",
        f"belongs: in the digit's box, {area:.0%} of the image. Of each network {extent['images']} digits that it reads right",
        f"are explained; noise and random weights go over {extent['disturbed']} of them. In float64, by zennit's rules;",
        "Captum's maps by `canon_bridge.captum` are the same ([parity.md](parity.md)), so one framework is enough.",
        "",
        "Each figure is the mean over the networks, each trained from another seed on another split, with Student's 95 %",
        "interval. *Better* and *worse* compare maps of the same networks: the 95 % interval of the difference leaves out",
        "zero. Of every twenty comparisons one is expected to do so by chance.",
    ]


def _in_short(results: Results) -> list[str]:
    canonized = [order for order in orders(results) if order != UNCANONIZED]
    pairs = [(architecture, rule) for architecture in results.accuracies for rule in rules(results)]
    counted = {(metric, order): _count(results, [metric], pairs, order) for metric in METRICS for order in canonized}
    total = {order: sum((counted[metric, order] for metric in METRICS), Counter()) for order in canonized}
    rows = [[METRICS[metric].title, *(_written(counted[metric, order]) for order in canonized)] for metric in METRICS]
    rows.append(["**all**", *(f"**{_written(total[order])}**" for order in canonized)])
    lines = [
        "## In short",
        "",
        "Pahde et al. 2023 (*Optimizing Explanations by Network Canonization and Hyperparameter Search*) found that",
        "canonization improves most measures on most architectures, with exceptions. Here, against the un-canonized network:",
        f"in how many of the {len(pairs)} pairs of architecture and rule the canonized maps are better / worse (the rest",
        "cannot be told apart), by `prefer` and `clipped`:",
        "",
        *_grid(["measure", *canonized], rows),
    ]
    if DEFAULT in canonized:
        names = list(results.accuracies)
        rows = [
            [METRICS[metric].title, *(_by_architecture(results, metric, name) for name in names)] for metric in METRICS
        ]
        lines += ["", f"The default, {DEFAULT}, by architecture (of {len(rules(results))} rules each):", ""]
        lines += _grid(["measure", *names], rows)
    return lines


def _by_architecture(results: Results, metric: str, architecture: str) -> str:
    return _written(_count(results, [metric], [(architecture, rule) for rule in rules(results)], DEFAULT))


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
    for passing in orders(results):
        absorbing = passing.replace("pass", "absorb")
        if absorbing == passing or absorbing not in orders(results):
            continue
        for architecture in results.accuracies:
            for rule in rules(results):
                one, other = Way(rule, absorbing), Way(rule, passing)
                if not results.is_same(architecture, one, other):
                    row, verdicts = _both(results, architecture, one, other)
                    rows.append([architecture, absorbing.partition(",")[0], rule, *row])
                    total.update(verdicts)
    if not rows:
        return []
    return [
        "## Absorb or pass: the choice that decides",
        "",
        "A BatchNorm before a ReLU merges to the right, and the ReLU becomes a thresholded one: below its threshold it",
        "puts out a constant. Relevance that reaches the constant is either *absorbed* there, as by a bias, or *passed* on to",
        "an input that had no part in it. Wherever there is such a unit, the two differ: in every network with",
        '`prefer="right"`, and in a DenseNet in both orders. Over all measures and all rows below, absorb is better than',
        f"pass in {total[1]} comparisons, worse in {total[-1]}, and not told apart in {total[0]}. Cells: pass → absorb, the",
        "better one bold where the interval of the difference leaves out zero.",
        "",
        *_grid(["architecture", "prefer", "rule", *(_short(metric) for metric in METRICS)], rows),
    ]


def _both(results: Results, architecture: str, one: Way, other: Way) -> tuple[list[str], list[int]]:
    cells: list[str] = []
    verdicts: list[int] = []
    for metric in METRICS:
        verdict = results.verdict(metric, architecture, one, other)
        new, old = (_middle(metric, results.interval(metric, architecture, way)) for way in (one, other))
        cells.append(f"{_bold(old, verdict < 0)} → {_bold(new, verdict > 0)}")
        verdicts.append(verdict)
    return cells, verdicts


def _exceptions(results: Results) -> list[str]:
    """Name what the default makes worse."""
    lines: list[str] = []
    for order in orders(results):
        if "pass" in order or order == UNCANONIZED:
            continue
        found = [
            f"{_short(metric)} ({', '.join(worse)})" for metric in METRICS if (worse := _worse(results, metric, order))
        ]
        lines.append(f"- *{order}*: {'; '.join(found) or 'nothing'}.")
    return ["## What canonization makes worse", "", *lines] if lines else []


def _worse(results: Results, metric: str, order: str) -> list[str]:
    pairs = [(architecture, rule) for architecture in results.accuracies for rule in rules(results)]
    return [
        f"{architecture} {rule}"
        for architecture, rule in pairs
        if results.verdict(metric, architecture, Way(rule, order), Way(rule, UNCANONIZED)) < 0
    ]


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
        f"{about.meaning} {'More' if about.is_better_high else 'Less'} is better. Bold: better than un-canonized; struck",
        "out: worse.",
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
    return "-" if math.isnan(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.2g}".replace("e+0", "e")


def _short(metric: str) -> str:
    return METRICS[metric].title.partition(": ")[2]


def _bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
