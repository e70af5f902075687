"""Plans and audits as tables: they fit the terminal and name everything."""

import pytest
import torchvision
from rich.console import Console
from torch import nn

import canon_bridge
from canon_bridge import Audit
from canon_bridge.cli.tables import _letter, audit_tables, plan_tables
from tests.auditing.test_report import entry


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
    for row, batch_norm in zip(numbered, plan.entries, strict=True):
        assert batch_norm.norm.endswith(row[1])
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


def printed(renderables, width=80) -> list[list[str]]:
    """Return the words of each line."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(*renderables, sep="\n")
    return [line.split() for line in lines(capture.get())]


def test_where_nothing_is_lost_the_modules_that_took_most_are_shown_in_per_cent_of_the_score():
    took = entry("conv", 40.0, biases=1.0, stabilisers=-0.5)
    shown = printed(audit_tables(Audit("Net", "rules", -4.0, 8.0, -4.5, (entry("head"), took), 2.2e-16)))
    assert ["at", "the", "input", "-4.5", "56.2"] in shown
    assert ["stabilisers", "-0.5", "6.2"] in shown
    assert ["elsewhere", "0", "0.0"] in shown
    assert ["largest", "flow:", "5", "|f|", "at", "conv", "(Conv2d)"] in shown
    assert ["Most", "was", "absorbed", "here:"] in shown
    assert shown[-1] == ["conv", "ZPlus", "-25.00", "biases", "-12.50,", "stabilisers", "6.25"]
    assert not any(words[:1] == ["head"] for words in shown)  # it took nothing


def test_where_relevance_is_lost_those_modules_alone_are_shown():
    entries = (entry("a", gates=1.0), entry("b", biases=5.0), entry("c", elsewhere=2.0), entry("d", elsewhere=3.0))
    shown = printed(audit_tables(Audit("Net", "rules", 4.0, 4.0, 1.0, entries, 2.2e-16), limit=2))
    assert ["Relevance", "is", "lost", "here:"] in shown
    assert [words[0] for words in shown[-2:]] == ["d", "c"]
    assert ["defect:", "1.5e+00", "of", "|f|,", "1.5e+00", "of", "the", "largest", "flow"] in shown


def test_ways_beyond_the_alphabet_have_two_letters():
    assert [_letter(index) for index in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]


def test_a_plan_without_batch_norms_is_its_totals():
    shown = printed(plan_tables(canon_bridge.plan(nn.Sequential(nn.Linear(1, 1)).eval())), 200)
    assert shown[0] == ["Sequential", "prefer=left,", "clipped=absorb,", "leftover=linear"]
    assert shown[1][:2] == ["0", "BatchNorms:"]
    assert len(shown) == 2
