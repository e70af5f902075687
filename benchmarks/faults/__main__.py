"""Run the whole matrix, every step of it, and print how many cases there were.

python -m benchmarks.faults --markdown docs/faults.md
"""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.files import write_whole
from tests.support.faults.matrix import MODES, cells, run
from tests.support.faults.patterns import PATTERNS


def main() -> None:
    """Run, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--markdown", type=Path, help="file for the table")
    arguments.add_argument("--stride", type=int, default=1, help="take every so-manieth step (default: every one)")
    arguments.add_argument("--only", nargs="*", default=None, help="patterns to run (default: all)")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    todo = [(p, m) for p, m in cells() if chosen.only is None or p in chosen.only]
    counts: dict[tuple[str, str], int] = {}
    failures: list[str] = []
    for pattern, mode in tqdm(todo, unit="cell"):
        try:
            counts[pattern, mode] = run(pattern, mode, chosen.stride)
        except Exception as error:  # whatever a model that did not come back raises
            failures.append(f"{pattern}, {mode}: {type(error).__name__}: {error}")
    text = table(counts)
    print(text)
    print("\n".join([f"{sum(counts.values())} cases, {len(failures)} cells failed", *failures]))
    if chosen.markdown:
        write_whole(chosen.markdown, text)
    raise SystemExit(bool(failures))


def table(counts: dict[tuple[str, str], int]) -> str:
    """Return the table in Markdown: a line for each mode, with the sum over patterns, and one for each pattern."""
    modes = {mode: sum(n for (_, m), n in counts.items() if m == mode) for mode in MODES}
    patterns = {pattern: sum(n for (p, _), n in counts.items() if p == pattern) for pattern in PATTERNS}
    lines = ["| failure mode | cases |", "| --- | ---: |", *(f"| {mode} | {n:,} |" for mode, n in modes.items() if n)]
    lines += ["", "| pattern | cases |", "| --- | ---: |", *(f"| {p} | {n:,} |" for p, n in patterns.items() if n)]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "captum", "zennit"))
    lines += ["", f"In all {sum(counts.values()):,} cases; Python {platform.python_version()}, {versions}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
