"""``state_dict``, copies and pickles that are made inside the block."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize
from canon_bridge.core.norms import is_identity
from tests.inside.models import BLOCKS, MODELS, made, mostly
from tests.support.errors import alive, relative_error
from tests.support.pieces import BOTH, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


def stored(state: dict[str, Tensor]) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", mostly("everything", "branches", "leftover"))
def test_a_state_goes_to_a_file_and_back(name: str, block: str, assign: bool) -> None:
    model, x, expected = made(name)
    keys = list(model.state_dict())
    with BLOCKS[block](model):
        state = stored(model.state_dict())
        with torch.no_grad():
            for tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.values():
                if tensor.is_floating_point():
                    tensor.mul_(1.0)  # counts as written, and has its values
        assert model.load_state_dict(state, assign=assign)
        assert relative_error(model(x), expected) < 1e-12
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_state_that_is_loaded_for_good_survives_where_nothing_is_merged(block: str) -> None:
    model = randomize(nn.Sequential(conv(), norm(), nn.Softmax(1), conv(), nn.Tanh()).double())
    values = {name: torch.randn_like(value) for name, value in model[3].state_dict().items()}
    with BLOCKS[block](model):
        model[3].load_state_dict(values)
    assert all(torch.equal(value, values[name]) for name, value in model[3].state_dict().items())


@pytest.mark.parametrize("prefer", BOTH)
def test_keys_differ_by_biases_and_new_modules_alone(prefer: str) -> None:
    for name in set(MODELS) - {"densenet"}:
        model, *_ = made(name)
        outside = set(model.state_dict())
        types = {path: type(module) for path, module in model.named_modules()}
        with canonize(model, prefer=prefer) as canonical:
            inside, now = set(canonical.state_dict()), dict(canonical.named_modules())
            changed = {path for path, module in now.items() if type(module) is not types.get(path)}
        for key in inside ^ outside:
            path = key.replace(".parametrizations.weight", "").rpartition(".")[0]
            assert key.endswith(".bias") or path in changed, key
        assert set(model.state_dict()) == outside


@pytest.mark.parametrize("prefer", BOTH)
@pytest.mark.parametrize("strict", [True, False])
def test_the_original_checkpoint_in_the_block_is_not_loaded_in_silence(prefer: str, strict: bool) -> None:
    for name in set(MODELS) - {"densenet"}:
        model, x, expected = made(name)
        checkpoint = stored(model.state_dict())
        with pytest.raises((RuntimeError, UserWarning), match=r"Missing|Unexpected|changed while"):  # noqa: SIM117
            with canonize(model, prefer=prefer):
                model.load_state_dict(checkpoint, strict=strict)
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("prefer", BOTH)
@pytest.mark.parametrize("name", mostly("everything", "branches", "leftover"))
def test_a_deep_copy_is_independent_in_the_block_and_after_it(name: str, prefer: str) -> None:
    model, x, expected = made(name)
    before = Snapshot(model)
    with canonize(model, prefer=prefer):
        twin = copy.deepcopy(model)
        assert relative_error(twin(x), expected) < 1e-12
        assert not {*map(id, model.modules())} & {*map(id, twin.modules())}
    before.check()
    assert alive(twin) == []
    assert relative_error(twin(x), expected) < 1e-12
    with canonize(twin, prefer="right"):
        assert relative_error(twin(x), expected) < 1e-12
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.zero_()
    before.check()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("prefer", BOTH)
def test_a_shallow_copy_in_the_block_shares_all_that_the_model_is_made_of(prefer: str) -> None:
    for name in set(MODELS) - {"densenet"}:
        model, x, expected = made(name)
        before = Snapshot(model)
        with canonize(model, prefer=prefer):
            twin = copy.copy(model)
            assert relative_error(twin(x), expected) < 1e-12
            assert twin._modules is model._modules
        before.check()


@pytest.mark.parametrize("name", mostly("everything", "branches", "leftover"))
@pytest.mark.parametrize("prefer", BOTH)
def test_a_model_that_is_pickled_in_the_block_comes_back_canonical(prefer: str, name: str) -> None:
    model, x, expected = made(name)
    before = Snapshot(model)
    with canonize(model, prefer=prefer):
        again = pickle.loads(pickle.dumps(model))
    before.check()
    assert relative_error(again(x), expected) < 1e-12
    assert not any(isinstance(part, nn.BatchNorm2d) and not is_identity(part) for part in again.modules())


def test_a_model_that_came_out_of_a_block_is_pickled_as_before() -> None:
    model, x, expected = made("densenet")
    with canonize(model):
        pass
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)


@pytest.mark.parametrize("prefer", BOTH)
def test_a_copied_canonization_neither_undoes_nor_enters(prefer: str) -> None:
    model, x = randomize(nn.Sequential(norm(), nn.ReLU(), conv(), nn.SiLU(), norm(), conv()).double()), image()
    before, expected, canonization = Snapshot(model), model(x).detach(), canonize(model, prefer=prefer)
    canonization.apply()
    inside = Snapshot(model)
    for twin in (copy.copy(canonization), copy.deepcopy(canonization)):
        twin.undo()  # a hook of the model's own ReLU was taken off by the undo of a deep copy
        inside.check()
        with pytest.raises(RuntimeError, match=r"canonize\(model\) anew"):
            twin.apply()
        inside.check()
    assert relative_error(model(x), expected) < 1e-12
    canonization.undo()
    before.check()
    later = copy.deepcopy(canonization)
    assert later.model is not model
    with pytest.raises(RuntimeError, match=r"canonize\(model\) anew"):
        later.apply()
    assert relative_error(later.model(x), expected) < 1e-12
