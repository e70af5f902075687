"""``canon-bridge explain``: the maps of the library, the same in both frameworks, and pictures of them."""

import importlib.util
import json
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from canon_bridge.captum import LRP, presets
from canon_bridge.cli.app import PresetName
from canon_bridge.heatmaps import colour_limit, heatmap, overlay


def model_of(folder):
    spec = importlib.util.spec_from_file_location("net", folder / "net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_model().eval()


def image_of(path, size=6):
    pixels = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(pixels).copy()).permute(2, 0, 1)[None].float() / 255


SMALL = ("--size", 6)


def test_all_presets_can_be_asked_for():
    assert set(get_args(PresetName)) == set(presets.__all__) - {"Preset", "layer_map_base"}


@pytest.mark.parametrize("framework", ["captum", "zennit"])
@pytest.mark.parametrize("preset", get_args(PresetName))
def test_the_raw_map_is_that_of_the_library(run, folder, tmp_path, preset, framework):
    arguments = ("--preset", preset, "--framework", framework, "--prefer", "right", "--clipped", "pass")
    run("explain", "net.py:make_model", "a/x.png", "y.jpg", *SMALL, *arguments, "--target", 2, "--out", tmp_path)
    settings = {"low": 0.0, "high": 1.0} if preset == "epsilon_gamma_box" else {}
    lrp = LRP(model_of(folder), getattr(presets, preset)(**settings), prefer="right", clipped="pass")
    for path, name in (("a/x.png", "x"), ("y.jpg", "y")):
        expected = lrp.attribute(image_of(folder / path), target=2)[0]
        found = torch.from_numpy(np.load(tmp_path / f"{name}.npy"))
        assert found.shape == (3, 6, 6)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("option", ["--prefer", "--clipped", "--preset", "--target"])
def test_every_option_changes_the_map(run, folder, tmp_path, option):
    other = {"--prefer": "right", "--clipped": "pass", "--preset": "epsilon", "--target": 0}[option]
    base = () if option != "--clipped" else ("--prefer", "right")
    run("explain", "net.py:make_model", "y.jpg", *SMALL, *base, "--out", tmp_path / "one")
    run("explain", "net.py:make_model", "y.jpg", *SMALL, *base, option, other, "--out", tmp_path / "two")
    one, two = (np.load(tmp_path / name / "y.npy") for name in ("one", "two"))
    assert np.abs(one - two).max() > 1e-3 * np.abs(one).max()


def test_images_of_one_name_do_not_overwrite_each_other(run, folder, tmp_path):
    out = run(
        "explain", "net.py:make_model", "a/x.png", "b/x.png", "y.jpg", *SMALL, "--out", tmp_path / "new/maps"
    ).stdout
    names = {path.name for path in (tmp_path / "new/maps").iterdir()}
    kinds = (".npy", "_heatmap.png", "_overlay.png")
    assert names == {f"{name}{kind}" for name in ("a_x", "b_x", "y") for kind in kinds}
    lrp = LRP(model_of(folder))
    for path, name in (("a/x.png", "a_x"), ("b/x.png", "b_x")):
        x = image_of(folder / path)
        scores = lrp.model(x)
        expected = lrp.attribute(x, target=int(scores.argmax()))[0].numpy()
        np.testing.assert_allclose(np.load(tmp_path / "new/maps" / f"{name}.npy"), expected, rtol=1e-4, atol=1e-7)
        assert f"{path}" in out
        assert f"{scores.max().item():.4g}" in out


def test_pictures_have_a_pixel_for_each_of_the_input(run, folder, tmp_path):
    (folder / "sized.py").write_text(
        "import torch\nfrom net import make_model\n"
        "def transform(image):\n    return torch.ones(3, 7, 9) * image.getpixel((0, 0))[0] / 255\n"
    )
    run("explain", "sized.py:make_model", "y.jpg", "--out", tmp_path)
    assert np.load(tmp_path / "y.npy").shape == (3, 7, 9)
    for kind in ("heatmap", "overlay"):
        with Image.open(tmp_path / f"y_{kind}.png") as picture:
            assert (picture.size, picture.mode) == ((9, 7), "RGB")


