"""Rules that do not look at contributions: relevance as it is, all of it for the signal, or for the winner."""

import pytest
import torch
from torch import nn

from canon_bridge.captum import rules
from canon_bridge.captum.rules.base import Call
from canon_bridge.core import Multiply, Product
from canon_bridge.core.explicit import Slot
from tests.support.errors import relative_error


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def propagated(rule, module, arguments, relevance):
    return rule.propagate(Call(module, arguments), arguments, relevance)


def test_pass_hands_all_to_the_first_input_without_its_values():
    first, second = torch.empty(2, 3, device="meta"), torch.empty(2, 1, device="meta")
    relevance = random(2, 3)
    found = propagated(rules.Pass(), nn.Identity(), (first, second), relevance)
    assert torch.equal(found[0], relevance)
    assert torch.equal(found[1], torch.zeros(2, 1, dtype=torch.float64))
    assert not rules.Pass().keeps_inputs

    class Own(rules.Pass):
        def propagate(self, call, inputs, relevance):
            return inputs

    assert Own().keeps_inputs


@pytest.mark.parametrize(
    ("signal", "left", "right", "shares"),
    [
        (0, (2, 3, 4), (2, 3, 4), (1, 0)),
        (1, (2, 3, 4), (2, 3, 4), (0, 1)),
        (1, (2, 3, 4), (3, 1), (0, 1)),  # as named, although it is the smaller one
        (None, (2, 3, 4), (2, 3, 1), (1, 0)),
        (None, (2, 1, 1), (2, 3, 4), (0, 1)),
        (None, (2, 3, 1), (2, 1, 3), (0.5, 0.5)),
    ],
)
def test_the_signal_takes_all_and_copies_are_summed(signal, left, right, shares):
    operands = random(*left), random(*right)
    relevance = random(*torch.broadcast_shapes(left, right))
    found = propagated(rules.SignalTakesAll(), Multiply(signal), operands, relevance)
    for one, operand, share in zip(found, operands, shares, strict=True):
        leaf = torch.zeros_like(operand, requires_grad=True)
        (expected,) = torch.autograd.grad(leaf.expand_as(relevance), leaf, relevance)  # summed over copies
        assert torch.allclose(one, share * expected, rtol=1e-14, atol=1e-15)


def test_a_number_is_no_signal():
    x, relevance = random(2, 3), random(2, 3)
    rule = rules.SignalTakesAll()
    (found,) = rule.propagate(Call(Multiply(), (2.0, x)), (x,), relevance)
    assert torch.equal(found, relevance)


@pytest.mark.parametrize(("signal", "shares"), [(0, (1, 0)), (1, (0, 1)), (None, (0.5, 0.5))])
def test_the_signal_of_a_product_of_matrices_has_the_epsilon_rule(signal, shares):
    a, b, relevance = random(3, 4), random(4, 2), random(3, 2)
    module = Product(torch.matmul, (Slot(0), Slot(1)), {}, 2, signal)
    found = propagated(rules.SignalTakesAll(0.1), module, (a, b), relevance)
    z = a @ b
    factor = relevance / (z + 0.1 * z.sign())
    terms = a[:, :, None] * b[None] * factor[:, None]
    for one, summed, share in zip(found, (terms.sum(2), terms.sum(0)), shares, strict=True):
        assert relative_error(one + 1, share * summed + 1) < 1e-14


def test_the_winner_of_each_window_takes_all():
    x = torch.tensor([[[1.0, 5.0, 2.0, 4.0, 3.0]]], dtype=torch.float64)
    relevance = torch.tensor([[[7.0, 11.0]]], dtype=torch.float64)
    (found,) = propagated(rules.WinnerTakesAll(), nn.MaxPool1d(3, 2), (x,), relevance)
    assert found.tolist() == [[[0, 7, 0, 11, 0]]]
    (overlapping,) = propagated(rules.WinnerTakesAll(), nn.MaxPool1d(3, 1), (x,), torch.tensor([[[7.0, 11.0, 2.0]]]))
    assert overlapping.tolist() == [[[0, 18, 0, 2, 0]]]
