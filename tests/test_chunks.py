"""Chunks of results on disk: whole, of one result only, one process's at a time; with numbers instead of a model."""

import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
IMAGES, SIZE, COUNT = 10, 4, 3
IDENTITY = {"weights": "a" * 64, "chunk": "4"}

HOLD_A_CLAIM = """
import sys, time
from pathlib import Path
from claims import Claims
with Claims(Path(sys.argv[1])).take(int(sys.argv[2])) as is_mine:
    print(is_mine, flush=True)
    time.sleep(100)
"""


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in [path.stem for path in EXAMPLES.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.fixture
def opened(tmp_path):
    """What opens the folder of a result as a process does that starts."""
    from chunks import Chunks, Division

    @contextmanager
    def open_folder(folder=tmp_path / "result", identity=IDENTITY, images=IMAGES):
        with closing(Chunks(folder, identity, Division(images, SIZE), rank=0)) as chunks:
            yield chunks

    return open_folder


@contextmanager
def claimed_elsewhere(chunks, number):
    """Let another process hold the claim on a chunk."""
    command = [sys.executable, "-c", HOLD_A_CLAIM, str(chunks.folder / "claims"), str(number + 1)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=EXAMPLES, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        try:
            yield holder
        finally:
            holder.kill()


def explain(part: slice) -> torch.Tensor:
    return torch.arange(part.start, part.stop, dtype=torch.float32)[:, None] + torch.tensor([0.0, 0.5])


def compute(chunks, patience=60.0, explain=explain, rank=0, count=1):
    from sharing import compute_missing

    missing = sorted(set(range(len(chunks.division))) - chunks.prepare())
    return compute_missing(chunks, missing, explain, rank, count, patience)


def result(chunks) -> np.ndarray:
    chunks.merge()
    return np.load(chunks.result)


WHOLE = explain(slice(0, IMAGES)).numpy()


@pytest.mark.parametrize("images", [1, 3, 4, 5, 8, 9, 10])
@pytest.mark.parametrize(("rank", "count"), [(0, 1), (1, 2), (2, 3), (6, 7)])
def test_any_length_and_any_process_alone(opened, images, rank, count):
    with opened(images=images) as chunks:
        assert compute(chunks, rank=rank, count=count) == -(-images // SIZE)
        assert np.array_equal(result(chunks), WHOLE[:images])


def test_processes_begin_at_different_chunks():
    from sharing import in_turn

    orders = [in_turn([0, 1, 3, 5, 6], rank, 3) for rank in range(3)]
    assert orders == [[0, 5, 1, 6, 3], [1, 6, 3, 0, 5], [3, 0, 5, 1, 6]]


def test_the_sum_is_the_file_s_and_the_file_is_numpy_s(opened, tmp_path):
    import hashlib

    with opened() as chunks:
        compute(chunks)
        checksum = chunks.merge()
        np.save(tmp_path / "by_numpy.npy", WHOLE)
        assert chunks.result.read_bytes() == (tmp_path / "by_numpy.npy").read_bytes()
        assert checksum == hashlib.sha256(chunks.result.read_bytes()).hexdigest()


def damage_in_the_middle(path):
    content = bytearray(path.read_bytes())
    content[content.index(np.float32(4.5).tobytes())] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "one bit": damage_in_the_middle,
    "another's place": lambda path: path.write_bytes(path.with_name("chunk-000000.pt").read_bytes()),
    "something else": lambda path: torch.save([1, 2], path),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_chunk_is_computed_again(opened, damage, caplog):
    with opened() as chunks:
        compute(chunks)
        damage(chunks.path(1))
    with opened() as chunks:
        assert compute(chunks) == 1
        assert "chunk-000001.pt" in caplog.text
        assert "computed again" in caplog.text
        assert np.array_equal(result(chunks), WHOLE)


def test_chunks_of_other_weights_are_not_mixed_in(opened, tmp_path, caplog):
    with opened(tmp_path / "other", {**IDENTITY, "weights": "b" * 64}) as other:
        compute(other, explain=lambda part: -explain(part))
        stale = other.path(2).read_bytes()
    with opened() as chunks:
        chunks.prepare()
        chunks.path(2).parent.mkdir()
        chunks.path(2).write_bytes(stale)
        assert compute(chunks) == COUNT
        assert "other weights" in caplog.text
        assert np.array_equal(result(chunks), WHOLE)


def test_a_chunk_that_is_damaged_while_others_are_computed_stops_the_merge(opened):
    from identity import RunError

    with opened() as chunks:
        compute(chunks)
        damage_in_the_middle(chunks.path(1))
        with pytest.raises(RunError, match=r"chunk-000001\.pt is damaged"):
            chunks.merge()
        assert not list(chunks.folder.rglob("relevance*"))


def test_the_folder_of_another_result_is_refused_and_left_alone(opened):
    from identity import RunError

    with opened() as chunks:
        compute(chunks)
        before = {path: path.read_bytes() for path in chunks.folder.rglob("*") if path.is_file()}
    with opened(identity={**IDENTITY, "weights": "b" * 64}) as other:
        with pytest.raises(RunError, match=r"weights \(a{12}, here b{12}\)\. Name another folder"):
            other.prepare()
        assert before == {path: path.read_bytes() for path in other.folder.rglob("*") if path.is_file()}


def test_leftovers_are_removed_but_not_from_under_a_process_that_lives(opened):
    with opened() as chunks:
        chunks.prepare()
        chunks.path(0).parent.mkdir()
        leftovers = [chunks.path(0).with_name(f"chunk-00000{number}.pt.1a_2.part") for number in (0, 1)]
        leftovers.append(chunks.folder / "relevance.npy.x.part")
        for path in leftovers:
            path.write_bytes(b"half")
        with claimed_elsewhere(chunks, 1):
            assert chunks.prepare() == set()
            assert [path.exists() for path in leftovers] == [False, True, False]
        assert compute(chunks) == COUNT
        assert not list(chunks.folder.rglob("*.part"))


def test_what_a_killed_process_had_claimed_is_taken_over(opened):
    computed = []

    def explain_and_tell(part):
        computed.append((part.start, time.monotonic()))
        return explain(part)

    with opened() as chunks, claimed_elsewhere(chunks, 1) as holder:
        killer = threading.Timer(0.5, holder.send_signal, [signal.SIGKILL])
        start = time.monotonic()
        killer.start()
        assert compute(chunks, explain=explain_and_tell) == COUNT
        killer.join()
        assert [number for number, _ in computed] == [0, 8, 4]
        assert computed[-1][1] - start >= 0.5
        assert np.array_equal(result(chunks), WHOLE)


def test_a_chunk_that_another_process_finishes_between_look_and_claim(opened, monkeypatch):
    with opened() as chunks:
        claim = chunks.claim

        def claim_late(number):
            if number == 1 and not chunks.is_there(1):
                chunks.compute(1, explain)  # as another process would
            return claim(number)

        monkeypatch.setattr(chunks, "claim", claim_late)
        assert compute(chunks) == COUNT - 1
        assert np.array_equal(result(chunks), WHOLE)


def test_a_process_that_does_not_get_on_is_named(opened):
    from identity import RunError

    with opened() as chunks, claimed_elsewhere(chunks, 1):
        with pytest.raises(RunError, match="chunk 1 is claimed by another process"):
            compute(chunks, patience=0.2)
        assert chunks.finished() == {0, 2}


def test_an_error_leaves_what_was_finished_and_nothing_half(opened):
    def fail_at_the_second(part):
        if part.start == SIZE:
            raise ZeroDivisionError
        return explain(part)

    with opened() as chunks:
        with pytest.raises(ZeroDivisionError):
            compute(chunks, explain=fail_at_the_second)
        assert chunks.finished() == {0}
    with opened() as chunks:
        assert compute(chunks) == COUNT - 1
        assert np.array_equal(result(chunks), WHOLE)


def test_the_bar_begins_where_the_run_begins(opened, capsys):
    with opened() as chunks:
        compute(chunks)
        chunks.path(0).unlink()
        capsys.readouterr()
        compute(chunks)
    steps = capsys.readouterr().err.split("\r")
    assert "6/10" in steps[1]
    assert "10/10" in steps[-1]
