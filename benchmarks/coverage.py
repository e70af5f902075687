"""Canonize every model of a zoo and print what became of each: one row a model, then totals.

Run it from the repository root::

    python -m benchmarks.coverage --prefer both --markdown docs/coverage.md

The exit status is 0 if no function changed and every model was restored, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import report
from benchmarks.files import write_whole
from tests.support import zoo
from tests.support.measure import Row, first_line, measure_by_name

NO_BATCH_NORM = "no BatchNorm"


@dataclass(frozen=True)
class Task:
    """One thing to measure: the first of the alternatives that has a BatchNorm and is small enough."""

    names: zoo.Group
    prefers: tuple[str, ...]
    size: int | None
    max_parameters: float
    timeout: int

    def rows(self, status: str, reason: str) -> list[Row]:
        """Return rows that say why there is nothing else to say."""
        return [Row(self.names[0], prefer, status=status, reason=reason) for prefer in self.prefers]


class OutOfTimeError(BaseException):
    """A task took too long; not an Exception, so that nothing on the way takes it for an error of the model."""


def end_with_parent() -> None:
    """Let a worker end when the command is killed, which could not tell it any more."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def work(task: Task) -> list[Row]:
    """Measure one task in a worker process; whatever goes wrong becomes a row."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def stop(number: int, frame: object) -> None:
        raise OutOfTimeError(f"it took more than {task.timeout} s (--timeout)")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(task.timeout)
    try:
        rows = task.rows(NO_BATCH_NORM, "")
        for name in task.names:
            norms, parameters = zoo.describe(name)
            if norms and parameters <= task.max_parameters:
                return measure_by_name(name, task.prefers, task.size)
            if norms:
                rows = task.rows("skipped", f"{parameters / 1e6:.0f} million parameters (--max-parameters)")
        return rows
    except (Exception, OutOfTimeError) as error:
        return task.rows("not measured", first_line(error))
    finally:
        signal.alarm(0)


def why_it_broke(error: BrokenProcessPool) -> str:
    """Return what stopped a worker: the rows could not be sent, or the system killed it."""
    if error.__cause__ is None:
        return "the process died, probably for lack of memory"
    return f"its rows could not be sent: {str(error.__cause__).strip(chr(39)).strip().splitlines()[-1]}"


def run(tasks: Sequence[Task], processes: int) -> Iterator[list[Row]]:
    """Yield the rows of each task as they come.

    A task whose process dies (mostly for lack of memory) is tried again in a process of its own.
    """
    context = multiprocessing.get_context("spawn")
    again: list[Task] = []
    with ProcessPoolExecutor(processes, mp_context=context, initializer=end_with_parent) as pool:
        futures: dict[Future[list[Row]], Task] = {pool.submit(work, task): task for task in tasks}
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:
                again.append(futures[future])
    for task in again:
        with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
            try:
                yield pool.submit(work, task).result()
            except BrokenProcessPool as error:
                yield task.rows("not measured", why_it_broke(error))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help="only models whose name contains one")
    parser.add_argument("--timm", choices=("none", "required", "families", "all"), default="required")
    parser.add_argument("--size", type=int, help="height and width (default: the smallest that the model runs on)")
    parser.add_argument("--prefer", choices=("left", "right", "both"), default="left")
    parser.add_argument("--max-parameters", type=float, default=1e9, metavar="N", help="skip larger models (1e9)")
    parser.add_argument("--timeout", type=int, default=900, metavar="SECONDS", help="give up on a model (900)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="models at a time; memory is the limit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured, after every model")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table for docs/coverage.md")
    return parser.parse_args(arguments)


def select(options: argparse.Namespace) -> list[Task]:
    """Return the tasks that the options ask for.

    Raises
    ------
    SystemExit
        If no model of the zoo fits, or timm is missing.
    """
    try:
        groups = zoo.names(options.timm)
    except ImportError:
        raise SystemExit("timm is not installed: pip install timm, or use --timm none") from None
    if options.models:
        groups = [g for g in groups if any(part in name for name in g[:1] for part in options.models)]
    if not groups:
        raise SystemExit(f"no model has a name that contains {' or '.join(options.models)}")
    prefers = ("left", "right") if options.prefer == "both" else (options.prefer,)
    return [Task(group, prefers, options.size, options.max_parameters, options.timeout) for group in groups]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    options = parse(arguments)
    command = shlex.join(["python", "-m", "benchmarks.coverage", *(sys.argv[1:] if arguments is None else arguments)])
    tasks = select(options)
    order = {name: index for index, task in enumerate(tasks) for name in task.names}
    rows: list[Row] = []
    left_out = 0
    print(report.text_header())
    for found in tqdm(run(tasks, options.processes), total=len(tasks), unit="model", file=sys.stderr, smoothing=0):
        if found[0].status == NO_BATCH_NORM:
            left_out += 1
            continue
        rows = sorted([*rows, *found], key=lambda row: (order[row.model], row.prefer))
        with tqdm.external_write_mode(file=sys.stderr):
            print(*map(report.text_row, found), sep="\n", flush=True)
        if options.json:
            document = {"command": command, "no_batch_norm": left_out, "rows": [asdict(row) for row in rows]}
            write_whole(options.json, json.dumps(document, indent=1))
    print(*report.totals(rows, left_out), sep="\n")
    for reason, count, models in report.reasons(rows):
        print(f"{count:6d}x {reason} ({len(models)} models: {', '.join(models[:3])})")
    if options.markdown:
        write_whole(options.markdown, report.markdown(rows, command, left_out))
    return int(any("wrong" in row.status or row.restored is False for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
