"""How one process works off the missing chunks together with the others, none of which it trusts to live on.

This file knows nothing about what is computed, nor about process groups: rank and count only say where to begin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from chunks import Chunks
from identity import RunError
from torch import Tensor
from tqdm import tqdm

PAUSE = 0.05
"""Seconds between two looks at chunks that other processes have claimed."""


def compute_missing(
    chunks: Chunks,
    missing: Sequence[int],
    explain: Callable[[slice], Tensor],
    rank: int,
    count: int,
    patience: float,
) -> int:
    """Compute chunks until none is missing, whoever computes them.

    Each process begins with its own share and then helps with the others'. It comes back when *every* chunk is there;
    those whose process has ended it computes itself.

    Parameters
    ----------
    chunks : Chunks
        Where they are kept.
    missing : sequence of int
        The same for all processes.
    explain : callable
        Gets a range of the data set.
    rank, count : int
        Which share is this process's. Process 0 shows the progress of all.
    patience : float
        Seconds without any newly finished chunk after which to give up.

    Returns
    -------
    int
        How many this process computed.

    Raises
    ------
    RunError
        Another process keeps its claim, but does not get on.
    """
    pending, computed = in_turn(missing, rank, count), 0
    last_news = time.monotonic()
    with progress_bar(chunks, is_shown=rank == 0) as bar:
        while pending:
            computed_before = computed
            for number in pending:
                computed += _compute_if_free(chunks, number, explain, bar)
            left = [number for number in pending if not chunks.is_there(number)]
            if len(left) < len(pending):
                last_news = time.monotonic()
            elif time.monotonic() - last_news > patience:
                raise RunError(
                    f"chunk {left[0]} is claimed by another process, and for {patience:.0f} s none was finished: end "
                    "that process (the logs have its pid) and run again; or give more --patience"
                )
            pending = left
            _show(bar, chunks)
            if pending and computed == computed_before:
                time.sleep(PAUSE)
    return computed


def in_turn(missing: Sequence[int], rank: int, count: int) -> list[int]:
    """Return the missing chunks in the order in which one process looks at them: its own, the next one's, and so on."""
    return [number for turn in range(count) for number in missing[(rank + turn) % count :: count]]


def _compute_if_free(chunks: Chunks, number: int, explain: Callable[[slice], Tensor], bar: tqdm) -> bool:
    """Compute a chunk if nobody has finished or claimed it, and say whether this process did."""
    if chunks.is_there(number):
        return False
    with chunks.claim(number) as is_mine:
        # Between the look and the claim another process may have finished it.
        if not is_mine or chunks.is_there(number):
            return False
        chunks.compute(number, explain)
    _show(bar, chunks)
    return True


def progress_bar(chunks: Chunks, is_shown: bool) -> tqdm:
    """Return a bar over all images, that begins where this run begins: its rate is the rate of this run."""
    return tqdm(
        total=chunks.division.images,
        initial=_ready(chunks),
        desc="explaining",
        unit="image",
        disable=not is_shown,
    )


def _show(bar: tqdm, chunks: Chunks) -> None:
    """Show how many images are ready, whoever has explained them."""
    if not bar.disable:
        bar.update(_ready(chunks) - bar.n)


def _ready(chunks: Chunks) -> int:
    """Return how many images are in finished chunks."""
    return chunks.division.count_images(chunks.finished())
