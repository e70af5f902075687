"""The report of an audit: what is added up, compared and printed."""

import math

import torch
from torch import nn

from canon_bridge import Audit, audit
from canon_bridge.auditing.causes import CAUSES
from canon_bridge.auditing.report import Entry
from canon_bridge.captum import LRP, presets
from tests.support.models import TARGET, images, small_densenet


def entry(path, flow=1.0, **taken):
    """Return what became of relevance at one module, by cause; elsewhere it is zero."""
    return Entry(path, "Conv2d", "ZPlus", False, 1, 2.0, 1.0, flow, dict.fromkeys(CAUSES, 0.0) | taken)


def report(*entries, score=-4.0, scale=8.0, relevance=-1.0, eps=1e-3):
    """Return an audit of a batch whose scores have both signs."""
    return Audit("Net", "of one's own", score, scale, relevance, entries, eps)


def test_losses_of_either_sign_do_not_cancel():
    found = report(
        entry("a", gates=3.0, biases=5.0), entry("b", 40.0, elsewhere=-3.0), entry("c", gates=2.0, elsewhere=-2.0)
    )
    assert [one.lost for one in found.entries] == [3, -3, 0]
    assert (found.lost, found.defect, found.widest.path) == (6, 6 / 8, "b")
    assert found.defect_of_flow == 6 / 40
    assert found.taken("gates") == 5
    assert dict(found.totals()) == {
        "at the input": -1,
        "biases": 5,
        "stabilisers": 0,
        "clipped constants": 0,
        "gates": 5,
        "elsewhere": -5,
    }


def test_a_loss_is_more_than_a_thousand_times_the_rounding_of_what_flows():
    wide, narrow = entry("wide", 100.0, gates=9.9), entry("narrow", 1.0, elsewhere=-9.9)
    found = report(
        wide, narrow, entry("least", gates=8.1), entry("rounding", gates=7.9), entry("rule", biases=50.0), eps=1e-3
    )
    assert [one.path for one in found.worst()] == ["narrow", "least"]
    assert [one.path for one in found.worst(1)] == ["narrow"]
    assert [one.path for one in found.largest(3)] == ["rule", "wide", "narrow"]


def test_shares_have_the_sign_of_the_score():
    assert report(score=-4.0).share(2.0) == -0.25
    assert report(score=4.0).share(2.0) == 0.25
    nothing = report(entry("a", gates=1.0), score=0.0, scale=0.0)
    assert nothing.share(2.0) == 0.0
    assert math.isinf(nothing.defect)


def test_a_table_is_in_per_cent_of_the_score():
    row = report().table([entry("conv", biases=2.0, gates=-1e-4, elsewhere=-1e6)])[-1].split()
    assert row == ["conv", "Conv2d", "ZPlus", "-25.00", "-12.50", "-25.00", "-", "-", "-", "1.2e+07"]


def test_a_notebook_shows_names_and_no_markup():
    html = report(entry("<b>", gates=2.0))._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>Relevance of Net, of one&#x27;s own: where f(x) = -4 went</b>" in html
    assert "where relevance is lost: 1 modules" not in html
    assert "where relevance is lost: 1 modules" in report(entry("<b>", gates=2.0), eps=1e-9)._repr_html_()


def test_what_is_printed():
    model, x = small_densenet(), images()
    text = str(audit(model, x, TARGET, LRP(model)))
    for line in ("at the input", "biases", "stabilisers", "clipped constants", "gates", "elsewhere", "defect: "):
        assert line in text
    assert "where most was absorbed" in text
    assert max(map(len, text.splitlines())) < 150
    raw = str(audit(model, x, TARGET, presets.epsilon_plus()))
    assert "relevance is lost at" in raw
    assert "features.norm5" in raw
    assert "(own forward)" in raw


def test_a_score_of_zero_divides_nothing():
    model = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
    nn.init.zeros_(model[0].weight)
    report = audit(model, torch.ones(1, 3, dtype=torch.float64), 0, presets.epsilon())
    assert (report.score, report.defect, report.defect_of_flow) == (0, 0, 0)
    assert "f(x) = 0" in str(report)
    report.bars()
