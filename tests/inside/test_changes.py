"""What a user changes on the modules of a canonical model stays changed, or is named when the block ends."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize
from tests.inside.models import BLOCKS, made, mostly
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, Preactivation, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


def new_norm() -> nn.Module:
    return randomize(norm().double(), seed=3)


REPLACEMENTS: dict[str, tuple[str, str, Callable[[], nn.Module]]] = {
    "an unmerged head": ("densenet", "classifier", lambda: nn.Linear(15, 7).double()),
    "a merged layer": ("pre-activation", "conv1", lambda: conv().double()),
    "a merged norm": ("pre-activation", "norm1", new_norm),
    "an activation": ("pre-activation", "relu", nn.Tanh),
    "a leftover": ("leftover", "1", new_norm),
    "a leftover by another kind": ("branches", "left_over", nn.Identity),
}


@pytest.mark.parametrize("what", REPLACEMENTS)
@pytest.mark.parametrize("prefer", BOTH)
def test_a_module_that_is_replaced_stays_replaced(prefer: str, what: str) -> None:
    name, path, make = REPLACEMENTS[what]
    (model, x, _), (twin, *_) = made(name), made(name)
    twin.load_state_dict(model.state_dict())
    mine = make().eval()
    if what == "an unmerged head":
        mine = nn.Linear(model.classifier.in_features, 7).double()
    with canonize(model, prefer=prefer):
        setattr(model, path, mine)
    assert model.get_submodule(path) is mine
    setattr(twin, path, mine)
    expected = twin(x)
    assert torch.equal(model(x), expected)
    with canonize(model, prefer=prefer):
        assert relative_error(model(x), expected) < 1e-12


EDITS: dict[str, Callable[[nn.Sequential], Any]] = {
    "append": lambda model: model.append(nn.Sigmoid()),
    "insert before": lambda model: model.insert(0, nn.Sigmoid()),
    "insert between": lambda model: model.insert(2, nn.Sigmoid()),
    "delete before": lambda model: model.__delitem__(0),
    "delete it": lambda model: model.__delitem__(1),
    "delete behind": lambda model: model.__delitem__(4),
    "add a child": lambda model: model.add_module("extra", nn.Sigmoid()),
    "pop": lambda model: model.pop(5),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("block", BLOCKS)
def test_a_sequence_that_is_edited_stays_edited(block: str, edit: str) -> None:
    # Its children move to other names, also the linear layer that stands in for a norm: that one is taken back there.
    (model, x, _), (twin, *_) = made("leftover"), made("leftover")
    twin.load_state_dict(model.state_dict())
    layer = model[1]
    with BLOCKS[block](model):
        assert model[1] is not layer
        EDITS[edit](model)
    EDITS[edit](twin)
    assert [type(child) for child in model] == [type(child) for child in twin]
    assert (layer in list(model)) == (edit != "delete it")
    assert torch.equal(model(x), twin(x))
    with canonize(model):
        assert relative_error(model(x), twin(x)) < 1e-12


@pytest.mark.parametrize("second_ends_first", [True, False])
def test_a_replaced_leftover_stays_in_overlapping_blocks(second_ends_first: bool) -> None:
    model, x, _ = made("leftover")
    first = canonize(model)
    first.apply()
    second = canonize(model, prefer="right")
    second.apply()
    model[1] = mine = nn.Identity()
    for canonization in (second, first) if second_ends_first else (first, second):
        canonization.undo()
    assert model[1] is mine
    assert torch.isfinite(model(x)).all()


@pytest.mark.parametrize("prefer", BOTH)
def test_a_deleted_module_stays_deleted(prefer: str) -> None:
    model, x, _ = made("pre-activation")
    with canonize(model, prefer=prefer):
        del model.relu
        with pytest.raises(AttributeError, match="relu"):
            model(x)
    assert not hasattr(model, "relu")


@pytest.mark.parametrize("prefer", BOTH)
def test_new_modules_of_the_block_may_be_deleted(prefer: str) -> None:
    model, x, expected = made("branches")
    before, outside = Snapshot(model), set(model._modules)
    with canonize(model, prefer=prefer):
        new = set(model._modules) - outside
        assert new
        for name in new:
            delattr(model, name)
    before.check()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", mostly("everything", "branches", "leftover"))
def test_buffers_parameters_and_hooks_that_are_added_stay(name: str, block: str) -> None:
    model, x, expected = made(name)
    modules, calls, handles = list(model.modules()), [], []
    with BLOCKS[block](model):
        inside = [module for module in model.modules() if module in modules]
        for module in inside:
            module.register_buffer("kept", torch.ones(1))
            module.register_buffer("transient", torch.ones(1), persistent=False)
            module.register_parameter("mine", nn.Parameter(torch.ones(1)))
            handles.append(module.register_forward_hook(lambda *_: calls.append(1)))
            handles.append(module.register_forward_pre_hook(lambda *_: calls.append(2)))
    for module in inside:
        assert list(module._buffers)[-2:] == ["kept", "transient"]
        assert list(module._parameters)[-1] == "mine"
        assert set(module.state_dict()) >= {"kept", "mine"}
        assert "transient" not in module.state_dict()
    assert torch.equal(model(x), expected)
    assert calls.count(1) > 2
    for handle in handles:
        handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in inside if name != "everything")


def test_a_hook_on_a_leftover_is_on_its_norm_afterwards() -> None:
    model, x, _ = made("leftover")
    calls: list[type] = []
    with canonize(model):
        handle = model[1].register_forward_hook(lambda module, *_: calls.append(type(module)))
        model(x)
    model(x)
    assert calls == [nn.Conv2d, nn.BatchNorm2d]
    handle.remove()
    model(x)
    assert len(calls) == 2


def echo(input: Tensor) -> Tensor:
    return input


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [("", "forward", echo), ("relu", "forward", echo), ("norm1", "eps", 0.5), ("relu", "inplace", True)],
)
@pytest.mark.parametrize("prefer", BOTH)
def test_an_attribute_over_one_of_canonization_is_named(prefer: str, path: str, name: str, value: object) -> None:
    model, x = randomize(Preactivation().double()), image()
    before, expected = Snapshot(model), model(x)
    with pytest.warns(UserWarning, match=f"^{path}{'.' if path else ''}{name}: set while the model was canonical"):  # noqa: SIM117
        with canonize(model, prefer=prefer):
            setattr(model.get_submodule(path), name, value)
    before.check()
    assert torch.equal(model(x), expected)


def test_other_attributes_stay_without_a_word() -> None:
    model, x, expected = made("pre-activation")
    with canonize(model):
        model.note, model.conv1.note, model.norm1.momentum = "root", "leaf", 0.5
    assert (model.note, model.conv1.note, model.norm1.momentum) == ("root", "leaf", 0.5)
    assert torch.equal(model(x), expected)
