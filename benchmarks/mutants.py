"""Have the tests meet wrong variants of the mathematics, and print which test noticed each: none may survive.

Run it from the repository root::

    python -m benchmarks.mutants --jobs 2 --only border

The exit status is 0 if every mutant was killed, 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tqdm import tqdm

from benchmarks.mutation.every import EVERY
from benchmarks.mutation.run import Outcome, check_the_unchanged, meet_all


def table(outcomes: Sequence[Outcome], markdown: bool = False) -> str:
    """Return a row for each mutant and a last line with the totals."""
    rows = [(o.mutant.file, o.mutant.what, o.killed_by or "SURVIVED") for o in outcomes]
    head = ("file", "what is wrong", "noticed by")
    killed = sum(bool(outcome.killed_by) for outcome in outcomes)
    total = f"{killed} of {len(outcomes)} mutants killed."
    if markdown:
        lines = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in (head, ("---",) * 3, *rows)]
        return "\n".join([*(f"| {line} |" for line in lines), "", total])
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(3)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    return "\n".join([*lines, total])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="only mutants with this in their file or description")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--trust", action="store_true", help="do not run the tests without any mutant first")
    options = parser.parse_args(arguments)
    mutants = [mutant for mutant in EVERY if options.only in mutant.name]
    if not mutants:
        parser.error(f"no mutant has {options.only!r} in its file or description")
    if not options.trust:
        check_the_unchanged(mutants)
    outcomes = list(tqdm(meet_all(mutants, options.jobs), total=len(mutants), unit="mutant", disable=None))
    print(table(outcomes, options.markdown))
    return int(not all(outcome.killed_by for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
