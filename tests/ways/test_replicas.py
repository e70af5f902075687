"""``nn.DataParallel``: a replica of a canonical model computes with its own tensors, module by module."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize, canonized_copy
from canon_bridge.core.forwards import bind_forward, bound_function
from canon_bridge.core.restore import Edits
from tests.support.errors import relative_error
from tests.support.pieces import BOTH
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize
from tests.ways.models import EPS, MODELS, canonical, gradient

NAMES = pytest.mark.parametrize("name", MODELS)
PREFER = pytest.mark.parametrize("prefer", BOTH)


def replicated(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Do what ``torch.nn.parallel.replicate`` does for one device, with a change in the place of the copy to it."""
    modules = list(model.modules())
    replicas = {module: module._replicate_for_data_parallel() for module in modules}
    tensors = {t: change(t) for t in (*model.parameters(), *model.buffers())}
    for module, replica in replicas.items():
        replica._former_parameters = {}
        for name, child in vars(module)["_modules"].items():
            setattr(replica, name, replicas[child])
        for name, parameter in vars(module)["_parameters"].items():
            if parameter is None:
                vars(replica)["_parameters"][name] = None
            else:
                setattr(replica, name, tensors[parameter])
        for name, buffer in vars(module)["_buffers"].items():
            if buffer is not None:
                setattr(replica, name, tensors[buffer])
    return replicas[model]


def poison(model: nn.Module) -> None:
    """Make all tensors NaN: whoever reads one of them shows it."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)


@PREFER
@NAMES
def test_a_replica_computes_with_its_own_tensors_alone(name: str, prefer: str) -> None:
    make, draw = MODELS[name]
    model, x = make(), draw()
    expected = model(x)
    canonization = canonize(model, prefer=prefer)
    canonization.apply()
    slope = gradient(model, x)
    replica = replicated(model, lambda tensor: tensor.detach().clone())
    poison(model)
    assert not bool(model(x).isfinite().any())
    assert relative_error(replica(x), expected) < 64 * EPS
    assert relative_error(gradient(replica, x), slope) < 256 * EPS
    with pytest.warns(UserWarning, match="changed while the model was canonical"):
        canonization.undo()


@PREFER
@NAMES
def test_a_replica_of_the_copy_and_a_replica_of_a_replica(name: str, prefer: str) -> None:
    make, draw = MODELS[name]
    model, x = make(), draw()
    twin = canonized_copy(model, prefer=prefer)
    replica = replicated(twin, lambda tensor: tensor.detach().clone())
    assert canonical(replica) == canonical(twin) != []
    poison(twin)
    assert relative_error(replica(x), model(x)) < 64 * EPS


def test_every_kind_of_forward_is_among_them() -> None:
    kinds: set[str] = set()
    for make, _ in MODELS.values():
        for prefer in BOTH:
            with canonize(make(), prefer=prefer) as model:
                kinds |= set(canonical(model))
    ours = {
        "_merged",
        "_per_channel_linear",
        "_general_activation",
        "_signed_pool",
        "_thresholded_relu",
        "forward_from_slots",
    }
    assert kinds == {*ours, "forward"}  # and those that were written for containers


def test_a_forward_that_is_only_set_on_the_instance_would_be_found_out() -> None:
    model, x = nn.Sequential(nn.Conv2d(4, 4, 1)).double(), torch.ones(1, 4, 2, 2, dtype=torch.float64)
    vars(model[0])["forward"] = partial(lambda module, x: x * module.weight.sum(), model[0])
    replica = replicated(model, lambda tensor: tensor.detach() * 2)
    assert torch.equal(replica(x), model(x))  # with the weight of the original
    bind_forward(Edits(), model[0], lambda module, x: x * module.weight.sum())
    replica = replicated(model, lambda tensor: tensor.detach() * 2)
    assert torch.equal(replica(x), model(x) * 2)


def test_half_precision_slopes_of_a_replica_are_cast() -> None:
    model = randomize(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.PReLU(4), nn.Conv2d(4, 4, 1)), mild=True)
    model, x = model.bfloat16(), torch.randn(2, 4, 3, 3).bfloat16()
    with canonize(model, prefer="right"):
        expected = model(x)
        assert torch.equal(replicated(model, lambda tensor: tensor.detach().clone())(x), expected)


def test_the_block_leaves_no_method_behind_and_shallow_copies_are_what_they_were() -> None:
    model = MODELS["everything"][0]()
    before = Snapshot(model)
    with canonize(model, prefer="right"):
        index = next(index for index, module in enumerate(model) if bound_function(module) is not None)
        twin = copy.copy(model[index])
        assert bound_function(twin) is None  # bound to the module that it was copied from
        assert bound_function(copy.deepcopy(model)[index]) is not None
    before.check()


def test_data_parallel_itself_is_refused_and_runs_the_canonical_model() -> None:
    model, x = MODELS["everything"][0](), MODELS["everything"][1]()
    parallel, expected = nn.DataParallel(model), model(x)
    for function in (canonize, canonized_copy):
        with pytest.raises(TypeError, match=r"model is a DataParallel, .*use model\.module instead"):
            function(parallel)
    with canonize(parallel.module, prefer="right"):
        assert relative_error(parallel(x), expected) < 64 * EPS  # without a GPU it calls the module
    assert torch.equal(parallel(x), expected)
