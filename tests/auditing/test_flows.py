"""What flows through each call: relevance at both of its ends, the calls inside it, and nothing left behind."""

import pytest
import torch
from torch import nn

from canon_bridge.auditing.flows import Sums, Visit, recorded, tap, total
from tests.support.snapshot import Snapshot


class Doubles(nn.Module):
    """A layer that is called twice, and operations that are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)
        nn.init.eye_(self.layer.weight)

    def forward(self, x, scale=1.0):
        return self.layer(self.layer(x) * scale) + x


def flows(x, relevance, account=lambda visit, relevance: {}):
    """Return the record of the model, and the gradient of the input."""
    model = Doubles().double().requires_grad_(False)
    before = Snapshot(model)
    with recorded(model, account) as root:
        (gradient,) = torch.autograd.grad(model(x, 3.0), x, relevance)
        model.layer(x)  # after the model has returned: not recorded
    before.check()
    return root, gradient


def ends(visit):
    """Return the sums of relevance at the output and at the input."""
    return [(end.net, end.gross) for end in (visit.output, visit.input)]


def test_calls_are_nested_and_each_has_relevance_at_both_ends():
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    root, gradient = flows(x, torch.tensor([[5.0, -1.0]], dtype=torch.float64))
    (model,) = root.inside
    first, second = model.inside
    assert [visit.path for visit in (model, first, second)] == ["", "layer", "layer"]
    assert gradient.tolist() == [[20, -4]]
    assert ends(model) == [(4, 6), (16, 24)]
    assert ends(first) == [(12, 18), (12, 18)]
    assert ends(second) == [(4, 6), (4, 6)]
    assert model.own == 4 - 16
    assert first.own == second.own == 0


def test_the_account_of_each_call_is_asked_with_its_arguments_and_what_carries_the_data():
    asked = []

    def account(visit, relevance):
        asked.append((visit.path, visit.carries, [getattr(a, "requires_grad", a) for a in visit.arguments]))
        return {"sum": total(relevance)}

    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    root, _ = flows(x, torch.ones(1, 2, dtype=torch.float64), account)
    assert asked == [("", (True, False), [False, 3.0]), ("layer", (True,), [False]), ("layer", (True,), [False])]
    assert [visit.shares["sum"] for visit in root.inside[0].inside] == [6, 2]
    assert all(visit.arguments == () for visit in root.inside[0].inside)


class Upsamples(nn.Module):
    """A layer that is told its size by name, and a sum, before a part of what both have read is overwritten."""

    def __init__(self):
        super().__init__()
        self.up, self.pool = nn.ConvTranspose1d(1, 1, 3, 2).double(), nn.AvgPool1d(2)

    def forward(self, x):
        y = x * 2
        z = self.up(y, output_size=(8,)).sum() + self.pool(y).sum()
        y[:] = 0
        return z + y.sum()


def test_a_call_is_recorded_with_what_it_was_given_by_name_and_with_values_that_are_overwritten_later():
    model, x, found = Upsamples(), torch.rand(1, 1, 3, dtype=torch.float64), {}
    with recorded(model, lambda visit, _: found.update({visit.path: visit.arguments}) or {}):
        output = model(x.requires_grad_())
    output.backward()
    assert found["up"][1] == (8,)
    assert found["up"][0].equal(2 * x)
    assert found["pool"][0].equal(2 * x)


def test_what_a_call_took_is_without_the_calls_inside_it():
    inner = Visit("a.b", nn.Identity(), output=Sums(9, 9), input=Sums(5, 6))
    assert inner.own == 4
    assert Visit("a", nn.Identity(), inside=[inner, inner], output=Sums(10, 10), input=Sums(1, 1)).own == 1


def test_a_tap_reaches_tensors_in_lists_and_leaves_all_else():
    told = []
    leaf, constant = torch.ones(2, requires_grad=True), torch.ones(2)
    ((through, same), number) = tap([(leaf, constant), 7], told.append)
    assert same is constant
    assert number == 7
    through.mul_(3)  # what is overwritten is no view of the leaf
    through.backward(torch.tensor([1.0, 2.0]))
    assert [values.tolist() for values in told] == [[3, 6]]
    assert leaf.tolist() == [1, 1]
    assert leaf.grad.tolist() == [3, 6]


def test_sums_are_in_double_precision():
    values = torch.tensor([1.0, 1e-8, -1.0])
    assert total(values) == pytest.approx(1e-8, rel=1e-6)
    sums = Sums()
    sums.add(values)
    sums.add(values)
    assert sums.net == pytest.approx(2e-8, rel=1e-6)
    assert sums.gross == pytest.approx(4 + 2e-8, rel=1e-15)
