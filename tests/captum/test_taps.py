"""Relevance at one module, read off the backward pass: against gradients, for tensors, lists and integers."""

import pytest
import torch
from torch import nn

from canon_bridge import plan
from canon_bridge.captum import LRP, LayerLRP
from canon_bridge.captum.taps import Tap
from tests.captum.test_lrp import TOLERANCE
from tests.support.errors import relative_error
from tests.support.models import TARGET, images, small_densenet


def test_layer_relevance_at_the_ends():
    model, x = small_densenet(), images()
    relevance = LRP(model).attribute(x, target=TARGET)
    at_input = LayerLRP(model, model.features.conv0).attribute(x, target=TARGET, attribute_to_layer_input=True)
    assert at_input.equal(relevance)
    at_output = LayerLRP(model, model.classifier).attribute(x, target=TARGET)
    score = torch.zeros_like(at_output)
    score[:, TARGET] = model(x)[:, TARGET].detach()
    assert relative_error(at_output, score) < TOLERANCE


def test_layer_relevance_of_containers_and_lists_is_continuous():
    model, x = small_densenet(), images()
    layers = [model.features.denseblock2, model.features.transition2, model.features.transition1.conv]
    out = LayerLRP(model, layers).attribute(x, target=TARGET)
    into = LayerLRP(model, layers).attribute(x, target=TARGET, attribute_to_layer_input=True)
    assert isinstance(out, list)
    # What leaves the transition enters the block before it; a pool stands between conv and block.
    assert into[1].equal(out[0])
    assert [tuple(value.shape[:2]) for value in out] == [(2, 32), (2, 16), (2, 16)]
    values, deltas = LayerLRP(model, layers).attribute(x, target=TARGET, return_convergence_delta=True)
    assert relative_error(model(x)[:, TARGET] - values[0].sum((1, 2, 3)), deltas[0]) < TOLERANCE


def test_layer_that_does_not_run_once():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 64, 5)).double()
    unused = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"the layer \(Linear\) is no module of the model"):
        LayerLRP(model.eval(), unused).attribute(images(1, 8), target=TARGET)
    with pytest.raises(TypeError, match=r"layer is '0' \(str\); it must be a module of the model"):
        LayerLRP(model, "0").attribute(images(1, 8), target=TARGET)
    model[0].unused = unused
    with pytest.raises(ValueError, match=r"the layer 0\.unused \(Linear\) ran 0 times.*it must run once"):
        LayerLRP(model, unused).attribute(images(1, 8), target=TARGET)


class Sum(nn.Module):
    """Of the tensors of a list; it returns the list, too."""

    def forward(self, values, integers=None):
        return values[0] * 3 + values[1], values


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sum, self.last, self.unused = Sum(), nn.Identity(), nn.Identity()

    def forward(self, x):
        total, values = self.sum([x, x.square()], torch.arange(2))
        return self.last(total) + self.last(values[1]) * 5


def read(path, at_input, x):
    """Return what a tap reads at a module of the model, with ones as the relevance of the output."""
    model = Lists()
    found = Tap(model, model.get_submodule(path), at_input)
    found.begin(plan(nn.Sequential(nn.Identity())))  # of another model: no module is called twice by it
    with found.attached():
        model(x).sum().backward()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return found


@pytest.mark.parametrize("requires_grad", [True, False])
def test_each_tensor_of_a_list_has_its_relevance(requires_grad):
    x = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=requires_grad)
    at_input = read("sum", True, x)
    assert [value.tolist() for value in at_input.relevance()] == [[3, 3], [6, 6]]
    # What comes from no input begins at the module.
    assert [value.tolist() for value in at_input.values] == [[1, 3], [1, 9]]
    at_output = read("sum", False, x)
    assert [value.tolist() for value in at_output.relevance()] == [[1, 1], [5, 5]]


@pytest.mark.parametrize(("path", "calls"), [("last", 2), ("unused", 0)])
def test_a_module_that_does_not_run_once_is_refused(path, calls):
    with pytest.raises(
        ValueError, match=rf"the layer {path} \(Identity\) ran {calls} times in the forward pass.*run once"
    ):
        read(path, False, torch.ones(2, requires_grad=True)).relevance()
