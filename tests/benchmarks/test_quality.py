"""The measures of maps, on maps of which the answer is known, and against Quantus where it is installed."""

import math
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.digits.scenes import Canvases, Scene
from benchmarks.quality import __main__ as quality
from benchmarks.quality import measures, page
from benchmarks.quality.examine import BLOCK, METRICS, Extent, flip, randomised
from benchmarks.quality.results import Interval, Record, Results
from benchmarks.quality.ways import GRADIENT, ORDERS, RULES, UNCANONIZED, WAYS, Way, twins

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
        return pytest.importorskip("quantus", reason="needs quantus: pip install -e '.[quantus]'")


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


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 8),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand_like(tensor) + 0.2)
    return model.double().eval()


def explain(network, way):
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with way.open(network) as attribute:
        return attribute(images, torch.tensor([0, 2]))


@pytest.mark.zennit
def test_ways_are_what_they_are_called(network):
    """Epsilon is gradient times input where all that is clipped is absorbed, and only there."""
    gradient = explain(network, Way("", GRADIENT))
    for order in ORDERS:
        is_equal = torch.allclose(explain(network, Way("Epsilon", order)), gradient, rtol=1e-5, atol=1e-8)
        assert is_equal == (order not in twins() and order != UNCANONIZED), order
    assert twins() == {"left, pass": "left, absorb", "right, pass": "right, absorb"}


def test_random_weights_come_from_the_top(network):
    half = randomised(network, 0.5, torch.Generator().manual_seed(0))
    for (name, before), after in zip(network.state_dict().items(), half.state_dict().values(), strict=True):
        torch.testing.assert_close(before.flatten().sort().values, after.flatten().sort().values, rtol=0, atol=0)
        is_kept = int(name[0]) < 3 or before.numel() == 1
        assert torch.equal(before, after) == is_kept, name
    norm, shuffled = network[3], half[3]
    order = (norm.weight[:, None] == shuffled.weight).int().argmax(0)
    assert torch.equal(norm.running_mean[order], shuffled.running_mean)


def made_up(seeds: int = 3) -> Results:
    """Figures of which every verdict is known: each order is better than the one before, by more than seeds differ."""
    results = Results({"extent": asdict(Extent()), "training": {"scene": asdict(SCENE)}}, ["`a command`, versions"])
    for architecture in ("VGG", "DenseNet"):
        results.accuracies[architecture] = dict.fromkeys(range(seeds), 0.9)
        for seed in range(seeds):
            for place, way in enumerate(WAYS):
                figures = {
                    name: 0.5 + (0.01 * place + 0.001 * seed * (place % 2)) * (1 if metric.is_better_high else -1)
                    for name, metric in METRICS.items()
                }
                results.records.append(Record(architecture, seed, way, figures))
    return results


def test_results_are_read_as_they_were_written(tmp_path):
    results = made_up()
    results.write(tmp_path / "quality.json")
    again = Results.read(tmp_path / "quality.json")
    assert again == results
    again.records.pop()
    assert again.missing("DenseNet", 2, WAYS) == [WAYS[-1]]
    assert not again.missing("DenseNet", 1, WAYS)
    assert again.missing("VGG", 3, WAYS) == list(WAYS)


def test_page_of_figures_that_are_there(tmp_path):
    made_up().write(tmp_path / "quality.json")
    assert quality.main(["--page", "--output", str(tmp_path / "quality.md")]) == 0
    written = (tmp_path / "quality.md").read_text()
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert "![The measures, by architecture, rule and order](quality.png)" in written
    pairs = 2 * len(RULES)
    assert f"| **all** |{f' **{pairs * len(METRICS)} / 0** |' * (len(ORDERS) - 1)}\n" in written
    rows = pairs * len(twins())
    assert f"In the {rows} rows below" in " ".join(written.split())
    assert f"absorb is better than pass in {rows * len(METRICS)} comparisons, worse in 0" in " ".join(written.split())
    assert "- *left, absorb*: nothing." in written
    for metric in METRICS.values():
        assert metric.meaning[:60] in " ".join(written.split())


def test_what_is_worse_is_named(tmp_path):
    results = made_up()
    for record in results.records:
        if record.architecture == "VGG" and record.way == Way("Epsilon", "left, absorb"):
            record.figures["gini"] = 0.0
    written = page.markdown(results, "quality.png")
    assert "- *left, absorb*: Gini index (Epsilon on VGG)." in written
    assert "~~0.000 ± 0.000~~" in written


def test_page_of_one_network_claims_nothing():
    written = page.markdown(made_up(seeds=1), "quality.png")
    assert f"| **all** |{' **0 / 0** |' * (len(ORDERS) - 1)}\n" in written
    assert "±" not in written.partition("## In short")[2]


def test_wrong_options_are_explained(tmp_path, capsys):
    for arguments, word in ((["--seeds", "0"], "--seeds"), (["--page", "--output", str(tmp_path / "a.md")], "a.json")):
        with pytest.raises(SystemExit):
            quality.main(arguments)
        assert word in capsys.readouterr().err
    made_up().write(tmp_path / "b.json")
    with pytest.raises(SystemExit, match="other settings"):
        quality.main(["--quick", "--output", str(tmp_path / "b.md")])


@pytest.mark.slow
@pytest.mark.zennit
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_that_was_cut_goes_on(tmp_path):
    options = ["--quick", "--seeds", "1", "--architectures", "VGG", "--cache", str(tmp_path)]
    path = tmp_path / "quality.md"
    assert quality.main([*options, "--output", str(path)]) == 0
    results = Results.read(path.with_suffix(".json"))
    whole = list(results.records)
    del results.records[5:]
    results.write(path.with_suffix(".json"))
    assert quality.main([*options, "--output", str(path)]) == 0
    assert Results.read(path.with_suffix(".json")).records == whole
