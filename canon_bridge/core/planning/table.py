"""Plain-text tables. Floor 0: imports nothing."""

from collections.abc import Iterator, Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table with left-aligned columns, a rule under the header and no trailing spaces."""
    rule = ["-" * max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    yield from align((header, rule, *rows))


def align(rows: Sequence[Sequence[str]], left: int | None = None) -> Iterator[str]:
    """Yield lines of aligned columns, the first ``left`` of them (by default all) to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    to_left = len(widths) if left is None else left
    for row in rows:
        cells = zip(row, widths, strict=True)
        aligned = (cell.ljust(w) if column < to_left else cell.rjust(w) for column, (cell, w) in enumerate(cells))
        yield "  ".join(aligned).rstrip()
