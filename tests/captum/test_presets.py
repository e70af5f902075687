"""Presets, and those of one's own: entries before the preset's, and the same maps by hand."""

import pytest
import torch
from torch import nn

from canon_bridge.captum import LRP, presets, rules
from tests.captum.test_maps import kinds, network
from tests.support.errors import relative_error
from tests.support.models import TARGET, images, small_densenet
from tests.support.snapshot import Snapshot


@pytest.mark.parametrize("name", sorted(set(presets.__all__) - {"Preset", "layer_map_base"}))
def test_own_entries_come_before_those_of_a_preset(name):
    bounds = {"low": -3.0, "high": 3.0} if "box" in name else {}
    own = getattr(presets, name)(**bounds, layer_map=[(nn.Linear, rules.WSquare())], name_map=[("2", rules.Flat())])
    found = kinds(own, network())
    assert (found["2"], found["4"], found["1"]) == ("Flat", "WSquare", "Pass")


def test_a_preset_by_hand_is_the_preset():
    by_hand = presets.Preset(
        [*presets.layer_map_base(), (nn.Conv2d, rules.ZPlus()), (nn.Linear, rules.Epsilon())], name="by hand"
    )
    model, x = small_densenet(), images()
    before = Snapshot(model)
    found = LRP(model, by_hand).attribute(x, target=TARGET)
    before.check()
    assert torch.equal(found, LRP(model, presets.epsilon_plus()).attribute(x, target=TARGET))
    assert relative_error(found, LRP(model, presets.epsilon_plus_flat()).attribute(x, target=TARGET)) > 1e-2
