"""How much one attribution computes: convolutions per layer, plans, forwards of the model itself, and what it keeps."""

import gc
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import canon_bridge.core.plans
from canon_bridge.captum import LRP, LayerLRP, presets, rules
from tests.support.errors import relative_error
from tests.support.models import TARGET, images, small_densenet
from tests.support.statistics import randomize

LAYERS = 3


class Counted(TorchDispatchMode):
    """Count the operations that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def network(activation=nn.ReLU):
    """Return three convolutions, whose inputs are not negative if that of the model is not."""
    convolutions = [nn.Conv2d(3 if index == 0 else 8, 8, 3, padding=1) for index in range(LAYERS)]
    layers = [module for layer in convolutions for module in (layer, nn.BatchNorm2d(8), activation())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 8 * 8, 5))
    return randomize(model.double())


def counted(lrp, x):
    """Return how many convolutions the second attribution computes, forward and backward."""
    lrp.attribute(x, target=TARGET)
    with Counted() as counted:
        lrp.attribute(x, target=TARGET)
    return counted.calls["convolution"], counted.calls["convolution_backward"]


# One forward is that of the model; the others, and those backward, are the rule's, for each layer.
PRESETS = {
    "epsilon": (presets.epsilon(), (1, 1), (1, 1)),
    "epsilon without biases": (presets.epsilon(zero_params="bias"), (2, 1), (2, 1)),
    "epsilon_plus": (presets.epsilon_plus(), (2, 1), (3, 2)),
    "epsilon_alpha2_beta1": (presets.epsilon_alpha2_beta1(), (3, 2), (5, 4)),
    "gamma": (presets.Preset([(nn.Conv2d, rules.Gamma()), *presets.epsilon().layer_map]), (3, 2), (5, 4)),
    "z-box": (presets.Preset([(nn.Conv2d, rules.ZBox(-1, 1)), *presets.epsilon().layer_map]), (3, 3), (3, 3)),
    "flat": (presets.Preset([(nn.Conv2d, rules.Flat()), *presets.epsilon().layer_map]), (2, 1), (2, 1)),
}


@pytest.mark.parametrize("name", PRESETS)
def test_convolutions_of_a_layer(name):
    preset, one_sign, both_signs = PRESETS[name]
    expected = tuple(count * LAYERS for count in one_sign)
    assert counted(LRP(network(), preset), torch.rand(2, 3, 8, 8, dtype=torch.float64)) == expected
    expected = tuple(count * LAYERS for count in both_signs)
    assert counted(LRP(network(nn.LeakyReLU), preset), images(2, 8)) == expected


def test_the_second_call_plans_nothing_and_runs_the_model_once(monkeypatch):
    model, x = network(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    lrp = LRP(model)
    with Counted() as first:
        lrp.attribute(x, target=TARGET)
    monkeypatch.setattr(canon_bridge.core.plans, "make_plan", lambda *_: pytest.fail("planned again"))
    assert first.calls["convolution"] == counted(lrp, x)[0] + LAYERS  # the function is checked once for each plan


class Overwriting(nn.Module):
    """A network whose last layers read what is overwritten after them; or, after nobody has read it."""

    def __init__(self, is_read):
        super().__init__()
        self.trunk, self.head, self.is_read = network()[:-2], nn.Conv2d(8, 5, 1).double(), is_read

    def forward(self, x):
        y = self.trunk(x)
        z = self.head(y) if self.is_read else 0.0
        y[:, :1] += 0.7
        return (z + self.head(y)).mean((2, 3))


def test_only_what_is_overwritten_after_it_was_read_is_copied_from_the_first_call_on():
    x, runs, copies = torch.rand(2, 3, 8, 8, dtype=torch.float64), Counter(), Counter()
    for is_read in (False, True):
        model = Overwriting(is_read).eval()
        lrp = LRP(model)
        for call in range(3):
            handle = model.trunk[0].register_forward_hook(lambda *_, key=(is_read, call): runs.update([key]))
            with Counted() as counted:
                lrp.attribute(x, target=TARGET)
            handle.remove()
            copies[is_read, call] = counted.calls["clone"]
    # The first call compares the function besides, and finds out what has to be copied.
    assert [runs[False, call] for call in range(3)] == [2, 1, 1]
    assert [runs[True, call] for call in range(3)] == [4, 1, 1]
    assert [copies[True, call] - copies[False, call] for call in (1, 2)] == [1, 1]


def _tensors():
    return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())


@pytest.mark.parametrize("preset", [presets.epsilon(), presets.epsilon_plus()], ids=lambda preset: preset.name)
def test_nothing_is_kept_from_call_to_call(preset):
    model, x = network(), images(2, 8)
    lrp = LRP(model, preset)
    lrp.attribute(x, target=TARGET)
    gc.collect()
    gc.disable()  # what is freed only by the collector makes the peak grow
    try:
        before = _tensors()
        for _ in range(3):
            lrp.attribute(x, target=TARGET)
        assert _tensors() <= before + 1
    finally:
        gc.enable()


class Every(rules.ZPlus):
    """z+, with both products computed always."""

    def _evaluate(self, call, term, values):
        for value in values:
            vars(value).update(_is_positive=False, _is_negative=False)
        return super()._evaluate(call, term, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prefer", ["left", "right"])
def test_what_is_left_out_is_zero(prefer, dtype):
    model, x = small_densenet(), images().to(dtype)
    model.to(dtype)
    try:
        full = presets.Preset([(nn.Conv2d, Every()), *presets.epsilon_plus().layer_map])
        assert torch.equal(
            LRP(model, prefer=prefer).attribute(x, target=TARGET), LRP(model, full, prefer=prefer).attribute(x, TARGET)
        )
    finally:
        small_densenet.cache_clear()


def test_relevance_of_a_layer_within_one_forward():
    model, x = network(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    whole = LRP(model).attribute(x, target=TARGET)
    found = LayerLRP(model, model[0]).attribute(x, target=TARGET, attribute_to_layer_input=True)
    assert relative_error(found, whole) == 0
