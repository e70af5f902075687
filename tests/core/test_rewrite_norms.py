"""Norms by ``F.batch_norm`` or ``torch.batch_norm`` in a forward: BatchNorms like all others in evaluation mode.

The statistics are random, with weights of both signs, zero and a tiny one, and eps is 0.1 (see ``randomize_any``).
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import canonize, canonized_copy, plan
from canon_bridge.core.explicit import BatchNorm, Normaliser
from canon_bridge.core.norms import NORMS, is_identity, is_norm, norm_type, width
from tests.support.errors import relative_error
from tests.support.named_norms import randomize_any
from tests.support.pieces import BOTH, alive, check, conv, image
from tests.support.snapshot import Snapshot

RANKS = {2: (), 3: (5,), 4: (6, 7), 5: (2, 3, 4)}
EPS = 0.1


class Norm(nn.Module):
    """``function(self, x)`` computes a normalization with the tensors of the module."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))
        self.eps = EPS

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


CALLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "by position": lambda m, x: F.batch_norm(
        x, m.running_mean, m.running_var, m.weight, m.bias, m.training, 0.1, m.eps
    ),
    "by keyword": lambda m, x: F.batch_norm(
        x, running_var=m.running_var, running_mean=m.running_mean, bias=m.bias, weight=m.weight, eps=EPS
    ),
    "without weight and bias": lambda m, x: F.batch_norm(x, m.running_mean, m.running_var, eps=EPS),
    "without bias": lambda m, x: F.batch_norm(x, m.running_mean, m.running_var, m.weight, eps=EPS),
    "another eps": lambda m, x: F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, False, 0.1, 0.7),
    "computed tensors": lambda m, x: F.batch_norm(
        x, m.running_mean * 2, m.running_var.exp(), 1 + m.weight, m.bias.abs(), eps=EPS
    ),
    "raw": lambda m, x: torch.batch_norm(
        x, m.weight, m.bias, m.running_mean, m.running_var, False, 0.1, EPS, torch.backends.cudnn.enabled
    ),
    "raw without weight": lambda m, x: torch.batch_norm(
        x, None, None, m.running_mean, m.running_var, m.training, 0.1, EPS, True
    ),
}
EVERY = pytest.mark.parametrize("name", CALLS)
PLACES: dict[str, tuple[type[nn.Module] | None, type[nn.Module] | None]] = {
    "left": (nn.Conv2d, nn.Tanh),
    "right": (nn.Tanh, nn.Conv2d),
    "left over": (nn.Tanh, nn.Sigmoid),
}


def network(norm: nn.Module, place: str = "left") -> nn.Module:
    def layer(kind: Any) -> nn.Module:
        return conv() if kind is nn.Conv2d else kind()

    before, behind = PLACES[place]
    return randomize_any(nn.Sequential(layer(before), norm, nn.ReLU(True), layer(behind)).double())


@EVERY
@pytest.mark.parametrize("place", PLACES)
def test_it_is_merged_as_a_module_is(name: str, place: str) -> None:
    model = network(Norm(CALLS[name]), place)
    made = plan(model)
    assert [entry.norm for entry in made.entries] == ["1.batch_norm"]
    assert bool(made.leftovers) == (place == "left over")
    check(model, image(), image(1, 4, 5, 9))


@EVERY
@pytest.mark.parametrize("prefer", BOTH)
def test_its_tensors_are_read_anew_at_each_entry_and_stay(name: str, prefer: str) -> None:
    model, x = network(Norm(CALLS[name])), image()
    canonization = canonize(model, prefer=prefer)
    with canonization:
        model(x)
    randomize_any(model, seed=9)
    before, expected = Snapshot(model), model(x)
    with canonization:
        assert relative_error(model(x), expected) < 1e-12
        assert is_identity(model[1].batch_norm)
        assert torch.equal(model[1].running_mean, model[1].running_mean)
    before.check()


@EVERY
def test_deep_copies_and_nested_blocks(name: str) -> None:
    model, x = network(Norm(CALLS[name])), image()
    before, expected = Snapshot(model), model(x)
    with canonize(model):
        twin = copy.deepcopy(model)
        inside = Snapshot(model)
        with canonize(model, prefer="right"):
            assert relative_error(model(x), expected) < 1e-12
        inside.check()
    before.check()
    for other in (twin, canonized_copy(model), canonized_copy(twin)):
        assert alive(other) == []
        assert relative_error(other(x), expected) < 1e-12


@pytest.mark.parametrize("rank", RANKS)
def test_every_rank(rank: int) -> None:
    layers = {2: nn.Linear(4, 4), 3: nn.Conv1d(4, 4, 3), 4: nn.Conv2d(4, 4, 3), 5: nn.Conv3d(4, 4, 2)}
    norm = Norm(CALLS["by position"])
    for modules in ((layers[rank], norm, nn.Tanh()), (nn.Tanh(), norm, layers[rank]), (nn.Tanh(), norm, nn.Tanh())):
        model = randomize_any(nn.Sequential(*modules).double())
        check(model, image(2, 4, *RANKS[rank]))


