"""Which rule each module gets: by name, for the first layer, by type."""

import pytest
from torch import nn

from canon_bridge import Kind
from canon_bridge.captum import presets, rules


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


def test_a_rule_of_a_kind_is_for_all_operations_of_it_and_a_function_is_called_for_each():
    made = []

    def make():
        made.append(rules.Pass())
        return made[-1]

    model = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1), nn.GELU(), nn.AvgPool2d(2))
    preset = presets.Preset(layer_map=[(Kind.ELEMENTWISE, make), (nn.AvgPool2d, rules.Norm())])
    assert kinds(preset, model) == {"0": "Pass", "2": "Pass", "3": "Norm"}
    assert len(made) == 2
