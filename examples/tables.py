"""What is explained, what came out, and the table that says how right it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from attributions import WAYS, Outcome, disagreement, explain, share_inside
from torch import Tensor, nn


@dataclass(frozen=True)
class Subject:
    """A model and what it is asked to explain.

    Parameters
    ----------
    headline : str
        Stands above the table.
    kind : str
        What the inputs are and how many.
    model : nn.Module
        In eval mode, float32.
    inputs : Tensor
        Shape ``(N, 3, H, W)``.
    pictures : Tensor
        The same for the eye, in [0, 1], shape ``(N, H, W)`` or ``(N, H, W, 3)``.
    name : callable
        From the index of a class to its name.
    masks : Tensor or None
        Where a right map points, shape ``(N, H, W)``, bool; None where nobody knows.
    boxes : tuple
        The same as ``(row, column, side)`` for each input; empty where nobody knows.
    """

    headline: str
    kind: str
    model: nn.Module
    inputs: Tensor
    pictures: Tensor
    name: Callable[[int], str]
    masks: Tensor | None = None
    boxes: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Findings:
    """What came out: the explained classes, their logits, and all ways in float32 and in float64."""

    targets: Tensor
    logits: Tensor
    single: tuple[Outcome, ...]
    double: tuple[Outcome, ...]


def investigate(subject: Subject) -> Findings:
    """Explain the top class of each input in all ways, in float32 and in float64."""
    with torch.no_grad():
        logits, targets = subject.model(subject.inputs).max(1)
    single = explain(subject.model, subject.inputs, targets)
    double = explain(copy.deepcopy(subject.model).double(), subject.inputs.double(), targets)
    return Findings(targets, logits, single, double)


def table(subject: Subject, findings: Findings) -> str:
    """Lay out the figures of merit as aligned text, one column for each way.

    Parameters
    ----------
    subject : Subject
        What was explained; without masks, the lines about the right place are left out.
    findings : Findings
        What came out.

    Returns
    -------
    str
        Several lines without a trailing line break.
    """
    single, double = findings.single, findings.double
    lines = [
        ("BatchNorms left", [str(outcome.batch_norms_left) for outcome in single]),
        ("function error, float32", [_tiny(outcome.function_error) for outcome in single]),
        ("function error, float64", [_tiny(outcome.function_error) for outcome in double]),
        *_sum_lines(single, findings.logits),
        *_place_lines(subject, single),
        ("zennit against Captum, worst map, float32", _pair_cells(single)),
        ("zennit against Captum, worst map, float64", _pair_cells(double)),
    ]
    margin = max(len(name) for name, _ in lines) + 2
    width = max(12, *(len(cell) + 2 for _, cells in lines for cell in cells))
    groups = "".join(title.rjust(2 * width) for title in ("without canonization", "with canon_bridge"))
    names = "".join(way.framework.rjust(width) for way in WAYS)
    rule = "-" * (margin + 4 * width)
    body = [name.ljust(margin) + "".join(cell.rjust(width) for cell in cells) for name, cells in lines]
    return "\n".join([" " * margin + groups, " " * margin + names, rule, *body])


def _cells(outcomes: Sequence[Outcome], measure: Callable[[Tensor], str]) -> list[str]:
    """Measure each map; where there is none, say which error the framework gave."""
    maps = [(outcome.relevance, outcome.failure) for outcome in outcomes]
    return [failure if relevance is None else measure(relevance) for relevance, failure in maps]


def _sum_lines(outcomes: Sequence[Outcome], logits: Tensor) -> list[tuple[str, list[str]]]:
    """Compare what arrives at the input with the logit that was sent; 1 means that nothing is lost."""

    def ratios(relevance: Tensor) -> Tensor:
        return relevance.sum((1, 2)) / logits

    def spread(relevance: Tensor) -> str:
        low, high = ratios(relevance).quantile(torch.tensor([0.05, 0.95])).tolist()
        return f"{low:.2f} to {high:.2f}"

    medians = _cells(outcomes, lambda maps: f"{ratios(maps).median().item():.2f}")
    lines = [("sum of relevance / logit", medians)]
    if len(logits) > 1:
        lines.append(("  from 5th to 95th percentile", _cells(outcomes, spread)))
    return lines


def _place_lines(subject: Subject, outcomes: Sequence[Outcome]) -> list[tuple[str, list[str]]]:
    """Tell how much of the positive relevance is in the right place, and how much chance would put there."""
    if subject.masks is None:
        return []
    masks = subject.masks
    area = f"{masks.double().mean().item():.0%}"
    ink = f"{share_inside(subject.pictures, masks).mean().item():.0%}"
    shares = _cells(outcomes, lambda maps: f"{share_inside(maps, masks).mean().item():.0%}")
    return [
        ("positive relevance in digit's box", shares),
        ("  chance: the box's share of the area", [area] * len(shares)),
        ("  chance: the box's share of the ink", [ink] * len(shares)),
    ]


def _pair_cells(outcomes: Sequence[Outcome]) -> list[str]:
    """Compare the frameworks with one another, once without canonization and once with."""
    gaps = (disagreement(outcomes[0], outcomes[1]), disagreement(outcomes[2], outcomes[3]))
    texts = ["not comparable" if gap is None else _tiny(gap) for gap in gaps]
    return ["", texts[0], "", texts[1]]


def _tiny(value: float) -> str:
    """Write an error so that an exact zero is told from a small number."""
    return "0" if value == 0 else f"{value:.1e}"
