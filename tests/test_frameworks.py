"""The rules of a preset by name: the same map in both frameworks."""

import pytest
import torch
from torch import nn

from canon_bridge import audit
from canon_bridge.captum import presets
from canon_bridge.frameworks import make_attribute, make_rules
from tests.support.statistics import randomize

PRESETS = sorted(set(presets.__all__) - {"Preset", "layer_map_base"})


def make_model() -> nn.Module:
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    return randomize(nn.Sequential(*layers)).double().eval()


@pytest.mark.zennit
@pytest.mark.parametrize("clipped", ["absorb", "pass"])
@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("preset", PRESETS)
def test_both_frameworks_make_the_same_map(preset, prefer, clipped):
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    settings = {"low": torch.zeros(1, 3, 1, 1), "high": torch.ones(1, 3, 1, 1)} if preset == "epsilon_gamma_box" else {}
    maps, scores = [], []
    for framework in ("captum", "zennit"):
        model = make_model()
        rules = make_rules(framework, model, preset, prefer=prefer, clipped=clipped, settings=settings)
        scores.append(audit(model, x, target=3, rules=rules).relevance)
        maps.append(make_attribute(framework, model, rules)(x, torch.tensor([3, 3])))
    torch.testing.assert_close(*maps, rtol=1e-9, atol=1e-12)
    assert scores == pytest.approx([float(maps[0].sum())] * 2, rel=1e-6)