def test_statistics_of_the_batch_are_no_affine_map() -> None:
    by_batch = Norm(lambda m, x: F.batch_norm(x, None, None, m.weight, m.bias, True, 0.1, EPS))
    model, x = network(by_batch), image()
    before, expected = Snapshot(model), model(x)
    made = plan(model)
    assert made.entries == ()
    assert [(entry.path, entry.what) for entry in made.uncovered] == [("1", "batch_norm")]
    assert "batch_norm by the statistics of the batch is not an affine map" in made.uncovered[0].reason
    with canonize(model):
        assert relative_error(model(x), expected) < 1e-14
    before.check()


def test_training_mode_is_that_of_the_forward() -> None:
    # The module that computes it is in training mode, so that it normalizes by the batch.
    model = network(Norm(CALLS["by position"]))
    model[1].train()
    made = plan(model)
    assert made.merges == made.leftovers == ()
    assert "statistics of the batch" in made.uncovered[0].reason
    # A forward that says training=False does not look at it.
    model = network(Norm(CALLS["by keyword"]))
    model[1].train()
    check(model, image())


def test_a_model_that_goes_into_training_mode_between_plan_and_entry() -> None:
    model, x = network(Norm(CALLS["by position"])), image()
    canonization = canonize(model)
    model[1].train()
    expected = copy.deepcopy(model)(x)
    try:
        canonization.apply()
    except (RuntimeError, ValueError):
        return  # the plan may say that it is out of date
    try:
        assert relative_error(model(x), expected) < 1e-12
    finally:
        canonization.undo()


def test_one_set_of_statistics_at_two_places() -> None:
    norm = Norm(CALLS["by position"])
    check(randomize_any(nn.Sequential(conv(), norm, conv(), norm, nn.ReLU(), conv()).double()), image())

    def twice(m: Any, x: Tensor) -> Tensor:
        x = CALLS["by position"](m, x)
        return CALLS["by keyword"](m, F.silu(x)) * m.weight.view(-1, 1, 1)

    check(randomize_any(nn.Sequential(conv(), Norm(twice), conv()).double()), image())


def test_a_subclass_of_a_norm_that_calls_it_in_its_own_forward_is_refused() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.batch_norm(input * 2, self.running_mean, self.running_var, self.weight, self.bias)

    model, x = randomize_any(nn.Sequential(conv(), Own(4), conv()).double()), image()
    expected = model(x)
    (refusal,) = plan(model).refusals
    assert "its forward may differ from a BatchNorm's (Own)" in refusal.reason
    with canonize(model):
        assert relative_error(model(x), expected) < 1e-14


@pytest.mark.parametrize("affine", [True, False])
def test_the_explicit_module(affine: bool) -> None:
    weight, bias = (nn.Parameter(torch.randn(4)), torch.randn(4)) if affine else (None, None)
    norm = BatchNorm(torch.randn(4), torch.rand(4) + 0.5, weight, bias, EPS).double()
    assert is_norm(norm)
    assert width(norm) == 4
    assert NORMS.find(norm).frozen  # it normalizes by running statistics whatever its flag says
    for rank, size in RANKS.items():
        assert rank in norm_type(norm).ranks
        x = image(3, 4, *size)
        expected = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=EPS)
        assert torch.equal(norm(x), expected)
        read = norm_type(norm).read(norm)
        view = (-1, *(1,) * (rank - 2))
        assert relative_error(read.scale.view(view) * x + read.shift.view(view), expected) < 1e-14
    assert list(norm.state_dict()) == (["weight"] if affine else [])


# By running statistics a norm of instances is one of batches.
INSTANCES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "function": lambda m, x: F.instance_norm(x, m.running_mean, m.running_var, m.weight, m.bias, m.training, eps=EPS),
    "by keyword": lambda m, x: F.instance_norm(
        x, use_input_stats=False, weight=m.weight, running_var=m.running_var, running_mean=m.running_mean, eps=EPS
    ),
    "raw": lambda m, x: torch.instance_norm(x, m.weight, m.bias, m.running_mean, m.running_var, False, 0.1, EPS, False),
    "operator": lambda m, x: torch.ops.aten.instance_norm(
        x, m.weight, m.bias, m.running_mean, m.running_var, False, 0.1, EPS, False
    ),
}


@pytest.mark.parametrize("name", INSTANCES)
@pytest.mark.parametrize("place", PLACES)
def test_a_norm_of_instances_by_running_statistics(name: str, place: str) -> None:
    model = network(Norm(INSTANCES[name]), place)
    assert [entry.norm for entry in plan(model).entries] == ["1.instance_norm"]
    check(model, image(), image(1, 4, 5, 9))
    model[1] = randomize_any(nn.InstanceNorm2d(4, affine=True, track_running_stats=True).double())
    assert [entry.norm for entry in plan(model).entries] == ["1"]
    check(model, image(), image(1, 4, 5, 9))


def test_a_norm_of_instances_by_their_own_statistics_is_none() -> None:
    def by_own(m: Any, x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=m.weight, bias=m.bias)

    assert plan(network(Norm(by_own))).entries == ()
    with canonize(model := network(Norm(by_own))):
        assert type(model[1].instance_norm) is Normaliser
