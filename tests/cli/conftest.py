"""A small model in a file, images of two sizes, and the command line to run on them."""

import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from canon_bridge.cli.app import app

MODEL = """
    import torch
    from torch import nn

    class Norm(nn.Module):
        def forward(self, x):
            return torch.linalg.norm(x, dim=(2, 3))

    class Branches(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    def _start():
        torch.manual_seed(1)
        first = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        return *first, nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()

    def _random(model):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    nn.init.normal_(tensor)
                nn.init.uniform_(module.running_var, 0.5, 2)
        return model

    def make_model():
        return _random(nn.Sequential(*_start(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 5)))

    def with_norm():
        return nn.Sequential(*_start(), Norm(), nn.Linear(6, 5))

    def branching():
        return nn.Sequential(*_start(), Branches(), nn.Flatten(), nn.Linear(96, 5))

    def unmerged():
        return nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Softsign())

    def of_maps():
        return nn.Sequential(*_start())

    def training():
        raise ValueError("no data\\nhere")

    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.layers = nn.ModuleList(nn.Conv2d(3, 2, 1) for _ in range(7))

        def forward(self, x):
            x = self.norm(x)
            return torch.cat([layer(x) for layer in self.layers], 1)

    def many():
        return Many()

    def number():
        return 3
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Return a folder with ``net.py`` and images, two of which have the same name."""
    path = tmp_path_factory.mktemp("cli")
    (path / "net.py").write_text(textwrap.dedent(MODEL))
    random = np.random.default_rng(0)
    for name, size in (("a/x.png", (20, 16)), ("b/x.png", (12, 12)), ("y.jpg", (16, 16))):
        (path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path / name)
    return path


@pytest.fixture
def run(monkeypatch, folder):
    """Return what runs the command line in the folder, in a terminal of 80 columns."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object, status: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="canon-bridge")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result

    return run


@pytest.fixture
def error(run):
    """Return what runs a command that has to fail, and returns the line that says why."""

    def error(*arguments: object, status: int = 2) -> str:
        result = run(*arguments, status=status)
        assert result.stdout == ""
        assert result.stderr.startswith("canon-bridge: ")
        assert result.stderr.count("\n") == 1
        assert result.stderr.endswith("\n")
        return result.stderr

    return error
