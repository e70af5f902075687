"""``import canon_bridge`` loads torch, the package, and next to nothing else."""

import json
import os
import subprocess
import sys

import pytest

# In torch 2.6 checkpoints load sympy, and half of torch with it.
MODULES = """
import json, sys
import torch.utils.checkpoint
before = set(sys.modules)
import canon_bridge
print(json.dumps(sorted(set(sys.modules) - before)))
"""
HEAVY = (
    *("torch._dynamo", "torch._inductor", "torch.fx.experimental", "sympy", "numpy"),
    *("zennit", "captum", "torchvision", "timm", "matplotlib", "typer", "rich"),
)


@pytest.fixture(scope="module")
def loaded():
    """Return what is imported beyond torch, and what torch itself imports, in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", MODULES], capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def test_few_modules_beyond_torch_and_the_package(loaded):
    others = [name for name in loaded if name.partition(".")[0] != "canon_bridge"]
    assert len(others) <= 5, others


@pytest.mark.parametrize("heavy", HEAVY)
def test_nothing_heavy(loaded, heavy):
    assert not [name for name in loaded if name == heavy or name.startswith(f"{heavy}.")]


@pytest.mark.parametrize("adapter", ["zennit", "captum"])
def test_adapters_wait_until_they_are_asked_for(loaded, adapter):
    assert f"canon_bridge.{adapter}" not in loaded
