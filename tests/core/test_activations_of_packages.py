"""Activations and pools that timm writes anew: a norm passes them as it passes those of torch.

Each test runs on look-alikes that are in the table under their own names, and on the modules of timm where it is there.
"""

from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import plan
from canon_bridge.core.activations import ACTIVATIONS, MAX_POOLS, absorb_into_max_pool, find_absorber
from canon_bridge.core.affine import Affine
from tests.core.test_activations_general import NORMAL, ROUNDINGS, SHIFTS, SMALL, apply, error, grid, inputs
from tests.core.test_activations_general import absorb as absorb_into
from tests.support.pieces import check, conv, image, norm
from tests.support.statistics import randomize

NAMES = [name for name in (*ACTIVATIONS, *MAX_POOLS) if isinstance(name, str) and name.startswith("timm.")]
POOL = "timm.layers.pool2d_same.MaxPool2dSame"


class Swish(nn.Module):
    """Written with a product, which would be a gate if the module were not known."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(x.sigmoid()) if self.inplace else x.mul(x.sigmoid())


class PReLU(nn.PReLU):
    def __init__(self, num_parameters: int = 1, init: float = 0.25, inplace: bool = False) -> None:
        super().__init__(num_parameters, init)

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight)


class MaxPool2dSame(nn.MaxPool2d):
    """Pads at the upper ends alone, with what never wins."""

    def __init__(self, kernel_size: int, stride: int | None = None) -> None:
        super().__init__(kernel_size, stride)

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(input, (0, 1, 0, 1), value=-torch.inf), self.kernel_size, self.stride)


LOOK_ALIKES = {
    "timm.layers.activations.Swish": Swish,
    "timm.layers.activations.PReLU": PReLU,
    POOL: MaxPool2dSame,
}
CASES = [("look-alike", name) for name in LOOK_ALIKES] + [("timm", name) for name in NAMES]


def make(kind: type[nn.Module], name: str, **keywords: Any) -> nn.Module:
    arguments = (2, 2) if name == POOL else ()
    return kind(*arguments, **keywords).double().eval()


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]} {case[1].rpartition('.')[2]}")
def known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[type[nn.Module], str]:
    source, name = request.param
    if source == "timm":
        pytest.importorskip("timm", reason="the look-alikes are tested in its place")
        home, _, kind = name.rpartition(".")
        return getattr(import_module(home), kind), name
    kind = LOOK_ALIKES[name]
    table = MAX_POOLS if name == POOL else ACTIVATIONS
    monkeypatch.setitem(table, f"{__name__}.{kind.__name__}", table[name])
    return kind, name


def test_every_scale_and_shift(known: tuple[type[nn.Module], str]) -> None:
    kind, name = known
    affine = grid((*NORMAL, *SMALL, 0.0), SHIFTS)
    x = inputs(affine, (4, 4))
    reference, module = make(kind, name), make(kind, name)
    assert find_absorber(module) is ACTIVATIONS.get(name, absorb_into_max_pool)
    expected, left = reference(apply(affine, x)), absorb_into(module, affine, clip=True)
    for values in (x, x.clone().requires_grad_()):
        value = apply(left, module(values))
        if name == POOL:
            assert torch.allclose(value, expected, rtol=1e-14, atol=1e-14)
        else:
            assert error(value, expected, x, affine) < ROUNDINGS


def test_in_the_block(known: tuple[type[nn.Module], str]) -> None:
    kind, name = known
    model = randomize(nn.Sequential(conv(), nn.Softmax(1), norm(), make(kind, name), conv()).double())
    assert [merge.chain.absorbers for merge in plan(model).merges] == [("3",)]
    check(model, image(), image(1, 4, 8, 4))


def test_in_place(known: tuple[type[nn.Module], str]) -> None:
    kind, name = known
    if name == POOL:
        pytest.skip("a pool does not work in place")
    reference, module = make(kind, name), make(kind, name, inplace=True)
    affine = Affine(torch.tensor([0.7, -1.3, 0.0]).double(), torch.tensor([0.3, -0.6, 0.5]).double())
    left = absorb_into(module, affine, clip=True)
    x = inputs(affine, (2, 2))
    kept = x.clone()
    assert error(apply(left, module(x)), reference(apply(affine, x)), x, affine) < ROUNDINGS
    assert torch.equal(x, kept)
    model = randomize(
        nn.Sequential(conv(), make(kind, name, inplace=True), norm(), make(kind, name, inplace=True)).double()
    )
    check(model, image())


def test_a_subclass_with_another_forward_is_not_known(known: tuple[type[nn.Module], str]) -> None:
    kind, name = known
    assert find_absorber(type("Named", (kind,), {})(*((2,) if name == POOL else ()))) is ACTIVATIONS.get(
        name, absorb_into_max_pool
    )
    other = type("Other", (kind,), {"forward": lambda self, x: x})
    assert find_absorber(other(*((2,) if name == POOL else ()))) is None
