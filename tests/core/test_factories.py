"""Tensors that forward makes with sizes of its input: traced symbolically, right for inputs of other sizes, too."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from canon_bridge import TracingError, canonize, plan
from canon_bridge.core.tracing.factories import FACTORIES
from tests.conftest import Snapshot, randomize, relative_error
from tests.core.pieces import BOTH, Written, conv, image, norm

ADDED: dict[str, Callable[[Tensor], Any]] = {
    "zeros": lambda x: torch.zeros(x.shape[2], x.size(3)) - 1.5,
    "ones": lambda x: torch.ones(x.shape[2], x.shape[3], device=x.device),
    "empty": lambda x: torch.empty(x.shape[2], 1, dtype=x.dtype).fill_(1.0),
    "rand": lambda x: torch.rand(x.shape[2], 1).ceil(),
    "randn": lambda x: torch.randn(x.shape[2], 1).abs().ceil().clamp(max=1.0),
    "tensor": lambda x: 1.0 / torch.sqrt(torch.tensor(x.shape[2], dtype=x.dtype)),
    "tensor of a list": lambda x: torch.tensor([x.shape[2], x.shape[3]]).sum(),
    "as_tensor": lambda x: torch.as_tensor(x.shape[2]),
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
    original, before = copy.deepcopy(model), Snapshot.of(model)
    assert [merge.norm for merge in plan(model, prefer=prefer).merges] == ["norm"]
    for example in (None, image()):
        with canonize(model, prefer=prefer, example_inputs=example):
            for shape in ((2, 4, 6, 6), (3, 4, 9, 7)):
                x = image(*shape)
                assert relative_error(model(x), original(x)) < 1e-12
        before.check()


def test_every_factory_is_tried() -> None:
    assert set(FACTORIES) <= set(ADDED)


def test_the_functions_are_themselves_again() -> None:
    before = [getattr(torch, name) for name in FACTORIES]

    def fails(x: Tensor) -> Tensor:
        assert [getattr(torch, name) for name in FACTORIES] != before
        assert torch.equal(torch.zeros(2, 3), before[0]((2, 3)))
        raise RuntimeError("on purpose")

    with pytest.raises(TracingError, match="on purpose"):
        plan(build(fails))
    assert [getattr(torch, name) for name in FACTORIES] == before
