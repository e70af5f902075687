"""First and second derivatives through the canonical model, in both modes of automatic differentiation."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacfwd, jacrev, jvp, vmap

from canon_bridge import canonize
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, conv, norm
from tests.support.statistics import randomize

SMOOTH: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "mish": nn.Mish,
    "min and max": lambda: nn.Sequential(nn.MaxPool2d(2, 1), nn.Tanh()),
    "average": lambda: nn.Sequential(nn.SiLU(), nn.AvgPool2d(2)),
}
PIECES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(True),
    "leaky relu": lambda: nn.LeakyReLU(0.2),
    "prelu": lambda: nn.PReLU(4),
    "max pool": lambda: nn.MaxPool2d(2),
}


class Twice(nn.Module):
    """BatchNorm, activation, convolution, twice: right, and left where that is wanted."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.act1, self.conv1 = norm(), make(), conv()
        self.norm2, self.act2, self.conv2 = norm(), make(), conv(4, 2)
        randomize(self.double())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.act2(self.norm2(self.conv1(self.act1(self.norm1(x))))))


def example() -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 1, 4, 4, 4, dtype=torch.float64)
    return x[0].requires_grad_(), x[1]


def first_and_second(model: nn.Module, x: Tensor, direction: Tensor) -> list[Tensor]:
    """Return the gradient of a curved function of the output, and its second derivative along a direction."""
    (gradient,) = torch.autograd.grad(model(x).sin().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((gradient * direction).sum(), x)
    return [gradient.detach(), second]


@pytest.mark.parametrize("activation", [*SMOOTH, *PIECES])
@pytest.mark.parametrize("prefer", BOTH)
def test_second_derivatives_are_those_of_the_original(prefer: str, activation: str) -> None:
    model, (x, direction) = Twice({**SMOOTH, **PIECES}[activation]), example()
    expected = first_and_second(model, x, direction)
    assert min(value.abs().max() for value in expected) > 1e-6
    with canonize(model, prefer=prefer, clipped="pass"):
        values = first_and_second(model, x, direction)
        # What a merge without the slope of the activation would give: the first derivative for the second.
        assert relative_error(values[0], expected[1]) > 1e-2
    for value, right in zip(values, expected, strict=True):
        assert relative_error(value, right) < 1e-11


@pytest.mark.parametrize("activation", ["relu", "silu", "tanh", "leaky relu", "max pool", "average"])
@pytest.mark.parametrize("prefer", BOTH)
def test_so_they_are_with_absorb_where_no_rule_is_attached(prefer: str, activation: str) -> None:
    model, (x, direction) = Twice({**SMOOTH, **PIECES}[activation]), example()
    expected = first_and_second(model, x, direction)
    with canonize(model, prefer=prefer):
        for value, right in zip(first_and_second(model, x, direction), expected, strict=True):
            assert relative_error(value, right) < 1e-11


@pytest.mark.parametrize("activation", ["tanh", "silu", "softplus", "relu", "min and max"])
@pytest.mark.parametrize("prefer", BOTH)
def test_gradcheck_and_gradgradcheck(prefer: str, activation: str) -> None:
    model, (x, _) = Twice({**SMOOTH, **PIECES}[activation]), example()
    with canonize(model, prefer=prefer, clipped="pass"):
        assert torch.autograd.gradcheck(model, (x,), fast_mode=True)
        assert torch.autograd.gradgradcheck(model, (x,), fast_mode=True)


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "jvp": lambda model, x, v: jvp(model, (x,), (v,))[1],
    "vmap": lambda model, x, v: vmap(lambda z: model(z[None])[0])(torch.cat([x, v])),
    "jacfwd": lambda model, x, v: jacfwd(lambda z: model(z).sum((2, 3)))(x),
    "jacrev": lambda model, x, v: jacrev(lambda z: model(z).sum((2, 3)))(x),
    "hessian": lambda model, x, v: hessian(lambda z: model(z).sin().sum())(x),
    "functional_call": lambda model, x, v: functional_call(model, dict(model.named_parameters()), (x,)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("activation", ["tanh", "silu", "relu", "prelu", "min and max"])
@pytest.mark.parametrize("clipped", ["absorb", "pass"])
@pytest.mark.parametrize("prefer", BOTH)
def test_transforms_of_torch_func(prefer: str, clipped: str, activation: str, transform: str) -> None:
    model, (x, direction) = Twice({**SMOOTH, **PIECES}[activation]), example()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch scripts its own formulas at the first call
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = TRANSFORMS[transform](model, x.detach(), direction).detach()
        with canonize(model, prefer=prefer, clipped=clipped):
            value = TRANSFORMS[transform](model, x.detach(), direction).detach()
    assert relative_error(value, expected) < 1e-11
