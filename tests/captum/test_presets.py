"""Which rule a module gets: by name, for the first layer, by type; and presets of one's own."""

import pytest
import torch
from torch import nn

from canon_bridge.captum import LRP, presets, rules
from tests.support.errors import relative_error
from tests.support.models import TARGET, images, small_densenet
from tests.support.snapshot import Snapshot


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5)).eval()


def kinds(preset, model):
    return {name: type(rule).__name__ for name, rule in preset.assign(model).items()}


def test_names_come_first_then_the_first_layer_then_types():
    preset = presets.Preset(
        layer_map=[(nn.Conv2d, rules.ZPlus()), ((nn.Linear, nn.Conv2d), rules.Epsilon()), *presets.layer_map_base()],
        first_map=[(nn.Conv2d, rules.Flat)],
        name_map=[("4", lambda: rules.Gamma(1.0)), (["1", "none"], rules.Norm())],
    )
    assert kinds(preset, network()) == {"0": "Flat", "1": "Norm", "2": "ZPlus", "4": "Gamma"}


def test_a_name_in_the_map_leaves_the_first_layer_to_the_next():
    preset = presets.Preset(first_map=[(nn.Conv2d, rules.Flat())], name_map=[("0", rules.WSquare())])
    assert kinds(preset, network()) == {"0": "WSquare", "2": "Flat"}


def test_rules_are_copied_for_each_module():
    rule = rules.ZPlus(1e-3)
    first, second = presets.Preset(layer_map=[(nn.Conv2d, rule)]).assign(network()).values()
    assert len({id(rule), id(first), id(second)}) == 3
    assert first.stabilizer == second.stabilizer == 1e-3
    assert first.relevance_input is not second.relevance_input is not rule.relevance_input


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


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"layer_map": [nn.Conv2d]}, "layer_map has the entry .*Conv2d.*; it must be a pair"),
        ({"layer_map": [("conv", rules.ZPlus())]}, "layer_map has the keys .*conv.*types of modules"),
        ({"name_map": [(nn.Conv2d, rules.ZPlus())]}, "name_map has the keys .*names of modules"),
        ({"first_map": [(nn.Conv2d, "flat")]}, "first_map has 'flat' for a rule"),
    ],
)
def test_wrong_entries_are_explained(keywords, message):
    with pytest.raises(TypeError, match=message):
        presets.Preset(**keywords)
