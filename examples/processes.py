"""The processes of one run: who this one is, where it computes, and the few things that all must agree on.

Started by ``torchrun`` (or anything else that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) they form a process
group, of NCCL on GPUs and gloo otherwise; a process that was started alone is a group of one without any network.
This file knows nothing about chunks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from identity import Identity, RunError, differences
from torch import nn

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of one run, as one of them sees it.

    Parameters
    ----------
    rank : int
        From 0 to ``count - 1``; process 0 speaks to the user and writes the result.
    count : int
        How many processes there are.
    device : torch.device
        Where this process computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that speaks to the user."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank, to each of them."""
        if self.count == 1:
            return [value]
        values: list[T | None] = [None] * self.count
        dist.all_gather_object(values, value)
        return cast("list[T]", values)

    def from_first(self, compute: Callable[[], T]) -> T:
        """Return to all what process 0 computes; where it refuses, all refuse with its words."""
        value: T | RunError | None = None
        if self.is_first:
            try:
                value = compute()
            except RunError as refusal:
                value = refusal
        shared = self.gather(value)[0]
        if isinstance(shared, RunError):
            raise shared
        return cast(T, shared)

    def share_weights(self, model: nn.Module) -> None:
        """Overwrite parameters and buffers by those of process 0; the model is on ``device``."""
        if self.count > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def agree(self, identity: Identity) -> None:
        """Refuse to start unless all processes would compute the same."""
        for rank, other in enumerate(self.gather(identity)):
            if other != identity:
                raise RunError(
                    f"process {rank} would compute something else than process {self.rank}: "
                    f"{differences(other, identity)}. All need the same code, versions and kind of device."
                )


@contextmanager
def join(device: str, patience: float) -> Generator[Processes]:
    """Join the process group inside the block.

    Parameters
    ----------
    device : str
        ``"cpu"``, ``"cuda"`` (one GPU for each process of a machine) or ``"auto"``, which takes GPUs where there are
        any.
    patience : float
        Seconds after which waiting for another process is an error.

    Raises
    ------
    RunError
        There are fewer GPUs than processes on this machine.
    """
    place = _choose_device(device)
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if count == 1:
        yield Processes(0, 1, place)
        return
    is_gpu = place.type == "cuda"
    dist.init_process_group(
        "nccl" if is_gpu else "gloo",
        timeout=timedelta(seconds=patience),
        device_id=place if is_gpu else None,
    )
    # Left only on the way that all go: after an error, taking leave could wait for a process that is no more.
    yield Processes(rank, count, place)
    dist.destroy_process_group()


def _choose_device(name: str) -> torch.device:
    """Return the device of this process, and make a GPU the current one."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and found == 0):
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= found:
        needed = os.environ.get("LOCAL_WORLD_SIZE", str(index + 1))
        raise RunError(
            f"found {found} GPU(s) for {needed} processes on this machine, needed one for each: start fewer processes, "
            "or give --device cpu"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device
