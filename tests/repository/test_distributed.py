"""The example on many images: in a loop and in Ray, killed and started again; nothing lost, nothing twice."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "distributed_attribution.py"
IMAGES, BATCH = 96, 8
JOB = """
import sys, time

import numpy as np
import torch
from PIL import Image
from torch import nn

import distributed_attribution as example


def make_model():
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    model = nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 5)).train()
    model(torch.randn(16, 3, 16, 16))  # for statistics other than 0 and 1
    return model.eval()


def transform(images):
    return images / 255


def load(row):
    time.sleep(0.02)  # so that there is time to kill it
    return {"id": row["id"], "image": np.array(Image.open(row["path"]))}


if __name__ == "__main__":
    sys.exit(example.main(job=example.Job(make_model, transform, load)))
"""


def environment() -> dict[str, str]:
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    paths = os.pathsep.join([str(EXAMPLE.parent), str(EXAMPLE.parents[1]), os.environ.get("PYTHONPATH", "")])
    return os.environ | quiet | {"PYTHONPATH": paths}


def start(output: Path, images: Path, *arguments: str) -> subprocess.Popen[str]:
    job = images.parent / "job.py"  # beside the images
    command = [sys.executable, str(job), str(images), "--output", str(output), "--batch", str(BATCH), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment(), start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str]) -> str:
    try:
        printed, _ = process.communicate(timeout=400)
    finally:
        stop(process)
    assert process.returncode == 0, printed
    return printed


def stop(process: subprocess.Popen[str]) -> None:
    """Kill a job and whatever it has started that is still in its session."""
    for pid in [process.pid, *descendants(process.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def descendants(parent: int) -> Iterator[int]:
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield child
            yield from descendants(child)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes in which Ray runs an Explainer."""
    titles = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(process.pid)}
    return [pid for pid, title in titles.items() if title.startswith("ray::") and "Explainer" in title]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def parts(output: Path) -> int:
    return len([*output.glob("*.parquet")])


def maps(output: Path) -> dict[str, tuple[int, float, np.ndarray]]:
    """Return class, score and map by id; fails where an id is there twice."""
    found: dict[str, tuple[int, float, np.ndarray]] = {}
    for path in output.glob("*.parquet"):
        table = parquet.read_table(path)
        relevance = table["relevance"].combine_chunks().to_numpy_ndarray()
        columns = (table[name].to_pylist() for name in ("id", "class", "score"))
        for name, label, score, picture in zip(*columns, relevance, strict=True):
            assert name not in found
            found[name] = label, score, picture
    return found


def check_equal(found: dict[str, tuple[int, float, np.ndarray]], expected: dict[str, tuple]) -> None:
    assert found.keys() == expected.keys()
    for name, (label, score, relevance) in expected.items():
        assert found[name][0] == label
        np.testing.assert_allclose(found[name][1], score, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[name][2], relevance, rtol=0, atol=1e-4 * np.abs(relevance).max())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return a folder of images, beside a job on a small network."""
    folder = tmp_path_factory.mktemp("job") / "images"
    folder.mkdir()
    (folder.parent / "job.py").write_text(JOB)
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory, images):
    """Return what one process computes in one go."""
    output = tmp_path_factory.mktemp("distributed") / "loop"
    assert f"Maps of {IMAGES} images" in finish(start(output, images))
    found = maps(output)
    assert len(found) == IMAGES
    assert all(np.abs(relevance).max() > 0 for _, _, relevance in found.values())
    return found


@pytest.mark.whole
def test_a_loop_that_is_killed_goes_on(tmp_path, images, expected):
    process = start(tmp_path / "out", images)
    wait_for(lambda: parts(tmp_path / "out") >= 3, process)
    stop(process)
    before = parts(tmp_path / "out") * BATCH
    assert 0 < before < IMAGES
    assert f"{before} explained before" in finish(start(tmp_path / "out", images))
    check_equal(maps(tmp_path / "out"), expected)
    assert f"{IMAGES} explained before" in finish(start(tmp_path / "out", images))


def refusal(output: Path, images: Path, *arguments: str) -> str:
    process = start(output, images, *arguments)
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 1, printed
    assert "Traceback" not in printed
    return printed


def test_two_jobs_at_once_are_refused(tmp_path, images):
    with (tmp_path / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process writes" in refusal(tmp_path, images)
    assert parts(tmp_path) == 0


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    import distributed_attribution

    return distributed_attribution


def test_a_folder_that_is_missing_is_named(example, tmp_path, capsys):
    with pytest.raises(SystemExit):
        example.main([str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")])
    assert "nowhere is no folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_become_what_the_pretrained_network_takes(example, tmp_path):
    Image.fromarray(np.full((30, 50), 128, dtype=np.uint8)).save(tmp_path / "grey.png")
    row = example.load({"id": "grey.png", "path": str(tmp_path / "grey.png")})
    assert row["image"].shape == (256, 256, 3)
    x = example.transform(torch.from_numpy(row["image"]).movedim(-1, 0)[None])
    assert (x.shape, x.dtype) == ((1, 3, 224, 224), torch.float32)
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(x[0, :, 100, 100], expected, atol=1e-6)


@pytest.mark.whole
def test_a_job_with_other_options_is_refused(tmp_path, images):
    process = start(tmp_path / "out", images)
    wait_for(lambda: parts(tmp_path / "out") >= 1, process)
    stop(process)
    before = parts(tmp_path / "out")
    assert "another prefer (['left'], here ['right'])" in refusal(tmp_path / "out", images, "--prefer", "right")
    assert parts(tmp_path / "out") == before
    assert json.loads((tmp_path / "out" / "identity.json").read_text())["prefer"] == "left"


@pytest.mark.slow
class TestRay:
    @pytest.fixture(autouse=True)
    def _ray(self):
        pytest.importorskip("ray", reason="ray is not installed")

    def test_two_workers_one_of_which_is_killed_compute_what_a_loop_does(self, tmp_path, images, expected):
        process = start(tmp_path / "out", images, "--workers", "2")
        wait_for(lambda: parts(tmp_path / "out") >= 2 and len(workers_of(process)) == 2, process)
        os.kill(workers_of(process)[0], signal.SIGKILL)
        assert f"Maps of {IMAGES} images" in finish(process)
        check_equal(maps(tmp_path / "out"), expected)

    def test_a_job_that_is_killed_goes_on(self, tmp_path, images, expected):
        process = start(tmp_path / "out", images, "--workers", "2")
        wait_for(lambda: parts(tmp_path / "out") >= 2, process)
        stop(process)
        assert 0 < parts(tmp_path / "out") * BATCH < IMAGES
        printed = finish(start(tmp_path / "out", images, "--workers", "2"))
        assert " 0 explained before" not in printed
        check_equal(maps(tmp_path / "out"), expected)