def test_the_default_size_is_224(run, tmp_path):
    run("explain", "net.py:make_model", "y.jpg", "--out", tmp_path)
    assert np.load(tmp_path / "y.npy").shape == (3, 224, 224)


def test_a_progress_bar_in_a_terminal_alone(run, tmp_path, monkeypatch):
    command = ("explain", "net.py:make_model", "y.jpg", *SMALL, "--out", tmp_path)
    assert run(*command).stderr == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "1/1" in run(*command).stderr


def test_operations_without_a_rule_are_a_note_of_one_line(run, tmp_path):
    result = run("explain", "net.py:with_norm", "a/x.png", "y.jpg", *SMALL, "--out", tmp_path)
    assert result.stderr.startswith("note: ")
    assert result.stderr.count("\n") == 1
    assert "norm in 6" in result.stderr


def test_colours_are_symmetric_and_white_at_zero():
    values = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0, 9.0]])
    colours = np.asarray(heatmap(values, 2.0))[0].astype(int)
    assert colours[2].tolist() == [255, 255, 255]
    assert colours[0, 2] > colours[0, 0] == colours[0, 1]
    assert colours[4, 0] > colours[4, 1] == colours[4, 2]
    assert (colours[1] == [0, 0, 255]).all() or colours[1, 2] > colours[1, 0]
    assert (colours[5] == colours[4]).all()


def test_the_limit_of_colours():
    assert colour_limit(torch.zeros(3, 3)) == 1.0
    assert colour_limit(torch.tensor([[-4.0, 4.0]])) == 4.0
    lonely = torch.zeros(100, 100)
    lonely[3, 4] = -5.0
    assert colour_limit(lonely) == 5.0


def test_an_overlay_shows_the_picture_where_there_is_no_relevance():
    picture = Image.new("RGB", (2, 1), (0, 0, 0))
    found = np.asarray(overlay(picture, torch.tensor([[0.0, 1.0]]), 1.0))
    assert len(set(found[0, 0].tolist())) == 1
    assert found[0, 1].tolist() == np.asarray(heatmap(torch.tensor([[1.0]]), 1.0))[0, 0].tolist()


@pytest.mark.parametrize("framework", ["captum", "zennit"])
def test_an_audit_accounts_for_the_score(run, tmp_path, framework):
    command = ("audit", "net.py:make_model", "y.jpg", *SMALL, "--framework", framework, "--target", 3)
    record = json.loads(run(*command, "--json").stdout)
    assert sum(record["totals"].values()) == pytest.approx(record["score"], rel=1e-4)
    assert record["defect"] < 1e-5
    assert {"path", "rule", "arrived", "taken"} <= set(record["entries"][0])
    other = json.loads(run(*command, "--json", "--preset", "epsilon", "--prefer", "right").stdout)
    assert other["totals"] != record["totals"]
    result = run(*command, "--chart", tmp_path / "charts/y.png")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "class 3" in result.stdout
    with Image.open(tmp_path / "charts/y.png") as chart:
        assert chart.size[0] > 500


@pytest.mark.parametrize("framework", ["captum", "zennit"])
@pytest.mark.parametrize("command", ["explain", "audit"])
def test_a_model_that_is_traced_with_values_alone(run, tmp_path, framework, command):
    out = ("--out", tmp_path) if command == "explain" else ()
    assert "y.jpg" in run(command, "net.py:branching", "y.jpg", *SMALL, "--framework", framework, *out).stdout


def test_the_same_image_twice(run, tmp_path):
    run("explain", "net.py:make_model", "y.jpg", "y.jpg", *SMALL, "--out", tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_an_audit_says_that_weights_are_random(run):
    result = run("audit", "torchvision:resnet18", "y.jpg")
    assert result.stderr.startswith("note: torchvision:resnet18 has random weights")
    assert max(map(len, result.stdout.splitlines())) <= 80
