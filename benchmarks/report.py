"""Rows of the coverage benchmark as text, Markdown and totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.versions import commit, versions
from tests.support.row import Row

HEADER = ("model", "prefer", "BatchNorms", "left", "right", "leftover", "alive", "error", "restored", "entry", "status")
_NUMERIC = range(2, 8)
_SHORT = (
    "*leftover*: no BatchNorm is left here either, but some became per-channel linear layers, because nothing could",
    "take them; the reasons are counted. *not measured*, *skipped*: nothing is claimed.",
    "",
)


def measured(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of models that could be canonized."""
    return [row for row in rows if row.error is not None]


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of one row, in the order of the header."""
    counts = (row.batch_norms, row.left, row.right, row.leftover, row.alive)
    status = row.status + (" (traced with values)" if row.traced == "with values" else "")
    return (
        row.model,
        row.prefer,
        *("-" if count is None else str(count) for count in counts),
        "-" if row.error is None else tiny(row.error),
        {True: "yes", False: "NO", None: "-"}[row.restored],
        "-" if row.entry is None else f"{row.entry:.1f}",
        status,
    )


def text_row(row: Row, width: int = 52) -> str:
    """Return one aligned line of text for a row, the reason at its end."""
    return f"{_aligned(cells(row), width)}  {shorten(row.reason, 160)}".rstrip()


def text_header(width: int = 52) -> str:
    """Return the header that stands above the lines of :func:`text_row`."""
    return f"{_aligned(HEADER, width)}  reason"


def _aligned(content: Sequence[str], width: int) -> str:
    widths = (width, 6, 10, 4, 5, 8, 5, 8, 8, 6, 0)
    pairs = enumerate(zip(content, widths, strict=True))
    return "  ".join(cell.ljust(w) if i < 2 or i > 9 else cell.rjust(w) for i, (cell, w) in pairs)


def totals(rows: Sequence[Row], no_batch_norm: int = 0) -> list[str]:
    """Return the totals, one statement a line."""
    done = measured(rows)
    statuses = Counter(row.status for row in rows)
    restored = [row.restored for row in rows if row.restored is not None]
    lines = [
        f"{len({row.model for row in rows})} models with BatchNorms, {len(rows)} rows: "
        + ", ".join(f"{count} {status}" for status, count in statuses.most_common()),
        f"{_sum(done, 'batch_norms')} BatchNorms in what was canonized, {_sum(done, 'uncalled')} of them never called: "
        f"{_sum(done, 'left')} merged left, {_sum(done, 'right')} merged right, {_sum(done, 'leftover')} made explicit "
        f"linear layers; alive in the block: {_sum(done, 'alive')}",
        f"restored to the bit: {restored.count(True)} of {len(restored)} rows",
    ]
    if done:
        worst = max(done, key=lambda row: row.error or 0)
        mildest = min(done, key=lambda row: float("inf") if row.eps_error is None else row.eps_error)
        lines.append(f"largest function error: {tiny(worst.error or 0)} ({worst.model}, {worst.prefer})")
        lines.append(f"smallest error if every eps were forgotten: {tiny(mildest.eps_error or 0)} ({mildest.model})")
        entries = sorted(row.entry for row in done if row.entry is not None)
        if entries:
            lines.append(
                f"plan and apply take {entries[len(entries) // 2]:.1f} forwards (median), {entries[-1]:.1f} at most; "
                "of the largest models: " + ", ".join(_largest(done))
            )
    values = sum(row.traced == "with values" for row in rows)
    lines.append(f"traced with values (example_inputs): {values} rows")
    if no_batch_norm:
        lines.append(f"left out because they have no BatchNorm: {no_batch_norm} models")
    return lines


def reasons(rows: Sequence[Row]) -> list[tuple[str, int, list[str]]]:
    """Return what the plans say about BatchNorms that are not merged: reason, how many, in which models."""
    counts: Counter[str] = Counter()
    models: dict[str, dict[str, None]] = {}
    for row in rows:
        for reason, count in row.reasons.items():
            counts[reason] += count
            models.setdefault(reason, {})[row.model] = None
    return [(reason, count, list(models[reason])) for reason, count in counts.most_common()]


def markdown(rows: Sequence[Row], command: str, no_batch_norm: int = 0) -> str:
    """Return the whole report as Markdown."""
    rule = ["---:" if i in _NUMERIC or i == 9 else "---" for i in range(len(HEADER))]
    lines = [
        "# Coverage",
        "",
        "What `canonize` does to every model of a zoo with random weights and random BatchNorm statistics, in float64.",
        "",
        f"`{command}`; {_versions()}.",
        "",
        *(f"- {line}" for line in totals(rows, no_batch_norm)),
        "",
        "*left*, *right*, *leftover* (made an explicit per-channel linear layer) are what the plan says; *alive* is",
        "what hooks and the dispatcher see in the block. *error* is the largest deviation of an output relative to its",
        "largest value; *entry* the time to plan and apply, in forwards of the same model (one small image).",
        "",
        _line(HEADER),
        _line(rule),
        *(_line((f"`{row.model}`", *cells(row)[1:])) for row in rows),
    ]
    troubled = [row for row in rows if row.status != "ok"]
    if troubled:
        lines += [
            "",
            "## Where it falls short",
            "",
            *_SHORT,
            _line(("model", "prefer", "status", "reason")),
            _line(["---"] * 4),
        ]
        lines += [_line((f"`{row.model}`", row.prefer, row.status, shorten(row.reason, 300))) for row in troubled]
    found = reasons(rows)
    if found:
        lines += [
            "",
            "## Why BatchNorms become linear layers",
            "",
            _line(("count", "reason", "models")),
            "| ---: | --- | --- |",
        ]
        lines += [_line((str(count), reason, _some(models))) for reason, count, models in found]
    return "\n".join(lines) + "\n"


def _line(content: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in content) + " |"


def _some(models: Sequence[str], limit: int = 4) -> str:
    shown = ", ".join(models[:limit])
    return shown if len(models) <= limit else f"{shown} and {len(models) - limit} more"


def _largest(rows: Sequence[Row], number: int = 3) -> list[str]:
    """Return the slower entry of each of the largest models, with the number of parameters."""
    sizes = {row.model: row.parameters or 0 for row in rows}
    largest = sorted(sizes, key=lambda model: sizes[model], reverse=True)[:number]
    entries = {model: max(row.entry or 0 for row in rows if row.model == model) for model in largest}
    return [f"{entries[model]:.1f} ({model}, {sizes[model] / 1e6:.0f} million parameters)" for model in largest]


def _sum(rows: Sequence[Row], name: str) -> int:
    return sum(getattr(row, name) or 0 for row in rows)


def _versions() -> str:
    measured = commit()
    found = versions(("torch", "torchvision", "timm"))
    return found if measured is None else f"commit {measured}, {found}"


def shorten(text: str, length: int) -> str:
    """Return the text, cut at a length."""
    return text if len(text) <= length else text[: length - 1] + "…"


def tiny(value: float) -> str:
    """Write an error so that an exact zero is told from a small number."""
    return "0" if value == 0 else f"{value:.1e}"
