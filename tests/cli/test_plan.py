"""``canon-bridge plan``: tables that fit, JSON that is complete, and the exit status."""

import json

import pytest
import torchvision

import canon_bridge


def lines(text: str) -> list[str]:
    return text.splitlines()


@pytest.mark.parametrize("prefer", ["left", "right", "untangled"])
def test_the_plan_of_a_densenet_fits_80_columns_and_names_every_batch_norm(run, prefer):
    result = run("plan", "torchvision:densenet121", "--prefer", prefer)
    assert max(map(len, lines(result.stdout))) <= 80
    assert result.stderr == ""
    numbered = [line.split() for line in lines(result.stdout) if line[:5].strip().isdigit()]
    plan = canon_bridge.plan(torchvision.models.densenet121().eval(), prefer=prefer)
    assert [row[0] for row in numbered] == [str(number) for number in range(1, 122)]
    for row, entry in zip(numbered, plan.entries, strict=True):
        assert entry.norm.endswith(row[1])
    assert plan.total().removeprefix("total: ") in " ".join(result.stdout.split())


def test_a_narrow_terminal(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    assert max(map(len, lines(run("plan", "torchvision:resnet18").stdout))) <= 50


def test_one_line_that_lies_deeper_is_no_section_of_its_own(run):
    out = run("plan", "torchvision:resnet18").stdout
    assert ".0.downsample.1" in out
    assert [line.strip() for line in lines(out)].count("layer2") == 1


def test_many_targets_are_one_short_name(run):
    out = run("plan", "net.py:many", "--prefer", "right").stdout
    assert "layers.{0..6}" in out


def test_the_letter_of_each_line_is_in_the_table_of_ways(run):
    out = run("plan", "net.py:make_model").stdout
    assert "A         2   merged left" in out
    assert "1   1           A     0" in out


@pytest.mark.parametrize("name", ["densenet121", "googlenet", "fcn_resnet50"])
def test_json_is_complete(run, name):
    record = json.loads(run("plan", f"torchvision:{name}", "--json", "--prefer", "right").stdout)
    keywords = {"googlenet": {"init_weights": False}, "fcn_resnet50": {"weights_backbone": None}}.get(name, {})
    model = torchvision.models.get_model(name, weights=None, **keywords)
    plan = canon_bridge.plan(model.eval(), prefer="right")
    assert record["options"] == {"prefer": "right", "clipped": "absorb", "leftover": "linear"}
    assert [entry["path"] for entry in record["batch_norms"]] == [entry.norm for entry in plan.entries]
    merged = [entry for entry in record["batch_norms"] if entry["what"] == "merged"]
    assert [entry["into"] for entry in merged] == [list(merge.chain.targets) for merge in plan.merges]
    assert [entry["through"] for entry in merged] == [list(map(str, merge.chain.through)) for merge in plan.merges]
    others = [entry["reason"] for entry in record["batch_norms"] if entry["what"] != "merged"]
    assert others == [str(entry.reason) for entry in plan.leftovers + plan.refusals]
    assert record["total"]["batch_norms"] == len(plan.entries)
    assert record["total"]["merged_left"] + record["total"]["merged_right"] == len(merged)
    assert record["made_modules"] == [
        {"path": rewrite.path, "modules": [name for name, _ in rewrite.children]}
        for rewrite in plan.rewrites
        if rewrite.children
    ]
    assert record["out_of_place"] == list(plan.out_of_place)
    assert record["stand_ins"] == dict(plan.stand_ins)


def test_json_names_operations_without_a_rule(run):
    record = json.loads(run("plan", "net.py:with_norm", "--json").stdout)
    assert record["total"]["uncovered"] == len(record["uncovered"]) == 1
    assert record["uncovered"][0]["path"] == "6"
    assert record["uncovered"][0]["place"].endswith("net.py:7")


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
