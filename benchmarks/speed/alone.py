"""What is measured in a process of its own: memory that entry adds, and the time of ``import canon_bridge``.

Each runs this module again: ``python -m benchmarks.speed.alone memory MODEL PREFER DEVICE``, or ``... import``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.speed.figures import MIB, MILLISECONDS, Figure

_BYTES = 2**20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure_memory(model: str, prefer: str, device: str) -> list[Figure]:
    """Measure what the first entry adds, in a fresh process."""
    found = _run("memory", model, prefer, device)
    return [Figure.of(row, [found[row]], model=model, prefer=prefer, unit=MIB) for row in ("memory", "merged")]


def measure_import(repetitions: int) -> list[Figure]:
    """Measure import and first use in fresh processes, with the bytecode that an installed package has."""
    with tempfile.TemporaryDirectory() as folder:
        bytecode = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        found = [_run("import", settings=bytecode) for _ in range(repetitions + 1)][1:]  # the first one writes it
    return [Figure.of(row, [one[row] for one in found], unit=MILLISECONDS) for row in ("import", "first_use")]


def _run(*arguments: str, settings: Mapping[str, str] | None = None) -> dict[str, float]:
    command = (sys.executable, "-m", __spec__.name, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(settings or {})})
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _memory(name: str, prefer: Any, device: str) -> dict[str, float]:
    from benchmarks.speed.models import build
    from canon_bridge import canonize

    with canonize(build("residual1").to(device)):  # so that modules are loaded, and pools of threads there
        pass
    model = build(name).to(device)
    own = _storages(model)
    before = _restart(device)
    block = canonize(model, prefer=prefer)
    block.apply()
    added = _peak(device) - before
    merged = sum(size for address, size in _storages(model).items() if address not in own)
    return {"memory": added / _BYTES, "merged": merged / _BYTES}


def _storages(model: nn.Module) -> dict[int, int]:
    """Return the size in bytes of each storage of the model, by its address."""
    tensors = [*model.parameters(), *model.buffers()]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def _restart(device: str) -> int:
    """Return the memory in use, and let its peak begin here."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)  # what is free but not given back would be used unseen
    _CLEAR.write_text("5")
    return _status("VmRSS")


def _peak(device: str) -> int:
    return _status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def _import() -> dict[str, float]:
    start = time.process_time()
    import canon_bridge

    imported = time.process_time() - start
    from benchmarks.speed.models import build

    times: list[float] = []
    for model in [build("residual1") for _ in range(2)]:
        start = time.process_time()
        with canon_bridge.canonize(model):
            pass
        times.append(time.process_time() - start)
    return {"import": 1000 * imported, "first_use": 1000 * (times[0] - times[1])}


def main(kind: str, *arguments: str) -> None:
    """Measure in this very process and print what was found as JSON."""
    torch.set_num_threads(1)
    print(json.dumps(_import() if kind == "import" else _memory(*arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
