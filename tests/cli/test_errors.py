"""What goes wrong is said in one line, which says what to do."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from canon_bridge.cli import main


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plan",), "Missing argument 'MODEL'; see canon-bridge plan --help"),
        (("plam", "x"), "Did you mean 'plan'?"),
        (("plan", "torchvision:resnet18", "--wide"), "No such option"),
        (("plan", "torchvision:resnet18", "--prefer", "up"), "'up' is not one of 'left', 'right'"),
        (("plan", "torchvision:densnet121"), "did you mean densenet"),
        (("plan", "torchvision:qqqqq"), "list_models()"),
        (("plan", "resnet18"), "give torchvision:NAME, timm:NAME or path/file.py:FUNCTION"),
        (("plan", "torchvision:"), "names no model"),
        (("plan", "net.py"), "names no model"),
        (("plan", "nit.py:make_model"), "nit.py: there is no such file"),
        (("plan", "net.py:make"), "net.py has no function make; it has make_model"),
        (("plan", "net.py:training"), "training() failed at net.py:42: ValueError: no data here"),
        (("plan", "net.py:number"), "returned int; it has to return an nn.Module"),
        (("plan", "broken.py:make_model"), "the file failed at broken.py:2: SyntaxError"),
        (("plan", "net.py:make_model", "--weights", "default"), "brings its own model"),
        (("plan", "torchvision:resnet18", "--weights", "IMAGENET1K_V9"), "give one of IMAGENET1K_V1, DEFAULT"),
        (("plan", "torchvision:resnet18", "--weights", "gone.pth"), "gone.pth: there is no such file"),
        (("plan", "torchvision:resnet18", "--weights", "other.pth"), "missing (conv1.weight, ...)"),
        (("plan", "net.py:make_model", "--weights", "shape.pth"), "1 of another shape (0.weight)"),
        (("plan", "torchvision:resnet18", "--weights", "text.pth"), "text.pth"),
        (("plan", "torchvision:resnet18", "--weights", "list.pth"), "holds a list without tensors"),
        (("plan", "torchvision:resnet18", "--weights", "model.pth"), "holds more than weights"),
        (("plan", "quantized.py:make_model"), "no plan for quantized.py:make_model"),
        (("explain", "torchvision:resnet18", "y.jpg"), "random weights"),
        (("explain", "net.py:make_model"), "Missing argument 'IMAGE"),
        (("explain", "net.py:make_model", "gone.png"), "gone.png: there is no such image"),
        (("explain", "net.py:make_model", "a"), "a is a folder"),
        (("explain", "net.py:make_model", "net.py"), "net.py cannot be read as an image"),
        (("explain", "net.py:make_model", "y.jpg", "--size", 6, "--target", 5), "a number from 0 to 4"),
        (("explain", "net.py:make_model", "y.jpg", "--size", 6, "--target", -1), "a number from 0 to 4"),
        (("explain", "net.py:make_model", "y.jpg", "--size", 0), "--size"),
        (("explain", "net.py:make_model", "y.jpg", "--out", "net.py"), "--out net.py is a file"),
        (("plan", "net.py:make_model", "--only", "0"), "give --draw FILE, too"),
        (("audit", "net.py:make_model", "y.jpg", "--size", 6, "--chart", "c.xyz"), "xyz"),
        (("audit", "net.py:make_model", "y.jpg", "--size", 6, "--chart", "net.py/c.png"), "c.png cannot be written"),
        (("explain", "net.py:make_model", "y.jpg", "--preset", "plus"), "'epsilon_plus'"),
        (("explain", "net.py:of_maps", "y.jpg", "--size", 6), "returns a tensor (1, 6, 4, 4) for one image"),
        (("audit", "torchvision:resnet18", "y.jpg", "--size", 64), "--size is for models from a file"),
        (("audit", "net.py:make_model", "gone.png"), "gone.png: there is no such image"),
        (("audit", "net.py:make_model", "y.jpg", "--size", 1), "no audit of y.jpg"),
        (("explain", "bad_transform.py:make_model", "y.jpg"), "the transform returned a tensor (1, 3, 4, 4)"),
        (("explain", "no_transform.py:make_model", "y.jpg"), "the transform failed: ZeroDivisionError"),
    ],
)
def test_one_line(error, folder, arguments, says):
    (folder / "broken.py").write_text("import torch\ndef make_model(:\n")
    torch.save({"a": torch.zeros(1)}, folder / "other.pth")
    torch.save([1, 2], folder / "list.pth")
    torch.save(torch.nn.Conv2d(1, 1, 1), folder / "model.pth")
    (folder / "text.pth").write_text("no weights")
    make = "from torch import nn\ndef make_model():\n    return nn.Linear(1, 1)\n"
    (folder / "bad_transform.py").write_text(f"{make}import torch\ntransform = lambda image: torch.zeros(1, 3, 4, 4)\n")
    (folder / "no_transform.py").write_text(f"{make}transform = lambda image: 1 / 0\n")
    is_quantized = "import torch\ndef make_model():\n    return torch.ao.nn.quantized.QFunctional()\n"
    (folder / "quantized.py").write_text(is_quantized)
    if "shape.pth" in arguments:
        from canon_bridge.cli.loading import load

        state = load(f"{folder}/net.py:make_model").model.state_dict()
        torch.save(state | {"0.weight": torch.zeros(4, 3, 5, 5)}, folder / "shape.pth")
    assert says in error(*arguments)


def test_nothing_is_written_if_one_of_many_images_is_missing(error, tmp_path):
    error("explain", "net.py:make_model", "y.jpg", "gone.png", "--size", 6, "--out", tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("framework", ["captum", "zennit"])
def test_a_framework_that_is_not_installed(error, monkeypatch, framework):
    monkeypatch.setattr("canon_bridge.cli.app.find_spec", lambda name: None)
    says = error("explain", "net.py:make_model", "y.jpg", "--framework", framework)
    assert f"pip install 'canon-bridge[{framework}]'" in says


def process(*arguments, code=None):
    start = ["-c", code] if code else ["-m", "canon_bridge"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "COLUMNS": "80"}
    return subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, env=environment)


def test_a_process_of_its_own(folder):
    done = process("plan", f"{folder}/net.py:make_model", "--strict")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 BatchNorms: 2 merged left" in done.stdout
    done = process("plan", f"{folder}/net.py:with_norm", "--strict")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    done = process()
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("plan", "explain", "audit"))


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra_one_line_says_how_to_install_it(package):
    code = f"import sys; sys.modules[{package!r}] = None; from canon_bridge.cli import main; main()"
    done = process(code=code)
    assert done.returncode == 1
    assert done.stderr == f"canon-bridge: the command line needs {package}: pip install 'canon-bridge[cli]'\n"


def test_the_command_that_is_installed():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert EntryPoint("canon-bridge", project["scripts"]["canon-bridge"], "console_scripts").load() is main
