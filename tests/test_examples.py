"""The example, on small settings: what it prints, what it draws, and what it says about wrong options."""

import sys
from pathlib import Path

import pytest
import torch
import torchvision

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("sys.argv", ["densenet_in_both.py"])
    import densenet_in_both

    yield densenet_in_both
    for name in [path.stem for path in EXAMPLES.glob("*.py")]:
        sys.modules.pop(name, None)


def test_digits_without_training(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(example, "EXPLAINED", 4)
    picture = tmp_path / "picture.png"
    arguments = ["--epochs", "0", "--digits", "2", "--cache", str(tmp_path), "--output", str(picture)]
    assert example.main(arguments) == 0
    first = capsys.readouterr().out
    lines = {line[:42].strip(): line[42:].split() for line in first.splitlines() if line}
    assert lines["BatchNorms left"][-2:] == ["0", "0"]
    assert int(lines["BatchNorms left"][0]) == 37
    for dtype, limit in (("float32", 1e-5), ("float64", 1e-12)):
        assert all(float(value) < limit for value in lines[f"function error, {dtype}"][-2:])
    assert float(lines["zennit against Captum, worst map, float64"][-1]) < 1e-9
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert example.main(arguments) == 0  # now from the cache
    assert "from the cache" in capsys.readouterr().out


def test_a_photograph_with_weights_of_ones_own(example, tmp_path, capsys):
    torch.manual_seed(0)
    weights, image = tmp_path / "weights.pt", tmp_path / "photograph.png"
    torch.save(torchvision.models.densenet121().state_dict(), weights)
    torchvision.io.write_png(torch.randint(0, 256, (3, 240, 260), dtype=torch.uint8), str(image))
    picture = tmp_path / "picture.png"
    assert example.main(["--weights", str(weights), "--image", str(image), "--output", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "121" in printed
    assert "box" not in printed
    assert picture.is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image", "photograph.jpg"], "--weights"),
        (["--weights", "imagenet"], "--image"),
        (["--weights", "imagenet", "--image", "no-such-file.jpg"], "no-such-file.jpg"),
        (
            ["--weights", "no-such-weights.pt", "--image", str(EXAMPLES.parent / "docs" / "densenet_in_both.png")],
            "no-such-weights.pt",
        ),
    ],
)
def test_wrong_options_are_explained(example, arguments, words, capsys, tmp_path):
    status, message = 0, ""
    try:
        status = example.main([*arguments, "--output", str(tmp_path / "picture.png")])
    except SystemExit as stop:
        status, message = stop.code, str(stop.code)
    assert status != 0
    assert words in message + capsys.readouterr().err
