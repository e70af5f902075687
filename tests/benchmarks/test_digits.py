"""The benchmark on digits in clutter, without training: what it prints and what it draws."""

from pathlib import Path

import pytest

from benchmarks.digits import __main__ as digits

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def run(folder: Path, *arguments: str) -> None:
    output = ["--output", str(folder / "picture.png"), "--cache", str(folder)]
    assert digits.main(["--epochs", "0", "--digits", "2", *output, *arguments]) == 0


def test_without_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(digits, "EXPLAINED", 4)
    run(tmp_path, "--seeds", "2")
    printed = capsys.readouterr().out
    lines = {line[:42].strip(): line[42:].split() for line in printed.splitlines() if line}
    assert lines["BatchNorms left"] == ["37", "37", "0", "0"]
    for dtype, limit in (("float32", 1e-5), ("float64", 1e-12)):
        assert all(float(value) < limit for value in lines[f"function error, {dtype}"][-2:])
    assert float(lines["zennit against Captum, worst map, float64"][-1]) < 1e-9
    assert "range over 2 networks" in printed
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    run(tmp_path)  # now from the cache
    again = capsys.readouterr().out
    assert "from the cache" in again
    assert "range" not in again


@pytest.mark.parametrize("arguments", [["--digits", "0"], ["--seeds", "0"], ["--epochs", "-1"], ["--output", "."]])
def test_wrong_options_are_explained(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        digits.main(arguments)
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err
