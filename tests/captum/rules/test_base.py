"""What a rule is: how it is attached, what it is handed, what it divides by, and what it leaves."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from canon_bridge.captum import LRP, presets, rules
from canon_bridge.captum.attach import attached
from canon_bridge.captum.rules.base import Call, are_data, modified
from canon_bridge.core import ElementWise
from canon_bridge.core.explicit import Slot
from tests.captum.test_lrp_counts import network
from tests.operations.networks import finish
from tests.support.errors import relative_error
from tests.support.models import TARGET, gradient_times_input, images, small_densenet
from tests.support.snapshot import Snapshot


class Thirds(rules.Rule):
    """A third of the output's relevance for each input, and what it was called with."""

    def propagate(self, call, inputs, relevance):
        self.called = call.forward(*(10 * value for value in inputs)), inputs
        return tuple(relevance.sum(-1, keepdim=True).expand_as(value) / 3 for value in inputs)


@pytest.mark.parametrize("is_container", [False, True])
def test_a_rule_takes_the_place_of_the_module_until_its_handles_are_removed(is_container):
    module = nn.Bilinear(1, 2, 2, bias=False).double().requires_grad_(False)
    if is_container:
        module.inside = nn.Identity()
    a = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[3.0, 5.0]], dtype=torch.float64, requires_grad=True)
    relevance = torch.tensor([[1.0, 5.0]], dtype=torch.float64)
    expected = torch.autograd.grad(module(a, b), (a, b), relevance)
    rule = Thirds()
    handles = rule.attach(module)
    output = module(a, b)
    assert torch.is_grad_enabled()
    assert [found.tolist() for found in torch.autograd.grad(output, (a, b), relevance)] == [[[2]], [[2, 2]]]
    with_others, inputs = rule.called
    assert torch.allclose(with_others, 100 * output, rtol=1e-14, atol=0)
    assert all(map(torch.equal, inputs, (a, b)))
    for handle in handles:
        handle.remove()
    assert all(map(torch.equal, torch.autograd.grad(module(a, b), (a, b), relevance), expected))


@pytest.mark.parametrize("is_container", [False, True])
def test_arguments_by_name_are_arguments(is_container):
    module = nn.Bilinear(1, 2, 2, bias=False).double().requires_grad_(False)
    if is_container:
        module.inside = nn.Identity()
    a, b = (torch.randn(1, size, dtype=torch.float64, requires_grad=True) for size in (1, 2))
    relevance, rule = torch.tensor([[1.0, 5.0]], dtype=torch.float64), Thirds()
    rule.attach(module)
    for output in (module(a, input2=b), module(input2=b, input1=a)):
        found = torch.autograd.grad(output, (a, b), relevance)
        assert [share.tolist() for share in found] == [[[2]], [[2, 2]]]
        assert torch.allclose(rule.called[0], 100 * output, rtol=1e-14, atol=0)


def test_gradients_are_recorded_again_after_an_exception_in_a_module():
    layer = nn.Linear(2, 2)
    rules.ZPlus().attach(layer)
    with pytest.raises(RuntimeError, match="shapes"):
        layer(torch.ones(1, 3))
    assert torch.is_grad_enabled()


def test_rules_inside_a_module_with_a_rule_stand_back():
    model, x = nn.Sequential(nn.Linear(2, 2, bias=False)).double(), torch.rand(1, 2, dtype=torch.float64) + 1
    leaf, relevance = x.clone().requires_grad_(), torch.ones(1, 2, dtype=torch.float64)
    for rule, module in ((rules.Pass(), model[0]), (rules.Epsilon(1e-30), model)):
        rule.attach(module)
    (found,) = torch.autograd.grad(model(leaf), leaf, relevance)
    weight = model[0].weight.detach()
    assert torch.allclose(found, x * (relevance / (x @ weight.T) @ weight), rtol=1e-12, atol=0)


def test_data_are_no_integers_and_nothing_besides_the_data_of_an_explicit_module():
    x, index = torch.ones(2), torch.ones(2, dtype=torch.int64)
    assert are_data(nn.Bilinear(1, 1, 1), (x, index, 3.0, x)) == (True, False, False, True)
    assert are_data(ElementWise(torch.pow, (Slot(0), Slot(1)), {}, 1), (x, x)) == (True, False)
    power = Call(ElementWise(torch.pow, (Slot(0), Slot(1)), {}, 1), (x, 3 * x))
    assert power.forward(2 * x).tolist() == [8, 8]


def test_what_is_divided_by_is_moved_away_from_zero():
    denominator = torch.tensor([2.0, -2.0, 0.0], dtype=torch.float64)
    ones = torch.ones_like(denominator)
    assert rules.ZPlus(0.5).divide(ones, denominator).tolist() == [1 / 2.5, 1 / -2.5, 1 / 0.5]
    assert rules.ZPlus(lambda z: z + 3).divide(ones, denominator).tolist() == [1 / 5, 1, 1 / 3]


def test_parameters_are_changed_or_zero_and_themselves_again_after_an_exception():
    layer = nn.Linear(1, 1)
    weight, bias = layer.weight, layer.bias
    seen = []

    def fail():
        with modified(layer, lambda value: -2 * value, ("bias",)):
            seen.extend((layer.weight, layer.bias))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [-2 * weight, 0]
    assert layer.weight is weight
    assert layer.bias is bias


@pytest.mark.parametrize(
    ("stabilizer", "error", "message"),
    [
        ("small", TypeError, "the stabilizer is 'small'; it must be a number or a function of the denominator"),
        (-1e-6, ValueError, "the stabilizer is -1e-06; it must not be negative"),
    ],
)
def test_a_wrong_stabilizer_is_explained(stabilizer, error, message):
    with pytest.raises(error, match=message):
        rules.ZPlus(stabilizer)


def test_a_hook_of_the_user_sees_a_graph():
    model, x = small_densenet(), images()
    expected = LRP(model).attribute(x, target=TARGET)
    seen = []
    handle = model.features.conv0.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    try:
        assert LRP(model).attribute(x, target=TARGET).equal(expected)
    finally:
        handle.remove()
    assert True in seen


@pytest.mark.parametrize("preset", [presets.epsilon(), presets.epsilon_plus()], ids=lambda preset: preset.name)
def test_an_exception_in_a_forward_leaves_gradients_recorded(preset):
    class Fails(nn.ReLU):
        def forward(self, input):
            if self.fails:
                raise KeyError("in a forward")
            return super().forward(input)

    model, x = network(Fails), images(2, 8)
    for module in model.modules():
        module.fails = False
    lrp = LRP(model, preset)
    expected = lrp.attribute(x, target=TARGET)
    model[5].fails = True
    with pytest.raises(KeyError, match="in a forward"):
        lrp.attribute(x, target=TARGET)
    assert torch.is_grad_enabled()
    model[5].fails = False
    assert lrp.attribute(x, target=TARGET).equal(expected)


@pytest.mark.parametrize("type_name", ["GRU", "a container"])
def test_a_rule_on_a_module_that_puts_out_several_values_says_what_to_do(type_name):
    class Two(nn.Sequential):
        def forward(self, input):
            return self[0](input), input

    module = nn.GRU(3, 4) if type_name == "GRU" else Two(nn.Linear(3, 4))
    module.rule = rules.Epsilon()
    model = nn.Sequential(module)
    message = r"Epsilon is on a \w+ that puts out a tuple"
    with attached(model, presets.epsilon(), is_canonical=True), pytest.raises(TypeError, match=message):
        model(torch.zeros(2, 3))
    with pytest.raises(TypeError, match="Set `rule` on the modules inside it instead"):
        rules.Epsilon().forward_hook(module, (torch.zeros(2, 3),), (torch.zeros(2), torch.zeros(2)))


class Overwrites(nn.Module):
    """An operation, after which a part of what it has read is another; ``in_place`` or, as a reference, in a copy."""

    def __init__(self, operation, in_place):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(8, 5)
        self.layer = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.operation, self.in_place = operation, in_place

    def forward(self, x):
        y = self.norm(self.conv(x))
        index = y.argsort(1)
        z = self.operation(self.layer, y, index)
        if self.in_place:
            y[:, :1] += 0.7
            index.zero_()
        else:
            y, index = torch.cat([y[:, :1] + 0.7, y[:, 1:]], 1), index * 0
        return self.head(torch.cat([z.mean((2, 3)), y.gather(1, index).mean((2, 3))], 1))


READ_BEFORE = {
    "sum": lambda layer, y, index: y + 1,
    "sum of two": lambda layer, y, index: y + y.flip(1),
    "upsampling": lambda layer, y, index: F.interpolate(y, scale_factor=2),
    "pool": lambda layer, y, index: F.avg_pool2d(y, 2),
    "circular convolution": lambda layer, y, index: layer(y),
    "view": lambda layer, y, index: (y[:, :, 1:] + y[:, :, :-1]).relu(),
    "two readers": lambda layer, y, index: F.avg_pool2d(layer(y), 2) + F.avg_pool2d(y, 2),
    "an index": lambda layer, y, index: torch.zeros_like(y).scatter_add(1, index, y),
}


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("name", READ_BEFORE)
def test_what_a_forward_overwrites_after_a_module_has_read_it_is_kept_as_it_was(name, prefer):
    model, reference = (finish(lambda flag=flag: Overwrites(READ_BEFORE[name], flag)) for flag in (True, False))
    x = images(2, 6)
    assert relative_error(model(x), reference(x)) < 1e-14
    before, expected = Snapshot(model), gradient_times_input(reference, x)
    lrp = LRP(model, presets.epsilon(1e-30), prefer=prefer)
    for _ in range(2):
        assert relative_error(lrp.attribute(x, target=TARGET), expected) < 1e-9
    expected = LRP(reference, prefer=prefer).attribute(x, target=TARGET)
    assert relative_error(LRP(model, prefer=prefer).attribute(x, target=TARGET), expected) < 1e-12
    before.check()
