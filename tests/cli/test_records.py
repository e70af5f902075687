"""Plans and audits as JSON: nothing is left out, and every number is one that JSON has."""

import json
import math

import pytest
import torchvision

import canon_bridge
from canon_bridge import Audit
from canon_bridge.cli.records import audit_json
from tests.auditing.test_report import entry


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


def test_the_total_of_a_plan_is_the_number_of_its_entries_of_each_kind(run):
    record = json.loads(run("plan", "net.py:unmerged", "--json").stdout)
    assert record["total"] == {
        "batch_norms": 1,
        "merged_left": 0,
        "merged_right": 0,
        "merged_into_copies": 0,
        "linear_layers": 1,
        "left_as_they_are": 0,
        "operations_made_modules": 0,
        "uncovered": 0,
    }
    (entry,) = record["batch_norms"]
    assert (entry["order"], entry["path"], entry["what"]) == (1, "1", "made a linear layer")
    (entry,) = json.loads(run("plan", "net.py:unmerged", "--json", "--leftover", "keep").stdout)["batch_norms"]
    assert entry["what"] == "left as it is"


def test_numbers_that_json_has_not_are_null():
    report = Audit("Net", "rules", 0.0, 0.0, math.nan, (entry("conv", gates=3.0, clipped=-math.inf),), 2.2e-16)
    record = json.loads(audit_json(report))
    assert record["defect"] is record["relevance"] is record["totals"]["at the input"] is None
    assert record["entries"][0]["taken"] == {
        "biases": 0,
        "stabilisers": 0,
        "clipped": None,
        "gates": 3,
        "elsewhere": 0,
    }
    assert (record["model"], record["lost"], record["defect_of_flow"], record["totals"]["gates"]) == ("Net", 3, 3, 3)
    assert record["entries"][0]["path"] == "conv"
