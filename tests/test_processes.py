"""What the processes of a run agree on before they start, and what they say when they cannot."""

import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in [path.stem for path in EXAMPLES.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.fixture
def two(monkeypatch):
    """Return the first of two processes, and what sets the values that both of them gather."""
    from processes import Processes

    def second_has(value):
        monkeypatch.setattr(Processes, "gather", lambda self, own: [own, value])

    return Processes(0, 2, torch.device("cpu")), second_has


def test_processes_that_would_compute_something_else_do_not_start(two):
    from identity import RunError

    first, second_has = two
    second_has({"weights": "a", "torch": "1.0"})
    with pytest.raises(RunError, match=r"process 1 would .* than process 0: torch \(1\.0, here 2\.14\)\. All need"):
        first.agree({"weights": "a", "torch": "2.14"})


def test_processes_that_would_compute_the_same_start(two):
    first, second_has = two
    second_has({"weights": "a"})
    first.agree({"weights": "a"})


def test_a_refusal_of_the_first_process_is_everybody_s(monkeypatch):
    from identity import RunError
    from processes import Processes

    def refuse():
        raise RunError("the folder is another result's")

    heard = []
    monkeypatch.setattr(Processes, "gather", lambda self, own: heard.append(own) or [heard[0], None])
    for rank in (0, 1):
        with pytest.raises(RunError, match="another result's"):
            Processes(rank, 2, torch.device("cpu")).from_first(refuse)


def test_more_processes_than_gpus(monkeypatch):
    from identity import RunError
    from processes import join

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(RunError, match=r"found 1 GPU\(s\) for 2 processes .* --device cpu"), join("auto", 1.0):
        pass


def test_a_gpu_that_is_not_there(monkeypatch):
    from identity import RunError
    from processes import join

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match=r"found 0 GPU\(s\) for 1 processes"), join("cuda", 1.0):
        pass


def test_every_entry_counts_for_the_fingerprint():
    from identity import digest, fingerprint

    tensors = {"weight": torch.ones(2, 3), "count": torch.tensor(1)}
    variants = [
        tensors,
        {**tensors, "weight": torch.ones(3, 2)},
        {**tensors, "weight": torch.ones(2, 3, dtype=torch.float64)},
        {**tensors, "count": torch.tensor(2)},
        {"weights": tensors["weight"], "count": tensors["count"]},
        {**tensors, "weight": torch.ones(2, 3).nextafter(torch.tensor(2.0))},
    ]
    assert len({fingerprint({"weights": digest(variant)}) for variant in variants}) == len(variants)
    assert fingerprint({"chunk": "8", "data": "a"}) == fingerprint({"data": "a", "chunk": "8"})


def test_what_makes_results_repeatable_is_undone():
    from identity import reproducible

    threads = torch.get_num_threads()
    with reproducible():
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads
