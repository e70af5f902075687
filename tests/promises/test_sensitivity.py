"""Every tolerance rejects known-wrong variants of the mathematics, on a whole network and in the oracle."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from canon_bridge import Canonization, FunctionChangedError, canonize
from canon_bridge.captum import LRP, presets
from canon_bridge.core import activations, norms
from canon_bridge.core.affine import Affine
from canon_bridge.core.layers import linear
from tests.support.errors import relative_error
from tests.support.models import TARGET, gradient_times_input, images, small_densenet
from tests.support.statistics import randomize

TOLERANCE = 1e-12  # as in test_oracle


def _read_as(monkeypatch, change):
    entry = norms.NORMS[nn.BatchNorm2d]
    wrong = replace(entry, read=lambda module: change(module, entry.read(module)))
    monkeypatch.setitem(norms.NORMS, nn.BatchNorm2d, wrong)


def _no_eps_in_scale(monkeypatch):
    def change(module, right):
        scale = module.weight / module.running_var.sqrt()
        return Affine(scale, module.bias - scale * module.running_mean)

    _read_as(monkeypatch, change)


def _eps_stays_in_the_norm(monkeypatch):
    entry = norms.NORMS[nn.BatchNorm2d]

    def write(module, affine):
        return {name: value for name, value in entry.write(module, affine).items() if name != "eps"}

    monkeypatch.setitem(norms.NORMS, nn.BatchNorm2d, replace(entry, write=write))


def _no_mean(monkeypatch):
    _read_as(monkeypatch, lambda module, right: Affine(right.scale, module.bias.detach()))


def _no_bias(monkeypatch):
    _read_as(monkeypatch, lambda module, right: Affine(right.scale, -right.scale * module.running_mean))


def _no_shift(monkeypatch):
    _read_as(monkeypatch, lambda module, right: Affine(right.scale, torch.zeros_like(right.shift)))


def _no_border(monkeypatch):
    geometries = linear.axis_geometries
    monkeypatch.setattr(
        linear, "axis_geometries", lambda module: tuple(replace(g, low=0, high=0) for g in geometries(module))
    )


def _relu_as(monkeypatch, change):
    right = activations.ACTIVATIONS[nn.ReLU]

    def wrong(edits, module, *arguments):
        left = right(edits, module, *arguments)
        change(vars(module)["_buffers"])
        return left

    monkeypatch.setitem(activations.ACTIVATIONS, nn.ReLU, wrong)


def _sign_of_the_threshold(monkeypatch):
    _relu_as(monkeypatch, lambda buffers: buffers.update(thr_value=-buffers["thr_value"]))


def _negative_scales_clipped_from_below(monkeypatch):
    _relu_as(monkeypatch, lambda buffers: buffers.pop("thr_sign", None))


def _plain_relu(monkeypatch):
    _relu_as(monkeypatch, lambda buffers: buffers.update(thr_value=torch.zeros_like(buffers["thr_value"])))


WRONG = [
    _no_eps_in_scale,
    _eps_stays_in_the_norm,
    _no_mean,
    _no_bias,
    _no_shift,
    _no_border,
    _sign_of_the_threshold,
    _negative_scales_clipped_from_below,
    _plain_relu,
]


# With prefer="left" no convolution with padding takes a BatchNorm from the left in DenseNet: no border to forget.
CASES = [(wrong, prefer) for wrong in WRONG for prefer in ("left", "right") if (wrong, prefer) != (_no_border, "left")]


def assert_rejected(model, x, relevance, prefer, monkeypatch):
    """LRP refuses to go on with another function; without that check the map would be another one, too."""
    lrp = LRP(model, presets.epsilon(1e-30), prefer=prefer)
    with pytest.raises(FunctionChangedError):
        lrp.attribute(x, target=TARGET)
    monkeypatch.setattr(Canonization, "check_function", lambda *_: None)
    wrong_relevance = LRP(model, presets.epsilon(1e-30), prefer=prefer).attribute(x, target=TARGET)
    assert not relative_error(wrong_relevance, relevance) < 1e3 * TOLERANCE


@pytest.mark.parametrize(("break_it", "prefer"), CASES)
def test_function_and_oracle_reject(break_it, prefer, monkeypatch):
    model, x = small_densenet(), images()
    output, relevance = model(x).detach(), gradient_times_input(model, x)
    break_it(monkeypatch)
    with canonize(model, prefer=prefer):
        wrong_output = model(x).detach()
    assert not relative_error(wrong_output, output) < 1e3 * TOLERANCE
    assert_rejected(model, x, relevance, prefer, monkeypatch)
    monkeypatch.undo()
    assert model(x).equal(output)


def test_relevance_that_passes_clipped_units_is_rejected_by_the_oracle(monkeypatch):
    model, x = small_densenet(), images()
    monkeypatch.setattr(activations, "stop_at_clipped", lambda compares, module, args: None)
    wrong = LRP(model, presets.epsilon(1e-30)).attribute(x, target=TARGET)
    assert not relative_error(wrong, gradient_times_input(model, x)) < 1e3 * TOLERANCE


def leaky() -> nn.Module:
    """Norms that go through leaky activations and a max pooling to the right."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm2d(3), nn.LeakyReLU(0.3), nn.MaxPool2d(2), nn.Conv2d(3, 6, 3, padding=1)]
    layers += [nn.BatchNorm2d(6), nn.PReLU(6), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 4, 5)]
    return randomize(nn.Sequential(*layers).double())


