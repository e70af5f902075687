"""Sums, differences, factors and gates: the relevance that is written here by hand, and the same in both frameworks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zennit.composites import EpsilonPlus, GuidedBackprop

from canon_bridge import plan
from canon_bridge.captum import LRP, presets
from canon_bridge.zennit import ModelCanonizer
from tests.support.errors import relative_error

pytestmark = pytest.mark.zennit

# On two tensors: the function, and the relevance of each operand for the relevance r of the output.
CASES = {
    "a gate": (lambda a, b: a * torch.sigmoid(b), lambda a, b, r: (r, 0 * r)),
    "a gate first": (lambda a, b: F.hardsigmoid(b) * a, lambda a, b, r: (r, 0 * r)),
    "a gate for each channel": (
        lambda a, b: a * torch.sigmoid(b.mean((2, 3), keepdim=True)).expand_as(a),
        lambda a, b, r: (r, 0 * r),
    ),
    "a gate of the type of its signal": (
        lambda a, b: a * torch.sigmoid(b).to(a),
        lambda a, b, r: (r, 0 * r),
    ),
    "a gate by its size": (lambda a, b: b.mean((2, 3), keepdim=True) * a, lambda a, b, r: (r, 0 * r)),
    "a gate and one": (lambda a, b: (1 + torch.tanh(b)) * a, lambda a, b, r: (r, 0 * r)),
    "a softmax": (lambda a, b: a * F.softmax(b, 1), lambda a, b, r: (r, 0 * r)),
    "hard swish by hand": (lambda a, b: a * F.relu6(a + 3) / 6 + 0 * b, None),
    "two signals": (lambda a, b: a * b, lambda a, b, r: (r / 2, r / 2)),
    "a factor": (
        lambda a, b: 3 * a + b / 2,
        lambda a, b, r: (3 * a / (3 * a + b / 2) * r, b / 2 / (3 * a + b / 2) * r),
    ),
    "a difference": (lambda a, b: a - b, lambda a, b, r: (a / (a - b) * r, -b / (a - b) * r)),
    "a negative": (lambda a, b: -a + b, lambda a, b, r: (-a / (b - a) * r, b / (b - a) * r)),
    "a constant": (lambda a, b: 2 - a + 0 * b, lambda a, b, r: (-a / (2 - a) * r, 0 * r)),
    "a quotient": (lambda a, b: a / (1 + b.abs()), lambda a, b, r: (r, 0 * r)),
}


# Where elements meet, the last one stays; torch has a gradient for all of them.
MEET = torch.tensor([0, 2, 2, 3])


def written(a, b):
    a = 2 * a
    a[..., MEET] = b
    return a


def written_by_a_list(a, b):
    out = a.new_zeros(a.shape)
    out[:, :, MEET.tolist()] = b
    return out


def _written(a, b, r):
    return r * torch.tensor([0, 1, 0, 0]), r[..., MEET] * torch.tensor([1, 0, 1, 1])


def _unpooled(a, b, r):
    taken = r.flatten(2)[..., MEET] * torch.tensor([1, 0, 1, 1])
    return 0 * r, F.pad(taken.view(1, 3, 2, 2), (0, 2, 0, 2))


PLACED = {
    "setitem": (written, _written),
    "setitem by a list": (
        written_by_a_list,
        lambda a, b, r: (0 * r, (r[:, :, MEET].mT * torch.tensor([1, 0, 1, 1])).mT),
    ),
    "index_copy": (lambda a, b: a.index_copy(3, MEET, b), _written),
    "scatter": (lambda a, b: a.scatter(index=MEET.expand(b.shape), src=b, dim=3), _written),
    "scatter_": (lambda a, b: (3 * a).scatter_(3, MEET.expand(b.shape), b), _written),
    "index_put": (
        lambda a, b: torch.index_put(a.transpose(0, 3), (MEET,), b.transpose(0, 3)).transpose(0, 3),
        _written,
    ),
    "max_unpool2d": (
        lambda a, b: F.max_unpool2d(b[..., :2, :2], MEET.view(2, 2).expand(1, 3, 2, 2), 2),
        _unpooled,
    ),
    "MaxUnpool2d": (
        lambda a, b: nn.MaxUnpool2d(2)(b[..., :2, :2], MEET.view(2, 2).expand(1, 3, 2, 2)),
        _unpooled,
    ),
}


class Two(nn.Module):
    """A function of two tensors, and a sum over all, so that relevance at the function is its output."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, a, b):
        return self.function(a, b)


