"""The permanent copy: independent, without BatchNorm, and of the same function however it is kept or handed on."""

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from canon_bridge import canonize, canonized_copy, plan
from canon_bridge.core.restore import writes_in_force
from tests.support.errors import alive, relative_error
from tests.support.export import exportable
from tests.support.pieces import Preactivation, conv, image, norm, tiny_densenet
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize
from tests.ways.models import MODELS


def features() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, dtype=torch.float64)


@pytest.mark.parametrize("prefer", ["left", "right"])
def test_the_copy_computes_the_same_without_batch_norm(prefer: str) -> None:
    model, x = tiny_densenet(), features()
    before, expected = Snapshot(model), model(x)
    twin = canonized_copy(model, prefer=prefer)
    before.check()
    assert type(twin) is type(model)
    assert not twin.training
    assert not [module for module in twin.modules() if isinstance(module, _BatchNorm)]
    assert relative_error(twin(x), expected) < 1e-12
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.zero_()
    before.check()
    assert torch.equal(model(x), expected)


def test_the_original_may_be_canonized_and_changed_afterwards() -> None:
    model, x = tiny_densenet(), features()
    expected, twin = model(x), canonized_copy(model)
    with canonize(model):
        pass
    randomize(model, seed=5)
    assert relative_error(twin(x), expected) < 1e-12


def test_no_batch_norm_is_left_next_to_a_linear_layer_either() -> None:
    model, x = (
        randomize(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))),
        torch.ones(2, 4),
    )
    expected, twin = model(x), canonized_copy(model)
    assert relative_error(twin(x), expected) < 1e-5
    assert not [module for module in twin.modules() if isinstance(module, _BatchNorm)]


def test_a_norm_with_several_names_becomes_the_identity_under_each() -> None:
    layer = norm()
    model = nn.Sequential(conv(), layer, nn.Tanh())
    model.again, model.first = layer, nn.ModuleList([layer])
    model.forward = (lambda self, x: self[2](self.again(self[0](x)))).__get__(model)
    model, x = randomize(model.double()), image()
    expected, twin = model(x), canonized_copy(model)
    assert relative_error(twin(x), expected) < 1e-12
    assert not [module for module in twin.modules() if isinstance(module, _BatchNorm)]


def test_leftovers_and_what_nothing_can_be_done_about() -> None:
    model, x = randomize(nn.Sequential(nn.Tanh(), norm(), nn.Tanh()).double()), image()
    expected = model(x)
    for leftover, kind in (("linear", nn.Conv2d), ("keep", nn.BatchNorm2d)):
        twin = canonized_copy(model, leftover=leftover)
        assert type(twin[1]) is kind
        assert relative_error(twin(x), expected) < 1e-12


def test_a_copy_can_be_canonized_again_and_copied() -> None:
    model, x = tiny_densenet(), features()
    expected, twin = model(x), canonized_copy(model)
    assert plan(twin).entries == ()
    before = Snapshot(twin)
    with canonize(twin):
        assert relative_error(twin(x), expected) < 1e-12
    before.check()
    assert relative_error(canonized_copy(twin)(x), expected) < 1e-12
    other = copy.deepcopy(twin)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.zero_()
    assert relative_error(other(x), expected) < 1e-12


def test_a_deep_copy_made_in_the_block_stays_canonical_by_itself() -> None:
    model, x = randomize(nn.Sequential(conv(), Preactivation(), norm(), nn.ReLU(), conv()).double()), image()
    before, expected = Snapshot(model), model(x)
    with canonize(model, prefer="right"):
        twin = copy.deepcopy(model)
        assert relative_error(twin(x), expected) < 1e-12
    before.check()
    assert alive(twin) == []
    assert relative_error(twin(x), expected) < 1e-12
    assert not {id(tensor) for tensor in twin.parameters()} & {id(tensor) for tensor in model.parameters()}


def test_a_copy_moves_and_changes_its_dtype_as_a_whole() -> None:
    model, x = randomize(tiny_densenet().float(), mild=True), features().float()
    expected, twin = model(x), canonized_copy(model).double()
    value = twin(x.double())
    assert value.dtype == torch.float64
    assert relative_error(value, expected) < 1e-5


def test_its_state_dict_holds_all_that_training_it_would_change() -> None:
    model, x = tiny_densenet(), features()
    expected, twin = model(x), canonized_copy(model)
    state = {key: value.clone() for key, value in twin.state_dict().items()}
    with torch.no_grad():
        for tensor in twin.parameters():
            tensor.zero_()
    twin.load_state_dict(state)
    assert relative_error(twin(x), expected) < 1e-12


@pytest.mark.parametrize("prefer", ["left", "right"])
def test_its_state_dict_can_be_loaded_into_the_copy_of_another_model(prefer: str) -> None:
    (model, x), other = (tiny_densenet(), features()), randomize(tiny_densenet(), seed=5)
    twin, again = canonized_copy(model, prefer=prefer), canonized_copy(other, prefer=prefer)
    assert relative_error(again(x), model(x)) > 1e-2
    again.load_state_dict(twin.state_dict())
    assert relative_error(again(x), model(x)) < 1e-12


def test_a_copy_counts_as_a_model_like_any_other() -> None:
    model, x = tiny_densenet(), features()
    expected, twin = model(x), canonized_copy(model, prefer="right")
    assert not writes_in_force(twin)
    errors: list[float] = []

    def attribute() -> None:
        with canonize(twin):
            errors.append(relative_error(twin(x), expected))

    thread = threading.Thread(target=attribute)
    thread.start()
    thread.join()
    assert errors
    assert errors[0] < 1e-12


HOW = {
    "pickle": lambda twin: pickle.loads(pickle.dumps(twin)),
    "torch.save": lambda twin: _through_torch(twin),
    "deepcopy": copy.deepcopy,
}


def _through_torch(twin: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("prefer", ["left", "right", "untangled"])
@pytest.mark.parametrize("name", MODELS)
def test_a_copy_that_is_stored_comes_back_with_its_function(how: str, prefer: str, name: str) -> None:
    make, draw = MODELS[name]
    model, x = make(), draw()
    expected, twin = model(x), canonized_copy(model, prefer=prefer)
    kinds = [type(part) for part in twin.modules()]
    again = HOW[how](twin)
    assert [type(part) for part in again.modules()] == kinds
    assert torch.equal(again(x), twin(x))
    assert relative_error(again(x), expected) < 1e-12
    assert {name: tuple(value.shape) for name, value in again.state_dict().items()} == {
        name: tuple(value.shape) for name, value in twin.state_dict().items()
    }


def test_a_copy_can_be_exported() -> None:
    model, x = tiny_densenet(), features()
    expected, twin = model(x), canonized_copy(model)
    exported = torch.export.export(exportable(twin), (x,), strict=False).module()
    assert relative_error(exported(x), expected) < 1e-12


def test_a_copy_that_nobody_holds_is_freed() -> None:
    twin = canonized_copy(tiny_densenet())
    gone = [weakref.ref(twin), weakref.ref(twin.classifier), weakref.ref(twin.features.conv0)]
    del twin
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


def test_a_canonization_that_nobody_holds_does_not_keep_its_model() -> None:
    model = tiny_densenet()
    canonize(model).apply()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
