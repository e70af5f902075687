"""The chart of an audit: its bars are the numbers of the report."""

import matplotlib.pyplot
import pytest

from canon_bridge import Audit, audit
from canon_bridge.auditing.causes import CAUSES
from canon_bridge.auditing.chart import COLOURS, draw
from canon_bridge.captum import presets
from tests.auditing.test_report import entry
from tests.support.models import TARGET, images, small_densenet


def test_the_chart_shows_the_numbers(tmp_path):
    model, x = small_densenet(), images()
    report = audit(model, x, TARGET, presets.epsilon_plus())
    figure = report.bars(5)
    left, right = figure.axes
    shown = [bar.get_width() for bar in left.patches]
    assert shown == pytest.approx([value / report.score for _, value in report.totals()])
    assert [label.get_text() for label in right.get_yticklabels()] == [entry.path for entry in report.largest(5)]
    figure.savefig(tmp_path / "audit.png")
    assert matplotlib.pyplot.get_fignums() == []


def test_what_a_module_took_is_stacked_away_from_zero_on_either_side():
    taken = {"biases": 2.0, "stabilisers": -1.0, "clipped": 4.0, "gates": -3.0, "elsewhere": 0.0}
    report = Audit("Net", "rules", -10.0, 10.0, 1.0, (entry("small"), entry("conv", **taken)), 2.2e-16)
    figure = draw(report, 2)
    _, right = figure.axes
    assert [label.get_text() for label in right.get_yticklabels()] == ["conv", "small"]
    bars = {container.get_label(): container.patches[0] for container in right.containers}
    assert list(bars) == list(CAUSES)
    # Shares of a score below zero have the other sign.
    spans = {cause: (bar.get_x(), bar.get_x() + bar.get_width()) for cause, bar in bars.items()}
    assert spans["biases"] == pytest.approx((0, -0.2))
    assert spans["stabilisers"] == pytest.approx((0, 0.1))
    assert spans["clipped"] == pytest.approx((-0.2, -0.6))
    assert spans["gates"] == pytest.approx((0.1, 0.4))
    assert len(set(COLOURS.values())) == len(COLOURS) == 1 + len(CAUSES)