def subject(name):
    a, b = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    return Two((CASES | PLACED)[name][0]).eval(), a, b, torch.randn(1, 3, 4, 4, dtype=torch.float64)


def by_zennit(model, inputs, relevance, composite):
    inputs = tuple(value.clone().requires_grad_() for value in inputs)
    with composite.context(model) as modified:
        output = modified(*inputs)
        found = torch.autograd.grad(output, inputs, relevance, allow_unused=True)
    return [torch.zeros_like(x) if r is None else r for x, r in zip(inputs, found, strict=True)]


@pytest.mark.parametrize("name", CASES | PLACED)
def test_relevance_by_hand_and_in_zennit(name):
    model, a, b, relevance = subject(name)
    composite = EpsilonPlus(stabilizer=1e-30, canonizers=[ModelCanonizer()])
    found = by_zennit(model, (a, b), relevance, composite)
    if (by_hand := (CASES | PLACED)[name][1]) is not None:
        for one, wanted in zip(found, by_hand(a, b, relevance), strict=True):
            assert torch.allclose(one, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES | PLACED)
def test_captum_agrees(name):
    class Flat(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.last = inner, nn.Linear(48, 2).double()

        def forward(self, a, b):
            return self.last(self.inner(a, b).flatten(1))

    inner, a, b, _ = subject(name)
    model = Flat(inner).eval()
    found = LRP(model, presets.epsilon_plus()).attribute((a, b), target=1)
    output = model(a, b).detach()
    seed = torch.zeros_like(output).index_put((torch.tensor([0]), torch.tensor([1])), output[0, 1])
    expected = by_zennit(model, (a, b), seed, EpsilonPlus(canonizers=[ModelCanonizer()]))
    for one, wanted in zip(found, expected, strict=True):
        assert torch.allclose(one, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_without_rules_zennit_computes_gradients(name):
    model, a, b, relevance = subject(name)
    found = by_zennit(model, (a, b), relevance, GuidedBackprop(canonizers=[ModelCanonizer()]))
    leaves = (a.clone().requires_grad_(), b.clone().requires_grad_())
    expected = torch.autograd.grad(model(*leaves), leaves, relevance, allow_unused=True)
    for one, wanted in zip(found, expected, strict=True):
        assert relative_error(one, wanted) < 1e-12 or (wanted is None and not one.any()) or torch.equal(one, wanted)


@pytest.mark.parametrize("size", [2, 3])
def test_max_unpooling_by_windows_that_overlap(size):
    class Unpools(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.MaxPool2d(size, 2, padding=size // 3, return_indices=True)
            self.inner, self.unpool, self.last = nn.Conv2d(3, 3, 1), nn.MaxUnpool2d(2), nn.Linear(3, 2)

        def forward(self, x):
            h, index = self.pool(x)
            h = self.inner(h)
            h = self.unpool(h, index, output_size=x.shape) + self.unpool(h, indices=index, output_size=x.size())
            return self.last(h.amax((2, 3)))

    torch.manual_seed(0)
    model, x = Unpools().double().eval(), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    found = LRP(model, presets.epsilon(1e-30)).attribute(x, target=1)
    wanted = torch.zeros_like(x)
    for i in range(x.numel()):  # linear in each element, as long as no maximum changes
        step = torch.zeros_like(x).flatten().index_fill(0, torch.tensor(i), 1e-6).view(x.shape)
        wanted += x * step * (model(x + step) - model(x - step))[0, 1].item() / 2e-12
    assert relative_error(found, wanted) < 1e-8


def test_what_is_put_into_a_part_of_a_tensor_is_named():
    def function(a, b):
        out = torch.zeros_like(a)
        part = out[0]
        part[..., MEET] = b[0]
        return out

    (found,) = plan(Two(function).eval()).uncovered
    assert str(found).startswith("setitem")
    assert "read under another name" in str(found)