def _with_buffer(right, name, change):
    def wrong(edits, module, *arguments):
        left = right(edits, module, *arguments)
        buffers = vars(module)["_buffers"]
        buffers[name] = change(buffers[name])
        return left

    return wrong


def _pools_as(name, change):
    def break_it(monkeypatch):
        wrong = _with_buffer(activations.absorb_into_max_pool, name, change)
        monkeypatch.setattr(activations, "absorb_into_max_pool", wrong)

    return break_it


def _buffers_as(kinds, name, change):
    def break_it(monkeypatch):
        for kind in kinds:
            right = activations.ACTIVATIONS[kind]

            monkeypatch.setitem(activations.ACTIVATIONS, kind, _with_buffer(right, name, change))

    return break_it


LEAKY = (nn.LeakyReLU, nn.PReLU)
WRONG_BEHIND = {
    "no shift in front": _buffers_as(LEAKY, "act_shift", torch.zeros_like),
    "no sign of the scale in front": _buffers_as(LEAKY, "act_scale", torch.abs),
    "no shift taken out": _buffers_as(LEAKY, "act_offset", torch.zeros_like),
    "no scale taken out": _buffers_as(LEAKY, "act_factor", torch.ones_like),
    "channels in another order": _buffers_as(LEAKY, "act_shift", lambda values: values.roll(1)),
    "always the maximum": _pools_as("pool_sign", torch.ones_like),
    "always the minimum": _pools_as("pool_sign", lambda values: -torch.ones_like(values)),
}


@pytest.mark.parametrize("wrong", WRONG_BEHIND)
def test_function_and_oracle_reject_wrong_activations_and_pools(wrong, monkeypatch):
    model, x = leaky(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    output, relevance = model(x).detach(), gradient_times_input(model, x)
    right = LRP(model, presets.epsilon(1e-30), prefer="right").attribute(x, target=TARGET)
    assert relative_error(right, relevance) < TOLERANCE
    WRONG_BEHIND[wrong](monkeypatch)
    with canonize(model, prefer="right"):
        wrong_output = model(x).detach()
    assert not relative_error(wrong_output, output) < 1e3 * TOLERANCE
    assert_rejected(model, x, relevance, "right", monkeypatch)


def _as_smooth(compares, is_linear_by_pieces, module, args):
    return right_share(compares, False, module, args)


def _everything(compares, is_linear_by_pieces, module, args):
    return None


right_share = activations.pass_share


@pytest.mark.parametrize("share", [_as_smooth, _everything])
def test_another_share_of_relevance_is_rejected_by_the_oracle(share, monkeypatch):
    model, x = leaky(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    monkeypatch.setattr(activations, "pass_share", share)
    wrong = LRP(model, presets.epsilon(1e-30), prefer="right").attribute(x, target=TARGET)
    assert not relative_error(wrong, gradient_times_input(model, x)) < 1e3 * TOLERANCE
