"""Parameters that are tied, shared, views, frozen or of a class of their own, and their gradients."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize
from tests.inside.models import made, mostly
from tests.support.errors import relative_error
from tests.support.named_norms import randomize_any
from tests.support.pieces import BOTH, conv, image, norm
from tests.support.snapshot import Snapshot


def chain(*layers: nn.Module) -> nn.Sequential:
    return randomize_any(nn.Sequential(*layers).double())  # pyright: ignore[reportReturnType]


def tied_with_an_unmerged_one() -> nn.Module:
    model = chain(conv(), norm(), nn.Softmax(1), conv(), nn.Tanh())
    model[3].weight = model[0].weight
    return model


def tied_where_both_are_merged() -> nn.Module:
    model = chain(conv(), norm(), nn.ReLU(), conv(), norm())
    model[3].weight, model[3].bias = model[0].weight, model[0].bias
    return model


def tied_norms() -> nn.Module:
    model = chain(conv(), norm(), nn.ReLU(), conv(), norm(), nn.Softmax(1), norm(), nn.Softmax(1))
    for layer in (model[4], model[6]):
        layer.weight, layer.running_mean = model[1].weight, model[1].running_mean
    return model


class SeveralNames(nn.Module):
    """Every layer under two or three names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.c, self.soft, self.norm2 = conv(), norm(), conv(), nn.Softmax(1), norm()
        self.b, self.again, self.list = self.a, self.norm, nn.ModuleList([self.a, self.norm, self.norm2])
        self.d = self.norm2
        randomize_any(self.double())

    def forward(self, x: Tensor) -> Tensor:
        return self.soft(self.d(self.soft(self.c(self.again(self.b(x))))))


def one_vector() -> nn.Module:
    """All parameters are views of one flat tensor, as after ``vector_to_parameters``."""
    model = chain(conv(), norm(), nn.ReLU(), conv(), norm())
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(model.parameters()), model.parameters())
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert len(storages) == 1
    return model


def expanded() -> nn.Module:
    model = chain(norm(), nn.ReLU(), conv(), norm(), nn.Softmax(1), norm(), nn.Softmax(1))
    model[2].weight = nn.Parameter(torch.randn(4, 1, 3, 3).double().expand(4, 4, 3, 3))
    for layer in (model[0], model[3], model[5]):
        layer.weight = nn.Parameter(torch.tensor(0.7).double().expand(4))
        layer.running_var = torch.tensor(0.7).double().expand(4)
    return model


def transposed() -> nn.Module:
    model = chain(norm(), nn.ReLU(), conv(), norm())
    model[2].weight = nn.Parameter(torch.randn(4, 4, 3, 3).double().transpose(0, 1))
    return model


class Named(Tensor):
    """A tensor subclass without behaviour of its own."""


def of_a_subclass() -> nn.Module:
    model = chain(norm(), nn.ReLU(), conv(), norm())
    for layer in model[0], model[2]:
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Named))  # pyright: ignore
    model[0].running_mean = model[0].running_mean.as_subclass(Named)
    return model


KINDS: list[Callable[[], nn.Module]] = [
    tied_with_an_unmerged_one,
    tied_where_both_are_merged,
    tied_norms,
    SeveralNames,
    one_vector,
    expanded,
    transposed,
    of_a_subclass,
]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("prefer", BOTH)
def test_parameters_of_every_kind_are_merged_and_come_back(prefer: str, make: Callable[[], nn.Module]) -> None:
    model, x = make(), image()
    before, expected = Snapshot(model), model(x).detach()
    with canonize(model, prefer=prefer):
        assert relative_error(model(x).detach(), expected) < 1e-12
    before.check()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("prefer", BOTH)
def test_another_model_with_the_same_parameters_does_not_change(prefer: str) -> None:
    model, x = chain(conv(), norm(), nn.ReLU(), conv(), norm()), image()
    other = copy.deepcopy(model)
    for layer, owner in zip(other, model, strict=True):
        vars(layer)["_parameters"].update(owner._parameters)
        vars(layer)["_buffers"].update(owner._buffers)
    before, expected = Snapshot(other), other(x)
    with canonize(model, prefer=prefer):
        before.check()
        assert torch.equal(other(x), expected)
        assert model[0].weight is not other[0].weight or prefer == "right"
    with canonize(model, prefer=prefer), canonize(other, prefer="left"):
        assert relative_error(other(x), expected) < 1e-12
    before.check()


@pytest.mark.parametrize("trained", [None, "conv1.weight", "conv1.bias", "norm1.weight", "norm2.bias", "conv2.weight"])
@pytest.mark.parametrize("prefer", BOTH)
def test_frozen_parameters_stay_frozen(prefer: str, trained: str | None) -> None:
    for name in ("everything", "branches", "leftover") if trained is None else ("pre-activation",):
        model, x, expected = made(name)
        model.requires_grad_(False)
        if trained is not None:
            model.get_parameter(trained).requires_grad_(True)
        before = Snapshot(model)
        with canonize(model, prefer=prefer):
            assert [key for key, value in model.named_parameters() if value.requires_grad] == [trained] * bool(trained)
            value = model(x)
            assert value.requires_grad == bool(trained)
            assert relative_error(value.detach(), expected) < 1e-12
        before.check()


def gradients(model: nn.Module) -> dict[str, tuple[Any, Any]]:
    kept = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: (gradient, None if gradient is None else gradient.clone()) for name, gradient in kept.items()}


@pytest.mark.parametrize("prefer", BOTH)
@pytest.mark.parametrize("name", mostly("everything", "branches"))
def test_gradients_that_are_there_are_kept(name: str, prefer: str) -> None:
    model, x, _ = made(name)
    model(x).square().sum().backward()
    kept = gradients(model)
    assert any(gradient is not None for gradient, _ in kept.values())
    with canonize(model, prefer=prefer):
        merged = {key for key, parameter in model.named_parameters() if parameter.grad is None}
        model(x).detach()
    for key, (gradient, value) in kept.items():
        now = model.get_parameter(key).grad
        assert now is gradient
        assert value is None or torch.equal(now, value)
    assert merged  # new parameters have no gradient yet


@pytest.mark.parametrize("prefer", BOTH)
def test_a_backward_pass_in_the_block_adds_to_the_gradients_of_unmerged_parameters_alone(prefer: str) -> None:
    model, x = chain(conv(), norm(), nn.ReLU(), conv(), norm(), nn.Softmax(1), conv(4, 3)), image()
    (expected,) = torch.autograd.grad(model(x).square().sum(), [model[6].weight])
    with canonize(model, prefer=prefer):
        model(x).square().sum().backward()
        assert model[3].weight.grad is not None
    assert relative_error(model[6].weight.grad, expected) < 1e-12
    assert model[3].weight.grad is None
    assert model[1].weight.grad is None
