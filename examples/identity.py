"""What a result depends on: weights, data, settings, versions, device; and the surroundings that make it repeatable.

Two results may only be put together when their identities are the same in every entry. This file knows nothing about
where results are kept.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.metadata import version

import torch
from small_densenet import one_thread
from torch import Tensor

import canon_bridge

Identity = Mapping[str, str]


class RunError(Exception):
    """The run cannot go on as it was asked to; the message says what was found, what is needed and what to do."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values, in the order of the mapping."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def surroundings(device: torch.device) -> dict[str, str]:
    """Return what the last bits depend on besides weights, data and settings.

    Kernels are chosen by the kind of processor, and may change with every release.
    """
    is_gpu = device.type == "cuda"
    kind = torch.cuda.get_device_name(device) if is_gpu else torch.backends.cpu.get_cpu_capability()
    return {
        "device": f"{device.type}, {platform.machine()}, {kind}",
        "torch": torch.__version__,
        "captum": version("captum"),
        "canon_bridge": canon_bridge.__version__,
    }


def fingerprint(identity: Identity) -> str:
    """Return one SHA-256 for all the entries."""
    lines = (f"{name}: {value}\n" for name, value in sorted(identity.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def differences(found: Identity, needed: Identity) -> str:
    """Return the entries that differ, as ``name (found, needed)``."""
    names = [name for name in sorted({*found, *needed}) if found.get(name) != needed.get(name)]
    return "; ".join(f"{name} ({_short(found.get(name))}, here {_short(needed.get(name))})" for name in names)


def _short(value: str | None) -> str:
    """Return a value for a message: the beginning is enough to tell one digest from another."""
    if value is None:
        return "nothing"
    return value if len(value) < 64 else value[:12]


@contextmanager
def reproducible() -> Generator[None]:
    """Let the same inputs give the same bits inside: one thread, deterministic kernels, none chosen by a race."""
    # cuBLAS reads it when the first GPU context is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    chose_by_race = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        with one_thread():
            yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
        torch.backends.cudnn.benchmark = chose_by_race
