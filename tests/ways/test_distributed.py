"""``DistributedDataParallel`` in two processes: gradients are those of one process with the whole batch."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from canon_bridge import canonize, canonized_copy
from tests.support.errors import relative_error
from tests.support.pieces import Preactivation, conv, norm
from tests.support.statistics import randomize
from tests.ways.models import EPS

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
PROCESSES = 2


def model_and_images() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = (conv(), norm(), nn.ReLU(), Preactivation(), nn.Tanh(), norm(), nn.SiLU(), conv())
    model = randomize(nn.Sequential(*layers).double(), mild=True)
    return model, torch.randn(2 * PROCESSES, 4, 6, 6, dtype=torch.float64)


def gradients(model: nn.Module, run: Any, x: Tensor) -> dict[str, Tensor]:
    run(x).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def alone() -> dict[str, dict[str, Tensor]]:
    """Return what one process computes on the whole batch."""
    model, x = model_and_images()
    twin = canonized_copy(model, prefer="right")
    found = {"copy": gradients(twin, twin, x)}
    with canonize(model, prefer="right"):
        found["block"] = gradients(model, model, x)
    model, x = model_and_images()
    return {**found, "original": gradients(model, model, x)}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.FileStore(f"{folder}/store", PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60))
    try:
        torch.save(together(rank), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def together(rank: int) -> dict[str, dict[str, Tensor]]:
    """Return what this process finds on its share of the batch."""
    model, x = model_and_images()
    mine = x[2 * rank : 2 * rank + 2]
    twin, found = canonized_copy(model, prefer="right"), {}
    found["copy"] = gradients(twin, DistributedDataParallel(twin), mine)
    with canonize(model, prefer="right"):
        found["block"] = gradients(model, DistributedDataParallel(model), mine)
    model, _ = model_and_images()
    wrapped = DistributedDataParallel(model)
    with pytest.raises(TypeError, match=r"use model\.module instead"):
        canonize(wrapped)
    with torch.no_grad():
        expected = wrapped(mine)
        with canonize(wrapped.module, prefer="right"):
            found["wrapped before"] = {"error": torch.tensor(relative_error(wrapped(mine), expected))}
        assert torch.equal(wrapped(mine), expected)
    found["original"] = gradients(model, wrapped, mine)  # it still works together after the block
    return found


def test_two_processes_find_the_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=PROCESSES)
    expected = alone()
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert float(found.pop("wrapped before")["error"]) < 64 * EPS
        assert found.keys() == expected.keys()
        for what, values in expected.items():
            assert found[what].keys() == values.keys()
            largest = max(float(value.abs().max()) for value in values.values())
            for name, value in values.items():
                assert float((found[what][name] - value).abs().max()) < 1024 * EPS * largest, (what, name)


def test_gradients_of_a_share_of_the_batch_are_not_those_of_the_whole() -> None:
    model, x = model_and_images()
    whole = gradients(model, model, x)
    model.zero_grad()
    part = gradients(model, model, x[:2])
    assert all(relative_error(part[name], whole[name]) > 1e-3 for name in whole)
