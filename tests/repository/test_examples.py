"""The example that users copy: it prints, draws, and both frameworks agree, with weights and an image of one's own."""

import sys
from pathlib import Path

import pytest
import torch
import torchvision

EXAMPLE = Path(__file__).parents[2] / "examples" / "densenet_in_both.py"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_photograph_with_weights_of_ones_own(tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    weights, image, picture = tmp_path / "weights.pt", tmp_path / "photograph.png", tmp_path / "picture.png"
    torch.save(torchvision.models.densenet121(num_classes=4).state_dict(), weights)
    torchvision.io.write_png(torch.randint(0, 256, (3, 240, 260), dtype=torch.uint8), str(image))
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    monkeypatch.setattr("sys.argv", [EXAMPLE.name, str(image), "--weights", str(weights), "--output", str(picture)])
    import densenet_in_both

    sys.modules.pop("densenet_in_both")
    densenet_in_both.main()
    printed = capsys.readouterr().out
    assert "121 BatchNorms: 59 merged left, 62 merged right" in printed
    assert "class " in printed
    assert "difference between the two maps: 0.0e+00" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_it_is_short_enough_to_copy():
    assert len(EXAMPLE.read_text().splitlines()) < 100
