"""The example on several processes: the same bits as on one, nothing lost and nothing twice, whoever is killed when."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
EXAMPLE = EXAMPLES / "distributed_attribution.py"
CHUNKS = 9
SETTINGS = ("--epochs", "0", "--images", "70", "--chunk", "8")  # nine chunks, the last one shorter

# Process 0 finishes chunk 0 and writes no other; process 1 finishes chunk 1, and is killed in the middle of writing 3.
KILLED_WHILE_WRITING = f"""
import os, signal, sys, time
sys.path.insert(0, {str(EXAMPLES)!r})
import chunks, distributed_attribution
write_whole, number_of_writes = chunks.write_whole, 0

def write_half(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

def write_until_killed(path, write):
    global number_of_writes
    number_of_writes += path.suffix == ".pt"
    if number_of_writes == 2 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        log = path.parents[1] / "log-rank-0.jsonl"
        while os.environ["RANK"] == "0" or "finished" not in log.read_text():
            time.sleep(0.01)
        write = write_half
    write_whole(path, write)

chunks.write_whole = write_until_killed
sys.exit(distributed_attribution.main())
"""

# Not torchrun, but something else that sets the same variables; it imports once, so that many processes cost little.
FORKED = f"""
import os, sys
sys.path.insert(0, {str(EXAMPLES)!r})
import distributed_attribution
children = []
for rank in range(int(os.environ["WORLD_SIZE"])):
    if (child := os.fork()) == 0:
        os.environ["RANK"] = str(rank)
        status = distributed_attribution.main()
        sys.stdout.flush()
        os._exit(status)
    children.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
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


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start Python on the code of this checkout."""
    return subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def torchrun(count: int, arguments: list[str], *more: str, script: Path = EXAMPLE) -> subprocess.Popen[str]:
    """Start the example as a user would."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return start([*launcher, *more, str(script), *arguments])


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return exit status and all that was printed."""
    printed, _ = process.communicate(timeout=300)
    return process.returncode, printed


def logged(folder: Path, event: str) -> Counter[int]:
    """Return how often each chunk had this event, by all processes of all runs."""
    lines = [json.loads(line) for path in folder.glob("log-*.jsonl") for line in path.read_text().splitlines()]
    return Counter(line["chunk"] for line in lines if line["event"] == event)


def assert_nothing_is_lost_or_twice(folder: Path, expected: bytes, killed: int = 0, lines_lost: int = 0) -> None:
    """Compare the bits, and count: a killed process may have begun one chunk that another one begins again."""
    assert (folder / "relevance.npy").read_bytes() == expected
    began, finished = logged(folder, "began"), logged(folder, "finished")
    assert set(began) == set(range(CHUNKS))
    assert CHUNKS <= began.total() <= CHUNKS + killed
    assert set(finished.values()) == {1}
    assert CHUNKS - lines_lost <= finished.total() <= CHUNKS
    assert not list(folder.rglob("*.part"))


def test_one_process_explains_all_images(expected, place):
    relevance = np.load(place / "single" / "relevance.npy")
    assert (relevance.shape, relevance.dtype) == ((70, 64, 64), np.float32)
    assert (np.abs(relevance).max((1, 2)) > 0).all()
    assert_nothing_is_lost_or_twice(place / "single", expected)


def test_a_second_run_computes_nothing(expected, example, place, capsys):
    assert example.main(arguments(place, place / "single", "--device", "cpu")) == 0
    printed = capsys.readouterr().out
    assert "process 0              0" in printed
    assert f"ready before           {CHUNKS}" in printed
    assert_nothing_is_lost_or_twice(place / "single", expected)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--seed", "1"], "holds another result"),
        (["--chunk", "4"], "chunk (8, here 4)"),
        (["--chunk", "0"], "'0' is not a whole number from 1"),
        (["--folder", __file__], "test_distributed.py"),
    ],
)
def test_what_cannot_be_done_is_said(expected, example, place, more, words, capsys):
    before = sorted((place / "single").rglob("*"))
    with pytest.raises(SystemExit) as stop:
        example.main(arguments(place, place / "single", "--device", "cpu", *more))
    assert stop.value.code != 0
    assert words in capsys.readouterr().err
    assert sorted((place / "single").rglob("*")) == before


@pytest.mark.parametrize("count", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (3, CHUNKS + 1))])
def test_torchrun_gives_the_same_bits(expected, place, count, tmp_path):
    status, printed = finish(torchrun(count, arguments(place, tmp_path / "several", "--device", "cpu")))
    assert status == 0, printed
    assert f"{count} processes on cpu" in printed
    assert_nothing_is_lost_or_twice(tmp_path / "several", expected)


@pytest.mark.slow
def test_another_starter_gives_the_same_bits(expected, place, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    given = arguments(place, tmp_path / "forked", "--device", "cpu")
    forked = start(["-c", FORKED, *given], WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    status, printed = finish(forked)
    assert status == 0, printed
    assert "3 processes on cpu" in printed
    assert_nothing_is_lost_or_twice(tmp_path / "forked", expected)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "killed_while_writing.py"
    path.write_text(KILLED_WHILE_WRITING)
    return path


@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_while_writing_then_run_by_another_number(expected, example, place, tmp_path, script, count, capsys):
    folder = tmp_path / "killed"
    given = arguments(place, folder, "--device", "cpu")
    status, printed = finish(torchrun(2, given, script=script))
    assert status != 0, printed
    assert not (folder / "relevance.npy").exists()
    assert [path.name[:12] for path in folder.rglob("*.part")] == ["chunk-000003"]
    assert set(logged(folder, "finished")) == {0, 1}
    if count == 1:
        assert example.main(given) == 0
        printed = capsys.readouterr().out
    else:
        status, printed = finish(torchrun(count, given))
        assert status == 0, printed
    assert "ready before           2" in printed
    assert_nothing_is_lost_or_twice(folder, expected, killed=2)


@pytest.mark.slow
def test_torchrun_starts_again_by_itself(expected, place, tmp_path, script):
    given = arguments(place, tmp_path / "again", "--device", "cpu")
    status, printed = finish(torchrun(2, given, "--max-restarts=1", script=script))
    assert status == 0, printed
    assert_nothing_is_lost_or_twice(tmp_path / "again", expected, killed=2)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["process 0", "process 1", "torchrun"])
@pytest.mark.parametrize("after", [1, 3])
def test_killed_from_outside_and_run_again_at_once(expected, example, place, tmp_path, victim, after):
    folder = tmp_path / "killed"
    given = arguments(place, folder, "--device", "cpu")
    process = torchrun(2, given)
    log = folder / f"log-rank-{0 if victim == 'torchrun' else victim[-1]}.jsonl"
    while not log.exists() or log.read_text().count("finished") < after:
        assert process.poll() is None
        time.sleep(0.001)
    pid = process.pid if victim == "torchrun" else json.loads(log.read_text().splitlines()[0])["pid"]
    os.kill(pid, signal.SIGKILL)
    # The processes of a killed torchrun go on; this run shares the work with them.
    assert example.main(given) == 0
    finish(process)
    assert_nothing_is_lost_or_twice(folder, expected, killed=2, lines_lost=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpus_give_the_same_bits_whatever_their_number(example, place, tmp_path):
    assert example.main(arguments(place, tmp_path / "one", "--device", "cuda")) == 0
    process = torchrun(torch.cuda.device_count(), arguments(place, tmp_path / "all", "--device", "cuda"))
    status, printed = finish(process)
    assert status == 0, printed
    assert_nothing_is_lost_or_twice(tmp_path / "all", (tmp_path / "one" / "relevance.npy").read_bytes())
