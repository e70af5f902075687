"""The example on several processes: the same bits as on one, nothing lost and nothing twice, whoever is killed when."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
CHUNKS, KILLED_CHUNK = 9, 3
SETTINGS = ("--epochs", "0", "--images", "70", "--chunk", "8")  # nine chunks, the last one shorter

# Process 1 is killed in the middle of writing its second chunk, and process 0 waits with its own second one until then.
KILLED_WHILE_WRITING = f"""
import os, signal, sys, time
sys.path.insert(0, {str(EXAMPLES)!r})
import chunks, distributed_attribution
write_whole, number_of_writes = chunks.write_whole, 0

def write_until_killed(path, write):
    global number_of_writes
    number_of_writes += path.suffix == ".pt"
    if number_of_writes == 2 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if os.environ["RANK"] == "1":
            write_whole(path, lambda file: (file.write(b"half"), file.flush(), os.kill(os.getpid(), signal.SIGKILL)))
        while not list(path.parent.glob("chunk-{KILLED_CHUNK:06d}.*.part")):
            time.sleep(0.01)
    write_whole(path, write)

chunks.write_whole = write_until_killed
sys.exit(distributed_attribution.main())
"""


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import distributed_attribution

        yield distributed_attribution
        for name in [path.stem for path in EXAMPLES.glob("*.py")]:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


def arguments(place: Path, folder: Path, *more: str) -> list[str]:
    return [*SETTINGS, "--cache", str(place / "cache"), "--folder", str(folder), *more]


@pytest.fixture(scope="module")
def expected(example, place):
    """What one process makes, once for all tests."""
    assert example.main(arguments(place, place / "single", "--device", "cpu")) == 0
    return (place / "single" / "relevance.npy").read_bytes()


def torchrun(count: int, arguments: list[str], script: Path, *more: str) -> subprocess.Popen[str]:
    """Start the example as a user would, on the code of this checkout."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *more]
    return subprocess.Popen(
        [*command, str(script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return exit status and all that was printed."""
    printed, _ = process.communicate(timeout=300)
    return process.returncode, printed


def logged(folder: Path, event: str) -> Counter[int]:
    """Return how often each chunk had this event, by all processes of all runs."""
    lines = [json.loads(line) for path in folder.glob("log-*.jsonl") for line in path.read_text().splitlines()]
    return Counter(line["chunk"] for line in lines if line["event"] == event)


def assert_nothing_is_lost_or_twice(folder: Path, expected: bytes, killed: int) -> None:
    assert (folder / "relevance.npy").read_bytes() == expected
    assert logged(folder, "finished") == Counter(range(CHUNKS))
    began = logged(folder, "began")
    assert set(began) == set(range(CHUNKS))
    assert CHUNKS <= began.total() <= CHUNKS + killed
    assert not list(folder.rglob("*.part"))


def test_one_process_explains_all_images(expected, place):
    relevance = np.load(place / "single" / "relevance.npy")
    assert (relevance.shape, relevance.dtype) == ((70, 64, 64), np.float32)
    assert (np.abs(relevance).max((1, 2)) > 0).all()
    assert_nothing_is_lost_or_twice(place / "single", expected, killed=0)


def test_a_second_run_computes_nothing(expected, example, place, capsys):
    assert example.main(arguments(place, place / "single", "--device", "cpu")) == 0
    printed = capsys.readouterr().out
    assert "process 0              0" in printed
    assert f"ready before           {CHUNKS}" in printed
    assert_nothing_is_lost_or_twice(place / "single", expected, killed=0)


@pytest.mark.parametrize(
    "count", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.slow)]
)
def test_several_processes_give_the_same_bits(expected, place, count, tmp_path):
    process = torchrun(
        count, arguments(place, tmp_path / "several", "--device", "cpu"), EXAMPLES / "distributed_attribution.py"
    )
    status, printed = finish(process)
    assert status == 0, printed
    assert f"{count} processes on cpu" in printed
    assert_nothing_is_lost_or_twice(tmp_path / "several", expected, killed=0)


def test_a_process_killed_while_it_writes_and_a_run_with_another_number(expected, place, tmp_path):
    folder, script = tmp_path / "killed", tmp_path / "killed_while_writing.py"
    script.write_text(KILLED_WHILE_WRITING)
    given = arguments(place, folder, "--device", "cpu")
    status, printed = finish(torchrun(2, given, script))
    assert status != 0, printed
    assert not (folder / "relevance.npy").exists()
    assert list((folder / "chunks").glob(f"chunk-{KILLED_CHUNK:06d}.*.part"))
    ready = logged(folder, "finished").total()
    assert 1 <= ready < CHUNKS
    status, printed = finish(torchrun(3, given, EXAMPLES / "distributed_attribution.py"))
    assert status == 0, printed
    assert f"ready before           {ready}" in printed
    assert_nothing_is_lost_or_twice(folder, expected, killed=2)


@pytest.mark.slow
def test_torchrun_starts_again_by_itself(expected, place, tmp_path):
    script = tmp_path / "killed_while_writing.py"
    script.write_text(KILLED_WHILE_WRITING)
    given = arguments(place, tmp_path / "again", "--device", "cpu")
    status, printed = finish(torchrun(2, given, script, "--max-restarts=1"))
    assert status == 0, printed
    assert_nothing_is_lost_or_twice(tmp_path / "again", expected, killed=2)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["process 0", "process 1", "torchrun"])
@pytest.mark.parametrize("after", [1, 3])
def test_killed_from_outside_and_run_again_at_once(expected, place, tmp_path, victim, after, example):
    folder = tmp_path / "killed"
    given = arguments(place, folder, "--device", "cpu")
    process = torchrun(2, given, EXAMPLES / "distributed_attribution.py")
    log = folder / f"log-rank-{victim[-1] if victim != 'torchrun' else 0}.jsonl"
    while not log.exists() or log.read_text().count("finished") < after:
        assert process.poll() is None
    pid = process.pid if victim == "torchrun" else json.loads(log.read_text().splitlines()[0])["pid"]
    os.kill(pid, signal.SIGKILL)
    # The processes of a killed torchrun go on; this run shares the work with them.
    assert example.main(given) == 0
    finish(process)
    assert_nothing_is_lost_or_twice(folder, expected, killed=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpus_give_the_same_bits_whatever_their_number(example, place, tmp_path):
    assert example.main(arguments(place, tmp_path / "one", "--device", "cuda")) == 0
    process = torchrun(
        torch.cuda.device_count(),
        arguments(place, tmp_path / "all", "--device", "cuda"),
        EXAMPLES / "distributed_attribution.py",
    )
    status, printed = finish(process)
    assert status == 0, printed
    assert_nothing_is_lost_or_twice(tmp_path / "all", (tmp_path / "one" / "relevance.npy").read_bytes(), killed=0)
