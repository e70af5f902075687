"""Claims that processes lay on numbered pieces of work, through a lock that dies with its process.

A claim is the lock on one byte of one file. The kernel gives it to one process at a time and takes it back when that
process ends, however it ends: a killed process leaves no claim behind that somebody would have to judge by its age.
This file knows nothing about torch.
"""

from __future__ import annotations

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class Claims:
    """Exclusive claims on numbers, shared by all processes that name the same file.

    Processes exclude one another, also those of different runs and, where the file system passes locks on (NFS does),
    of different machines. One process does not exclude itself: use one object in one thread.

    Parameters
    ----------
    path : Path
        The lock file; made when it is missing, it stays empty.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Closing any handle on the file drops all the locks of this process: there is this one, until close().
        self._file = path.open("ab")

    def close(self) -> None:
        """Give up all claims."""
        self._file.close()

    @contextmanager
    def take(self, number: int, wait: bool = False) -> Generator[bool]:
        """Hold the claim on a number inside the block, and say whether it is held.

        Parameters
        ----------
        number : int
            From 0 on.
        wait : bool
            Wait until the claim is free; otherwise the block runs without it, with False.
        """
        is_mine = self._lock(number, wait)
        try:
            yield is_mine
        finally:
            if is_mine:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def _lock(self, number: int, wait: bool) -> bool:
        # A record lock (lockf), not flock: that one would live on in children that the process has forked.
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number)
        except (BlockingIOError, PermissionError):  # POSIX allows either for "another process has it"
            return False
        return True
