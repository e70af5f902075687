"""Run tests against a copy of the package with something wrong in it, in a process of its own.

Torch is imported once, in a process that is forked for each mutant; the package never is.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.mutation.mutant import Mutant

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "canon_bridge"
_COPIED = (PACKAGE, "tests", "benchmarks", "pyproject.toml")
_PRELOADED = ["pytest", "torch", "torch.fx", "torchvision", "hypothesis", "numpy", "captum.attr", "zennit", "timm"]
_PASSED, _FAILED, _NOT_IMPORTED = 0, 1, 70


class NoVerdictError(RuntimeError):
    """The tests neither passed nor failed: they could not be collected, or did not come to an end."""


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes
    ----------
    killed_by : str
        The test that failed first; empty if none did: the mutant survived.
    seconds : float
        How long it took.
    """

    mutant: Mutant
    killed_by: str
    seconds: float


@contextmanager
def copy_of_the_repository() -> Iterator[Path]:
    """Give a temporary folder with the package and its tests, for the length of a block."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name).resolve()
        for part in _COPIED:
            # With compiled files: they hold where time and size of the source are the same, as they are here.
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
            copy(ROOT / part, folder / part)
        yield folder


def failing_test(folder: Path, file: str, tests: Sequence[str], timeout: float) -> str:
    """Return the name of the first test that fails in the copy, or nothing if all pass.

    Parameters
    ----------
    folder : Path
        From :func:`copy_of_the_repository`.
    file : str
        The file of the package, from the folder of the package, that the tests must have imported.
    tests : sequence of str
        Test files, from the folder of the tests.
    timeout : float
        Seconds after which the tests count as endless.

    Raises
    ------
    NoVerdictError
        They are endless, cannot be collected, or imported another copy of the package.
    """
    log = folder / "log"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_run, args=(folder, file, tests, log))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise NoVerdictError(f"the tests did not end in {timeout:.0f} s")
    output = log.read_text() if log.exists() else ""
    failed = re.search(r"^FAILED (?:tests/)?(.+?)(?: - .*)?$", output, re.MULTILINE)
    if process.exitcode == _FAILED and failed:
        return failed[1]
    if process.exitcode != _PASSED:
        raise NoVerdictError(f"exit status {process.exitcode}:\n{output[-3000:]}")
    return ""


def _run(folder: Path, file: str, tests: Sequence[str], log: Path) -> None:
    """Run tests in the copy and make sure that what they imported was the copy; the process ends with this."""
    output = os.open(log, os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    os.environ.update(OMP_NUM_THREADS="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    elsewhere = {"", str(ROOT), str(Path.cwd())}
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry not in elsewhere)]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("benchmarks", "tests")]:
        del sys.modules[name]
    arguments = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "-rf"]
    status = pytest.main([*arguments, "-m", "not slow", *(f"tests/{name}" for name in tests)])
    imported = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    if str(folder / PACKAGE / file) not in imported:
        print(f"the tests did not import {folder / PACKAGE / file}")
        status = _NOT_IMPORTED
    sys.exit(int(status))


def meet(mutant: Mutant, timeout: float = 600) -> Outcome:
    """Have the tests meet a mutant; see :func:`failing_test`."""
    start = time.perf_counter()
    with copy_of_the_repository() as folder:
        path = folder / PACKAGE / mutant.file
        path.write_text(mutant.applied(path.read_text()))
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
        killed_by = failing_test(folder, mutant.file, mutant.tests, timeout)
    return Outcome(mutant, killed_by, time.perf_counter() - start)


def meet_all(mutants: Sequence[Mutant], jobs: int) -> Iterator[Outcome]:
    """Have the tests meet many mutants, several at a time; in order."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(meet, mutants)


def check_the_unchanged(mutants: Sequence[Mutant]) -> None:
    """Raise ``NoVerdictError`` unless all tests pass that are to notice the mutants, where nothing is wrong."""
    tests = sorted({name for mutant in mutants for name in mutant.tests})
    with copy_of_the_repository() as folder:
        failed = failing_test(folder, mutants[0].file, tests, timeout=1800)
    if failed:
        raise NoVerdictError(f"{failed} fails without any mutant")
