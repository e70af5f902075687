"""Tables: as lines of text, and as HTML for notebooks."""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import zip_longest
from textwrap import wrap
from typing import Final

_WIDEST: Final = 170  # a table; where it would be wider, its longest cells go on in the next line
_LEAST: Final = 30  # a cell


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table with left-aligned columns, a rule under the header and no trailing spaces.

    Of a wide table long cells go on in the lines below.
    """
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    room = _WIDEST - 2 * (len(header) - 1)
    limit = next((most for most in range(room, _LEAST, -1) if sum(min(most, w) for w in widths) <= room), _LEAST)
    lines: list[Sequence[str]] = []
    for row in rows:
        cells = [wrap(cell, limit, break_long_words=False, break_on_hyphens=False) for cell in row]
        lines += zip_longest(*cells, fillvalue="")
    rule = ["-" * max(len(row[column]) for row in (header, *lines)) for column in range(len(header))]
    yield from align((header, rule, *lines))


def align(rows: Sequence[Sequence[str]], left: int | None = None) -> Iterator[str]:
    """Yield lines of aligned columns, the first ``left`` of them (by default all) to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    to_left = len(widths) if left is None else left
    for row in rows:
        cells = zip(row, widths, strict=True)
        aligned = (cell.ljust(w) if column < to_left else cell.rjust(w) for column, (cell, w) in enumerate(cells))
        yield "  ".join(aligned).rstrip()


def shortened(names: Sequence[str], most: int = 2) -> str:
    """Return a list in words, of long ones the beginning and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int | None = None) -> str:
    """Return a table as HTML; the first ``left`` columns (by default all) to the left, others to the right.

    It has no colours of its own, so that it is readable on a light and on a dark page.
    """
    to_left = len(header) if left is None else left

    def line(cells: Sequence[str], tag: str) -> str:
        styles = ("left" if column < to_left else "right;white-space:nowrap" for column in range(len(cells)))
        made = (
            f'<{tag} style="vertical-align:top;text-align:{style}">{_breakable(cell)}</{tag}>'
            for cell, style in zip(cells, styles, strict=True)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>"


def _breakable(cell: str) -> str:
    """Return HTML that may break behind the dots and slashes of a path."""
    return escape(cell).replace(".", ".<wbr>").replace("/", "/<wbr>") if " " not in cell else escape(cell)


def folded(summary: str, content: str, is_open: bool = False) -> str:
    """Return HTML content that the reader opens by a click on its summary."""
    return f"<details{' open' * is_open}><summary>{escape(summary)}</summary>{content}</details>"
