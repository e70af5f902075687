"""The guard: what frameworks leave behind is undone, what the user did in earnest is not."""

import pytest
import torch
from torch import nn

from canon_bridge import canonize
from canon_bridge.core.guard import Guard
from tests.support.errors import relative_error
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


def small() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    model.register_buffer("offset", torch.randn(2, 1, 1))
    model[3].weight.requires_grad_(False)
    return randomize(model)


def wrap_all(model: nn.Module) -> None:
    """Do what zennit 1.0 does: new Parameter objects over the same storage."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                setattr(module, name, nn.Parameter(parameter.detach(), requires_grad=True))


def move_all(model: nn.Module) -> None:
    """Do what Captum does: the same object over a new storage with the same values."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def rewrite_buffers(model: nn.Module) -> None:
    for module in model.modules():
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = buffer.view_as(buffer)


def reorder(model: nn.Module) -> None:
    """Delete and set again: the same objects, but the last key comes first."""
    for module in model.modules():
        for name in list(module._parameters)[:-1]:
            parameter = module._parameters.pop(name)
            module._parameters[name] = parameter


def flip_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(not parameter.requires_grad)


def move_and_wrap(model: nn.Module) -> None:
    move_all(model)
    wrap_all(model)


def wrap_and_move(model: nn.Module) -> None:
    wrap_all(model)
    reorder(model)
    flip_gradients(model)
    rewrite_buffers(model)


DISTURBANCES = (wrap_all, move_all, rewrite_buffers, reorder, flip_gradients, wrap_and_move)


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_what_frameworks_do_is_put_back(disturb: object) -> None:
    model = small()
    before, guard = Snapshot(model), Guard(model)
    disturb(model)
    with pytest.raises(AssertionError):
        before.check()
    guard.restore()
    before.check()


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_and_after_a_block_with_merged_layers_too(disturb: object) -> None:
    model = small()
    before = Snapshot(model)
    with canonize(model):
        disturb(model)
    before.check()


def test_storage_moved_before_it_was_wrapped_keeps_the_function() -> None:
    # No object of the entry is in the slot any more: what counts is that values and outputs are those of before.
    model, x = small(), torch.randn(1, 2, 5, 5)
    expected = model(x)
    with canonize(model):
        move_and_wrap(model)
    assert torch.equal(model(x), expected)


def test_an_in_place_step_of_the_user_on_an_unmerged_parameter_survives() -> None:
    model = small()
    parameter, old = model[3].bias, model[3].bias.detach().clone()
    with canonize(model), torch.no_grad():
        parameter.add_(1)
    assert model[3].bias is parameter
    assert torch.equal(parameter, old + 1)


def test_a_step_after_the_storage_moved_survives() -> None:
    model = small()
    parameter, old = model[3].bias, model[3].bias.detach().clone()
    guard = Guard(model)
    move_all(model)
    with torch.no_grad():
        parameter.add_(1)
    guard.restore()
    assert torch.equal(model[3].bias, old + 1)  # the old storage, without the step, must not come back


def test_a_parameter_that_the_user_replaced_survives() -> None:
    model = small()
    mine = nn.Parameter(torch.randn(2))
    with canonize(model):
        model[3].bias = mine
    assert model[3].bias is mine


@pytest.mark.parametrize("shape", [(2,), (7,)])
def test_a_buffer_that_the_user_replaced_survives(shape: tuple[int, ...]) -> None:
    model = small()
    mine = torch.randn(shape)
    with canonize(model):
        model.offset = mine
    assert model.offset is mine


def test_new_and_deleted_slots_of_the_user_stay_as_they_are() -> None:
    model = small()
    with canonize(model):
        model[3].extra = nn.Parameter(torch.randn(1))
        del model.offset
    assert list(model[3]._parameters) == ["weight", "bias", "extra"]
    assert "offset" not in dict(model.named_buffers())


def test_the_old_storage_is_alive_although_nobody_else_holds_it() -> None:
    model = small()
    values = model[3].weight.detach().clone()
    guard = Guard(model)
    move_all(model)
    torch.randn(10_000)  # a freed storage would be handed out again
    guard.restore()
    assert torch.equal(model[3].weight, values)


def test_tied_parameters_stay_tied() -> None:
    model = small()
    model.append(nn.Conv2d(3, 2, 1))
    model[4].weight = model[3].weight
    guard, tied = Guard(model), model[3].weight
    wrap_all(model)
    assert model[3].weight is not model[4].weight
    guard.restore()
    assert model[3].weight is tied
    assert model[4].weight is tied


def test_a_step_on_a_merged_parameter_is_not_lost_in_silence() -> None:
    # Design 4.5: an error or a warning, whichever; the model is itself again in either case.
    model = small()
    before = Snapshot(model)
    with pytest.raises((Warning, RuntimeError)), canonize(model), torch.no_grad():
        model[0].weight.add_(1)
    before.check()


def test_a_change_of_dtype_in_the_block_does_not_tear_the_model_apart() -> None:
    # Merged parameters come back as they were; the others must not stay behind in the dtype of the block unnoticed.
    model, x = small(), torch.randn(1, 2, 5, 5)
    expected = model(x)
    try:
        with canonize(model):
            model.double()
    except (Warning, RuntimeError):
        return
    kinds = {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}
    assert len(kinds) == 1, kinds
    assert relative_error(model(x.to(kinds.pop())), expected) < 1e-5
