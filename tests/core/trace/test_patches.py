"""Calls that take no proxies: tensors with sizes of the input, custom autograd functions, scripted functions."""

import builtins
import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from canon_bridge import TracingError, canonize, plan
from canon_bridge.core.trace.patches import _FACTORIES as FACTORIES
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, Written, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

ADDED: dict[str, Callable[[Tensor], Any]] = {
    "zeros": lambda x: torch.zeros(x.shape[2], x.size(3)) - 1.5,
    "ones": lambda x: torch.ones(x.shape[2], x.shape[3], device=x.device),
    "empty": lambda x: torch.empty(x.shape[2], 1, dtype=x.dtype).fill_(1.0),
    "rand": lambda x: torch.rand(x.shape[2], 1).ceil(),
    "randn": lambda x: torch.randn(x.shape[2], 1).abs().ceil().clamp(max=1.0),
    "tensor": lambda x: 1.0 / torch.sqrt(torch.tensor(x.shape[2], dtype=x.dtype)),
    "tensor of a list": lambda x: torch.tensor([x.shape[2], x.shape[3]]).sum(),
    "as_tensor": lambda x: torch.as_tensor(x.shape[2]),
    "finfo": lambda x: torch.finfo(x.dtype).eps,
    "iinfo": lambda x: torch.iinfo((x > 0).int().dtype).bits,
    "asarray": lambda x: torch.asarray(x.shape[2]),
    "coordinates": lambda x: torch.stack(
        torch.meshgrid(torch.linspace(-1, 1, x.shape[2]), torch.arange(0.0, x.shape[3]), indexing="ij")
    ).sum(0),
    "full": lambda x: torch.full((x.shape[2], x.shape[3]), 0.5),
    "new_zeros": lambda x: x.new_zeros(x.shape[2], x.shape[3]) + 2.0,
}


def build(added: Callable[[Tensor], Any]) -> Written:
    return Written(lambda m, x: m.norm(m.first(x)) + added(x), first=conv(), norm=norm())


@pytest.mark.parametrize("name", ADDED)
@pytest.mark.parametrize("prefer", BOTH)
def test_the_sizes_are_those_of_the_input(prefer: Any, name: str) -> None:
    model = randomize(build(ADDED[name])).double()
    original, before = copy.deepcopy(model), Snapshot(model)
    assert [merge.norm for merge in plan(model, prefer=prefer).merges] == ["norm"]
    for example in (None, image()):
        with canonize(model, prefer=prefer, example_inputs=example):
            for shape in ((2, 4, 6, 6), (3, 4, 9, 7)):
                x = image(*shape)
                assert relative_error(model(x), original(x)) < 1e-12
        before.check()


def test_every_factory_is_tried() -> None:
    assert set(FACTORIES) <= set(ADDED)


class Clip(torch.autograd.Function):
    """A ReLU whose gradient is twice that of a ReLU everywhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


def total(parts: list[Tensor]) -> Tensor:
    return parts[0] + parts[1]


def doubled(x: Tensor) -> Tensor:
    return x * 2


OPAQUE: dict[str, Callable[[], Callable[..., Any]]] = {
    "an autograd function": lambda: Clip.apply,
    "an autograd function that forward looks up": lambda: lambda x: Clip.apply(x),
    "a scripted function": lambda: torch.jit.script(total),
    "a traced function": lambda: torch.jit.trace(doubled, torch.ones(2, 4, 3, 3)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", OPAQUE)
@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("prefer", BOTH)
def test_functions_that_torch_compiles_or_differentiates_otherwise(prefer: Any, values: bool, name: str) -> None:
    function = OPAQUE[name]()

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.first(x))
        y = function([y, y]) if name == "a scripted function" else function(y)
        return m.last(y + x)  # the sum becomes a module: forward is written anew

    model = randomize(Written(forward, first=conv(), norm=norm(), last=conv())).double()
    x, example = image().requires_grad_(), image() if values else None
    before, expected = Snapshot(model), model(x)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    with canonize(model, prefer=prefer, example_inputs=example):
        inside = model(x)
        assert relative_error(inside, expected) < 1e-12
        assert relative_error(torch.autograd.grad(inside.sum(), x)[0], slope) < 1e-12
    assert plan(model, prefer=prefer).merges[0].chain.direction == "left"
    before.check()


UNSAFE: dict[str, Callable[[Tensor], Any]] = {
    "a tensor of a tensor": lambda x: torch.Tensor(x),
    "a subclass": lambda x: torch.Tensor._make_subclass(torch.Tensor, x),
    "data": lambda x: setattr(torch.zeros(1), "data", x),
    "a gradient of a function": lambda x: torch.func.grad(lambda y: y.sum())(x),
    "a nested tensor": lambda x: torch.nested.nested_tensor([x, x]),
}


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("values", [False, True])
def test_what_cannot_be_traced_is_an_error_and_no_crash(values: bool, name: str) -> None:
    model = build(lambda x: x * 0 + UNSAFE[name](x).sum())
    with pytest.raises(TracingError, match="cannot be traced"):
        plan(model, example_inputs=image() if values else None)


def test_the_functions_are_themselves_again() -> None:
    def functions() -> list[Any]:
        return [
            *(getattr(torch, name) for name in FACTORIES),
            vars(torch.autograd.Function)["apply"],
            torch.jit.ScriptFunction.__call__,
            globals().get("isinstance", builtins.isinstance),
        ]

    before = functions()

    def fails(x: Tensor) -> Tensor:
        assert all(now is not then for now, then in zip(functions(), before, strict=True))
        assert isinstance(x, Tensor)
        assert torch.equal(torch.zeros(2, 3), before[0]((2, 3)))
        raise RuntimeError("on purpose")

    with pytest.raises(TracingError, match="on purpose"):
        plan(build(fails))
    assert functions() == before


EINOPS = """
import einops, sys, torch
from torch import nn
from canon_bridge import canonize, plan

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 3)

    def forward(self, x):
        h = einops.rearrange(torch.relu(self.norm(self.conv(x))), "n c h w -> n (c h w)")
        return self.head(einops.reduce(einops.repeat(h, "n c -> n c r", r=2), "n c r -> n c", "mean"))

model, x = Net().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
assert not plan(model).uncovered
expected = model(x)
for options in ({}, {"example_inputs": x}):
    with canonize(model, prefer="right", **options) as canonical:
        assert (canonical(x) - expected).abs().max() < 1e-12 * expected.abs().max()
assert "einops.layers.torch" not in sys.modules
"""


def test_the_functions_of_einops_in_a_process_that_has_not_imported_its_layers() -> None:
    subprocess.run([sys.executable, "-c", EINOPS], check=True, timeout=120)
