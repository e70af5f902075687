"""A folder of finished chunks, each computed by one process and none of them twice, and the result made of them.

::

    FOLDER/identity.json              what the chunks depend on, to be read by people
    FOLDER/claims                     the lock file: whose chunk is whose, right now
    FOLDER/chunks/chunk-000000.pt     one finished chunk each
    FOLDER/log-rank-0.jsonl           what each process began and finished, a line each
    FOLDER/relevance.npy              the result

Every file appears as a whole or not at all. This file knows nothing about models and process groups.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from claims import Claims
from identity import Identity, RunError, differences, digest, fingerprint
from numpy.lib.format import dtype_to_descr, write_array_header_1_0
from torch import Tensor
from whole_files import write_whole

# What torch.load raises depends on where a file is cut off or damaged.
_UNUSABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Division:
    """A data set cut into chunks of one size, the last of which may be shorter.

    It depends on nothing but these two numbers: not on how many processes there are, nor on what is finished.
    """

    images: int
    size: int

    def __len__(self) -> int:
        return -(-self.images // self.size)

    def part(self, number: int) -> slice:
        """Return the range of a chunk's images in the data set."""
        return slice(number * self.size, min((number + 1) * self.size, self.images))

    def count_images(self, numbers: set[int]) -> int:
        """Return how many images some chunks have together."""
        return sum(self.part(number).stop - self.part(number).start for number in numbers)


class Chunks:
    """The chunks of one result.

    Parameters
    ----------
    folder : Path
        Where they lie; made when it is missing.
    identity : mapping of str to str
        All that the values depend on, the division included.
    division : Division
        Which images are in which chunk.
    rank : int
        Of this process, for its log.
    """

    def __init__(self, folder: Path, identity: Identity, division: Division, rank: int) -> None:
        self.folder, self.division = folder, division
        self.result = folder / "relevance.npy"
        self._identity, self._fingerprint = dict(identity), fingerprint(identity)
        self._claims = Claims(folder / "claims")
        self._rank = rank

    def close(self) -> None:
        """Give up the lock file; to be called when all is done."""
        self._claims.close()

    def path(self, number: int) -> Path:
        """Return the file of a chunk."""
        return self.folder / "chunks" / f"chunk-{number:06d}.pt"

    def is_there(self, number: int) -> bool:
        """Whether a chunk is finished."""
        return self.path(number).is_file()

    def finished(self) -> set[int]:
        """Return which chunks are finished at this moment, by whomever."""
        stems = (path.stem.removeprefix("chunk-") for path in (self.folder / "chunks").glob("chunk-*.pt"))
        return {int(stem) for stem in stems if stem.isdecimal()} & set(range(len(self.division)))

    def claim(self, number: int) -> AbstractContextManager[bool]:
        """Claim a chunk inside the block; no other process computes it or tidies it up meanwhile."""
        return self._claims.take(number + 1)

    def _claim_folder(self) -> AbstractContextManager[bool]:
        """Claim what belongs to no chunk."""
        return self._claims.take(0, wait=True)

    def prepare(self) -> set[int]:
        """Make the folder ready and return the chunks in it that can be used.

        What killed processes left half-written is removed, and so is every chunk that is damaged or was computed from
        other weights, data or settings.

        Raises
        ------
        RunError
            The folder is another result's.
        """
        with self._claim_folder():
            self._check_identity()
            for part in self.folder.glob("*.part"):
                part.unlink()
        for part in (self.folder / "chunks").glob("chunk-*.part"):
            with self.claim(int(part.name.split(".")[0].removeprefix("chunk-"))) as is_mine:
                if is_mine:
                    part.unlink(missing_ok=True)
        return {number for number in self.finished() if self._is_usable(number)}

    def _check_identity(self) -> None:
        """Refuse a folder that is another result's; write down whose it is where nobody has."""
        path = self.folder / "identity.json"
        try:
            found = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):  # a damaged one costs nothing: every chunk says itself whose it is
            text = json.dumps(self._identity, indent=2) + "\n"
            write_whole(path, lambda file: file.write(text.encode()))
            return
        if found != self._identity:
            raise RunError(
                f"{self.folder} holds another result, not this one: {differences(found, self._identity)}. "
                "Name another folder, or delete it"
            )

    def _is_usable(self, number: int) -> bool:
        """Whether a chunk is whole and belongs to this result; if not, it is removed."""
        try:
            self.load(number)
        except RunError as refusal:
            with self.claim(number) as is_mine:
                if is_mine:
                    self.path(number).unlink(missing_ok=True)
            logger.warning("%s: it is computed again.", refusal)
            return False
        return True

    def compute(self, number: int, explain: Callable[[slice], Tensor]) -> None:
        """Compute a chunk and keep it; the caller has the claim.

        The line in the log that it is finished comes after the file: a process that is killed in between loses the
        line, not the chunk.
        """
        self._log(number, "began")
        start = time.perf_counter()
        relevance = explain(self.division.part(number))
        content = {"fingerprint": self._fingerprint, "relevance": relevance, "seal": self._seal(number, relevance)}
        write_whole(self.path(number), lambda file: torch.save(content, file))
        self._log(number, "finished", seconds=round(time.perf_counter() - start, 3))

    def load(self, number: int) -> Tensor:
        """Return the relevance of a chunk, shape ``(images, ...)``.

        Raises
        ------
        RunError
            The file is missing, damaged or another result's.
        """
        path = self.path(number)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            is_own = content["fingerprint"] == self._fingerprint
            is_whole = content["seal"] == self._seal(number, content["relevance"], content["fingerprint"])
        except _UNUSABLE as error:
            raise RunError(f"{path} cannot be read ({type(error).__name__})") from error
        if not is_whole:
            raise RunError(f"{path} is damaged, or another chunk under this name")
        if not is_own:
            raise RunError(f"{path} comes from other weights, data, settings or versions")
        return content["relevance"]

    def _seal(self, number: int, relevance: Tensor, whose: str | None = None) -> str:
        """Return what proves that the values are those that were computed for this chunk of this result."""
        return digest({f"{whose or self._fingerprint} {number}": relevance})

    def merge(self) -> str:
        """Write all chunks in the order of the data set into one file, and return its SHA-256.

        The file is in NumPy's format, so that ``numpy.load(path, mmap_mode="r")`` opens it however large it is; here,
        too, no more than one chunk is in memory at a time. Its bytes depend on the values alone.
        """
        with self._claim_folder():
            write_whole(self.result, self._write_all)
        with self.result.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _write_all(self, file: IO[bytes]) -> None:
        """Write header and values as ``numpy.save`` does."""
        first = self.load(0).numpy()
        shape = (self.division.images, *first.shape[1:])
        write_array_header_1_0(file, {"descr": dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape})
        for number in range(len(self.division)):
            file.write(self.load(number).numpy().tobytes())

    def _log(self, number: int, event: str, **facts: float) -> None:
        """Append one line to this process's log, in one write."""
        line = {"chunk": number, "event": event, "rank": self._rank, "pid": os.getpid(), **facts}
        with (self.folder / f"log-rank-{self._rank}.jsonl").open("ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")
