"""A forward that is set on a module computes with that module, a replica's with the replica, and it can be undone."""

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from canon_bridge.core.forwards import bind_forward, bound_function, forward_slots, tensors
from canon_bridge.core.restore import Edits
from tests.support.snapshot import Snapshot


class Marked(nn.Linear):
    """Its replicas are marked by its class."""

    def _replicate_for_data_parallel(self) -> nn.Module:
        replica: Any = super()._replicate_for_data_parallel()
        replica.mark = "by its class"
        return replica


def scaled(module: Any, factor: float, shift: float, x: Tensor, sign: int = 1) -> Tensor:
    return sign * (x * module.weight.sum() * factor + shift)


def layer() -> Marked:
    return Marked(3, 2).requires_grad_(False)


def replica_of(module: nn.Module, weight: float) -> Any:
    """Return what ``torch.nn.parallel.replicate`` makes of a layer: a shallow copy, with other tensors."""
    replica: Any = module._replicate_for_data_parallel()
    replica.weight, replica.bias = torch.full((2, 3), weight), torch.full((2,), weight)
    return replica


def test_the_module_comes_first_then_the_arguments_then_the_inputs_and_all_of_it_is_undone() -> None:
    module, edits, x = layer(), Edits(), torch.ones(1)
    before = Snapshot(module)
    bind_forward(edits, module, scaled, 2.0, 0.5)
    assert torch.equal(module(x, sign=-1), -(module.weight.sum() * 2 + 0.5).view(1))
    edits.undo()
    before.check()


def test_a_replica_and_a_replica_of_it_compute_with_their_own_tensors() -> None:
    module, x = layer(), torch.ones(1)
    bind_forward(Edits(), module, scaled, 2.0, 0.5)
    first = replica_of(module, 1.0)
    second = replica_of(first, 10.0)
    assert (first(x).item(), second(x).item()) == (12.5, 120.5)
    assert torch.equal(module(x), module.weight.sum().view(1) * 2 + 0.5)
    for replica in (first, second):
        assert bound_function(replica) == (scaled, (2.0, 0.5))
        assert replica.mark == "by its class"


def test_a_replica_has_the_forward_that_its_module_has_by_then() -> None:
    module, edits, x = layer(), Edits(), torch.ones(1)
    bind_forward(Edits(), module, scaled, 2.0, 0.5)
    bind_forward(edits, module, scaled, 3.0, 0.0)
    assert replica_of(module, 1.0)(x) == 18
    edits.undo()
    assert replica_of(module, 1.0)(x) == 12.5
    vars(module)["forward"] = lambda x: x * 7
    assert torch.equal(replica_of(module, 1.0)(x), x * 7)


def test_only_what_was_bound_to_this_very_module_is_told() -> None:
    module = layer()
    assert bound_function(module) is None
    vars(module).update(forward_slots(module, scaled, 2.0))
    assert bound_function(module) == (scaled, (2.0,))
    assert bound_function(copy.copy(module)) is None
    assert bound_function(copy.deepcopy(module)) == (scaled, (2.0,))
    for other in (lambda x: x, functools.partial(scaled, module, shift=1.0), functools.partial(scaled)):
        vars(module)["forward"] = other
        assert bound_function(module) is None


def test_tensors_are_the_parameters_and_in_a_replica_what_stands_in_for_them() -> None:
    module: Any = nn.BatchNorm1d(2)
    assert {name: id(value) for name, value in tensors(module).items()} == {
        "weight": id(module.weight),
        "bias": id(module.bias),
    }
    module.bias = None
    module.scale = torch.ones(2)
    assert list(tensors(module)) == ["weight"]
    replica = nn.Linear(3, 2)._replicate_for_data_parallel()
    assert tensors(replica) == {}
    replica.weight = torch.ones(2, 3)
    assert tensors(replica) == {"weight": replica.weight}
