"""The measures of maps, on maps of which the answer is known, and against Quantus where it is installed."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.digits.scenes import Canvases, Scene
from benchmarks.quality import measures
from benchmarks.quality.examine import BLOCK, flip
from benchmarks.quality.results import Interval

SIDE = 24
SCENE = Scene(canvas=SIDE, digit=8)


@pytest.fixture
def canvases() -> Canvases:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 1, SIDE, SIDE, generator=generator).expand(-1, 3, -1, -1) + 0.1
    corners = torch.tensor([[0, 0], [4, 8], [16, 16], [8, 4], [12, 0], [0, 16]])
    return Canvases(images, torch.zeros(6, dtype=torch.int64), corners, SCENE)


@pytest.fixture
def noise(canvases) -> torch.Tensor:
    return torch.randn(6, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("measure", [measures.share_in_box, measures.rank_accuracy])
def test_localisation(measure, canvases):
    boxes = canvases.box_masks()
    right = boxes.double()
    assert measure(right, boxes).tolist() == [1] * 6
    assert measure(1 - right, boxes).tolist() == [0] * 6
    assert measure(-right, boxes).tolist() == [0] * 6
    chance = torch.full((6,), SCENE.box_share, dtype=torch.float64)
    torch.testing.assert_close(measure(torch.ones_like(right), boxes).double(), chance, rtol=0, atol=1e-7)


def test_share_counts_what_is_positive():
    relevance = torch.tensor([[[3.0, -5.0], [1.0, 0.0]]])
    box = torch.tensor([[[True, True], [False, False]]])
    assert measures.share_in_box(relevance, box).item() == 0.75


def test_localisation_of_nothing(canvases):
    assert measures.share_in_box(-torch.ones(6, SIDE, SIDE), canvases.box_masks()).tolist() == [0] * 6


def test_rank_accuracy_of_ties():
    """Of four pixels two are the digit; one of them leads, the three others are alike: 1 + 1/3 hits are expected."""
    relevance = torch.tensor([[[5.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[[True, True], [False, False]]])
    assert measures.rank_accuracy(relevance, mask).item() == pytest.approx((1 + 1 / 3) / 2)


def test_complexity():
    flat = torch.ones(1, SIDE, SIDE, dtype=torch.float64)
    point = torch.zeros_like(flat)
    point[0, 3, 5] = -2
    half = torch.zeros_like(flat)
    half[0, : SIDE // 2] = 3
    count = SIDE**2
    for relevance, expected_entropy, expected_gini in (
        (flat, 1, 0),
        (point, 0, 1 - 1 / count),
        (half, math.log(count / 2) / math.log(count), 0.5),
        (torch.zeros_like(flat), 1, 0),
    ):
        assert measures.entropy(relevance).item() == pytest.approx(expected_entropy, abs=1e-12)
        assert measures.gini(relevance).item() == pytest.approx(expected_gini, abs=1e-12)


def test_change_and_correlation(noise):
    everywhere = torch.ones(6, SIDE, SIDE, dtype=torch.bool)
    torch.testing.assert_close(measures.relative_change(noise, -2 * noise), torch.full((6,), 3.0, dtype=noise.dtype))
    for other, expected in ((noise**3, 1.0), (-noise, -1.0), (torch.ones_like(noise), 0.0)):
        found = measures.rank_correlation(noise, other, everywhere)
        torch.testing.assert_close(found.double(), torch.full((6,), expected, dtype=torch.float64))
    left = everywhere.clone()
    left[..., SIDE // 2 :] = False
    assert measures.rank_correlation(noise, torch.where(left, noise, -noise), left).tolist() == pytest.approx([1] * 6)


class Ink(nn.Module):
    """Scores by the ink in the upper left corner of the canvas."""

    def forward(self, images):
        ink = images[:, 0, :8, :8].mean((1, 2))
        return torch.stack((ink * 10, torch.zeros_like(ink)), 1)


def test_flipping_finds_what_the_model_looks_at(canvases):
    right = torch.zeros(6, SIDE, SIDE)
    right[:, :8, :8] = 1 + torch.arange(8) / 8
    model = Ink().eval()
    best, chance, worst = (flip(model, canvases, maps) for maps in (right, torch.rand(6, SIDE, SIDE), -right))
    assert (best < chance).all()
    assert (chance <= worst).all()
    with torch.no_grad():
        untouched = model(canvases.images).softmax(1)[:, 0]
    torch.testing.assert_close(worst, untouched)  # four blocks go, none of which counts
    images = canvases.images.clone()
    expected = []
    for row, column in ((0, 1), (1, 1), (0, 0), (1, 0)):
        images[:, :, row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK] = 0
        expected.append(model(images).softmax(1)[:, 0])
    torch.testing.assert_close(best, torch.stack(expected).mean(0))


def test_intervals():
    found = Interval.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3
    assert found.half == pytest.approx(2.7764451052 * math.sqrt(2.5) / math.sqrt(5))
    assert found.sign == 1
    assert Interval.of([-1.0, -1.1, -0.9]).sign == -1
    assert Interval.of([-1.0, 2.0, 1.0]).sign == 0
    assert Interval.of([1.0]).sign == 0
    assert math.isnan(Interval.of([]).mean)


@pytest.fixture
def quantus():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("quantus", reason="the package quantus is not installed")


@pytest.mark.filterwarnings("ignore")
def test_quantus_measures_the_same(quantus, canvases, noise):
    images, boxes = canvases.images.numpy(), canvases.box_masks()
    model = Ink().eval()
    plain = {"normalise": False, "disable_warnings": True}

    def measured(metric, relevance, **keywords):
        relevance = relevance[:, None].double().numpy().copy()
        labels = canvases.labels.numpy()
        found = metric(model=model, x_batch=images, y_batch=labels, a_batch=relevance, device="cpu", **keywords)
        return torch.as_tensor(np.asarray(found), dtype=torch.float64)

    masks = boxes[:, None].numpy()
    for metric, own, keywords in (
        (
            quantus.AttributionLocalisation(positive_attributions=True, abs=False, **plain),
            measures.share_in_box(noise, boxes),
            {"s_batch": masks},
        ),
        (quantus.RelevanceRankAccuracy(**plain), measures.rank_accuracy(noise, boxes), {"s_batch": masks}),
        (quantus.Complexity(**plain), measures.entropy(noise) * math.log(SIDE**2), {}),
        (quantus.Sparseness(**plain), measures.gini(noise), {}),
    ):
        torch.testing.assert_close(own.double(), measured(metric, noise, **keywords), rtol=0, atol=1e-6)

    blocks = noise[:, ::BLOCK, ::BLOCK].repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
    flipping = quantus.PixelFlipping(features_in_step=3 * BLOCK**2, perturb_baseline=0.0, **plain)
    curves = measured(flipping, blocks, softmax=True)
    steps = SCENE.digit**2 // BLOCK**2
    torch.testing.assert_close(flip(model, canvases, blocks).double(), curves[:, :steps].mean(1), rtol=0, atol=1e-6)

    moved = noise + torch.rand(6, SIDE, SIDE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sensitivity = quantus.MaxSensitivity(nr_samples=1, **plain)
    explain = {"explain_func": lambda **_: moved[:, None].numpy()}
    found = measured(sensitivity, noise, **explain)
    torch.testing.assert_close(measures.relative_change(noise, moved), found, rtol=1e-9, atol=0)
