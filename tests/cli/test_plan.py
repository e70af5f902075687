"""``canon-bridge plan``: its options, its exit status, and a drawing."""

import json

import pytest


def lines(text: str) -> list[str]:
    return text.splitlines()


def test_strict_is_status_1_for_an_operation_without_a_rule(run):
    assert "Operations without a rule" in run("plan", "net.py:with_norm").stdout
    result = run("plan", "net.py:with_norm", "--strict", status=1)
    assert "Operations without a rule" in result.stdout
    assert result.stderr == "canon-bridge: net.py:with_norm: BatchNorms that stay: 0, operations without a rule: 1\n"
    json.loads(run("plan", "net.py:with_norm", "--strict", "--json", status=1).stdout)


def test_strict_is_status_1_for_a_batch_norm_that_stays(run):
    assert "a per-channel linear layer" in run("plan", "net.py:unmerged", "--strict").stdout
    result = run("plan", "net.py:unmerged", "--leftover", "keep", "--strict", status=1)
    assert "left as it is" in result.stdout
    assert "BatchNorms that stay: 1" in result.stderr


def test_strict_is_status_0_where_nothing_stays(run):
    assert run("plan", "net.py:make_model", "--strict").stderr == ""


def test_the_shape_of_example_inputs(run, error):
    message = error("plan", "net.py:branching")
    assert "6 (Branches)" in message
    assert "--input-shape 1,3,224,224" in message
    assert "2 merged left" in run("plan", "net.py:branching", "--input-shape", "1,3,6,6").stdout
    for shape in ("1,3,0,6", "abc", ""):
        assert "give whole numbers" in error("plan", "net.py:branching", "--input-shape", shape)
    assert "no plan for net.py:branching" in error("plan", "net.py:branching", "--input-shape", "1,3")


def test_clipped_is_an_option_of_the_plan(run):
    assert "clipped=pass" in run("plan", "net.py:make_model", "--clipped", "pass").stdout


def test_a_model_of_timm(run):
    pytest.importorskip("timm")
    out = run("plan", "timm:resnetv2_50").stdout
    assert "49 BatchNorms" in out
    assert max(map(len, lines(out))) <= 80
    assert ".0.downsample.conv, .0.conv1" in out


def test_a_drawing(run, tmp_path):
    file = tmp_path / "plan.png"
    run("plan", "torchvision:resnet18", "--draw", str(file), "--only", "layer1")
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "only", "says"), [("plan.png", "fc", "no BatchNorm in 'fc'"), ("plan.xyz", "layer1", "xyz")]
)
def test_a_drawing_that_cannot_be(run, tmp_path, name, only, says):
    result = run("plan", "torchvision:resnet18", "--draw", str(tmp_path / name), "--only", only, status=2)
    assert says in result.stderr
    assert len(lines(result.stderr)) == 1
