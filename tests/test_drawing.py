"""The drawing of a plan: every BatchNorm of a module, or each way that BatchNorms go, in words that a reader knows."""

import pytest
import torch
import torchvision
from torch import nn

from canon_bridge import plan
from tests.support.models import small_densenet
from tests.support.pieces import Written, conv, norm
from tests.support.statistics import randomize


def words(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def boxes(figure) -> int:
    return sum(len(axes.patches) for axes in figure.axes) - len(_bands(figure))


def _bands(figure):
    return [patch for axes in figure.axes for patch in axes.patches if type(patch).__name__ == "Rectangle"]


def test_each_batchnorm_of_a_block_has_a_row():
    found = plan(small_densenet(), prefer="right")
    shown = words(found.draw("features.denseblock2"))
    inside = [entry.norm for entry in found.entries if entry.norm.startswith("features.denseblock2.")]
    assert len(inside) == 4
    for path in inside:  # as written, and canonical
        assert shown.count(path.removeprefix("features.denseblock2.")) == 2
    assert {"BatchNorm", "identity", "ReLU", "thresholded ReLU", "linear", "linear, merged"} <= set(shown)
    assert not any("denseblock1" in text for text in shown)
    assert "DenseNet: features.denseblock2" in shown


def test_each_way_has_a_row_with_its_count():
    found = plan(small_densenet())
    shown = words(found.draw())
    counts = [text.split()[0] for text in shown if text.split()[0] in ("once",) or " times" in text]
    assert counts == [str(len(entries)) if len(entries) > 1 else "once" for _, entries in found.ways()]
    assert sum(len(entries) for _, entries in found.ways()) == len(found.entries)


def test_pools_copies_and_what_stays_are_named():
    torch.manual_seed(0)
    vgg = randomize(torchvision.models.vgg11_bn(num_classes=3))
    assert "max or min, by sign" in words(plan(vgg, prefer="right").draw())
    shown = words(plan(small_densenet(), prefer="untangled").draw())
    assert {"a copy of each", "selects its copies", "per-channel linear layer"} <= set(shown)
    alone = randomize(Written(lambda m, x: m.norm(x).relu() * x, norm=norm()))
    assert "stays" in words(plan(alone, leftover="keep").draw())
    assert "per-channel linear layer" in words(plan(alone).draw())
    twice = randomize(Written(lambda m, x: m.b(m.a(x)).relu() * x, a=norm(), b=norm()))
    assert "takes its map" in words(plan(twice).draw())


def test_boxes_do_not_overlap_and_hold_their_words():
    figure = plan(small_densenet(), prefer="untangled").draw("features.denseblock1")
    (axes,) = figure.axes
    figure.canvas.draw()
    patches = [patch for patch in axes.patches if type(patch).__name__ == "FancyBboxPatch"]
    extents = [patch.get_window_extent() for patch in patches]
    for number, first in enumerate(extents):
        assert not any(first.overlaps(second) for second in extents[number + 1 :])
    edges = figure.bbox
    assert all(edges.contains(e.x0, e.y0) and edges.contains(e.x1, e.y1) for e in extents)
    for text in axes.texts:
        extent = text.get_window_extent()
        around = [e for e in extents if e.contains((extent.x0 + extent.x1) / 2, (extent.y0 + extent.y1) / 2)]
        assert all(e.x0 <= extent.x0 and extent.x1 <= e.x1 for e in around)


@pytest.mark.parametrize("only", ["no.such.module", "classifier"])
def test_a_module_without_batchnorms_is_refused(only):
    with pytest.raises(ValueError, match=f"no BatchNorm in '{only}'"):
        plan(small_densenet()).draw(only)


def test_a_model_without_batchnorms_is_refused():
    with pytest.raises(ValueError, match="no BatchNorm in the model"):
        plan(nn.Sequential(conv()).eval()).draw()
