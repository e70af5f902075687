"""The normalization layers of torchvision and timm: frozen ones, and those that contain their activation.

Each test runs on look-alikes, and on the layers themselves where the package is installed.
"""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize, canonized_copy, plan
from canon_bridge.core.affine import Affine
from canon_bridge.core.norms import (
    check_norm,
    children_after,
    is_identity,
    is_norm,
    norm_type,
    normalized,
    slots_for,
    width,
)
from tests.support.errors import relative_error
from tests.support.named_norms import HOMES, WITH_ACT, kinds, randomize_any
from tests.support.pieces import BOTH, Written, check, conv, image
from tests.support.snapshot import Snapshot

__all__ = ["kinds"]  # the fixture

Find = Callable[[str], type[nn.Module]]
EVERY = pytest.mark.parametrize("name", HOMES)
ACTED = pytest.mark.parametrize("name", WITH_ACT)
FROZEN = ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")


def scaled(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the normalization by its formula."""
    weight, bias, mean, variance = (
        getattr(layer, name)[:, None, None] for name in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (variance + layer.eps).sqrt() * weight + bias


@EVERY
def test_read_is_what_the_layer_computes(name: str, kinds: Find) -> None:
    layer, x = randomize_any(kinds(name)(4).double()), image()
    assert is_norm(layer)
    assert width(layer) == 4
    read = norm_type(layer).read(layer)
    value = read.scale[:, None, None] * x + read.shift[:, None, None]
    assert relative_error(value, layer(x)) < 1e-14
    assert relative_error(value, scaled(layer, x)) < 1e-14
    wrong = (x - layer.running_mean[:, None, None]) / layer.running_var.sqrt()[:, None, None]
    assert relative_error(wrong, layer(x)) > 1e-2


@EVERY
def test_its_identity_is_exact_and_keeps_what_is_a_parameter(name: str, kinds: Find) -> None:
    layer, x = randomize_any(kinds(name)(4).double()), image()
    kept = Snapshot(layer)
    slots = slots_for(layer, norm_type(layer).write(layer, Affine.identity(norm_type(layer).read(layer).scale)))
    kept.check()
    types = {key: type(getattr(layer, key[1])) for key in slots}
    assert not is_identity(layer)
    for (table, key), value in slots.items():
        (vars(layer) if table == "__dict__" else vars(layer)[table])[key] = value
    assert is_identity(layer)
    assert torch.equal(layer(x), x)
    assert types == {key: type(getattr(layer, key[1])) for key in slots}


@ACTED
def test_what_it_calls_behind_the_normalization(name: str, kinds: Find) -> None:
    x = image()
    layer = randomize_any(kinds(name)(4, nn.Tanh(), nn.Dropout()).double())
    assert children_after(layer) == ("drop", "act")
    assert relative_error(layer(x), scaled(layer, x).tanh()) < 1e-14
    assert relative_error(normalized(layer, x), scaled(layer, x)) < 1e-14
    assert children_after(nn.BatchNorm2d(4)) == children_after(nn.Sequential()) == ()


def block(norm: nn.Module, before: nn.Module | None = None, behind: nn.Module | None = None) -> nn.Module:
    return randomize_any(nn.Sequential(before or conv(), norm, behind or conv()).double())


SURROUNDED: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "left": (conv, nn.Tanh),
    "right": (nn.Tanh, conv),
    "both": (conv, conv),
    "left over": (nn.Tanh, nn.Sigmoid),
}


@EVERY
@pytest.mark.parametrize("place", SURROUNDED)
def test_the_block_and_the_copy(name: str, place: str, kinds: Find) -> None:
    before, behind = SURROUNDED[place]
    acts = (nn.ReLU(True), nn.SiLU(), None) if place == "right" else (nn.ReLU(True),)
    for act in acts if name in WITH_ACT else (None,):
        norm = kinds(name)(4, act, nn.Dropout()) if name in WITH_ACT else kinds(name)(4)
        model = block(norm, before(), behind())
        made = plan(model)
        own = [entry for entry in (*made.merges, *made.leftovers) if entry.norm == "1"]
        assert len(own) == 1
        assert bool(made.merges) == (place != "left over")
        check(model, image(), image(1, 4, 9, 5))


@ACTED
@pytest.mark.parametrize("place", SURROUNDED)
@pytest.mark.parametrize("prefer", BOTH)
def test_in_the_block_a_sequential_of_its_children_stands_in_for_it(
    name: str, place: str, prefer: str, kinds: Find
) -> None:
    before, behind = SURROUNDED[place]
    model, x, calls = block(kinds(name)(4, nn.ReLU(), nn.Dropout()), before(), behind()), image(), Counter[str]()
    norm = model[1]
    for path in ("1", "1.drop", "1.act"):
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.update([path]))
    norm.register_forward_pre_hook(lambda *_: calls.update(["before"]))
    kept = Snapshot(model)
    for _ in range(2):
        with canonize(model, prefer=prefer):
            assert type(model[1]) is nn.Sequential
            names = ["drop", "act"] if place != "left over" else ["linear", "drop", "act"]
            assert [child for child, _ in model[1].named_children()] == names
            assert (model[1].act, model[1].drop) == (norm.act, norm.drop)
            assert not any(module.training for module in model.modules())
            calls.clear()
            model(x)
            assert calls == {"1": 1, "1.drop": 1, "1.act": 1, "before": 1}
        assert model[1] is norm
        kept.check()


@ACTED
def test_a_hook_of_the_user_that_changes_the_output_keeps_doing_so(name: str, kinds: Find) -> None:
    model, x = block(kinds(name)(4, nn.ReLU())), image()
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    expected = model(x)
    with canonize(model):
        assert relative_error(model(x), expected) < 1e-12


@ACTED
def test_nested_blocks_deep_copies_and_example_inputs(name: str, kinds: Find) -> None:
    model, x = block(kinds(name)(4, nn.ReLU(True))), image()
    kept, expected = Snapshot(model), model(x)
    with canonize(model, example_inputs=x):
        twin = copy.deepcopy(model)
        inside = Snapshot(model)
        with canonize(model, prefer="right"):
            assert relative_error(model(x), expected) < 1e-12
        inside.check()
    kept.check()
    assert relative_error(twin(x), expected) < 1e-12
    assert relative_error(canonized_copy(twin)(x), expected) < 1e-12


@EVERY
def test_a_course_that_depends_on_values(name: str, kinds: Find) -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        return model.behind(model.norm(x)) if x.abs().sum() > 0 else x

    arguments = (nn.ReLU(True),) if name in WITH_ACT else ()
    model = randomize_any(Written(function, norm=kinds(name)(4, *arguments), behind=conv()))
    check(model, image(), example_inputs=image())


@ACTED
def test_one_activation_in_two_layers(name: str, kinds: Find) -> None:
    act = nn.ReLU(True)
    layers = [conv(), kinds(name)(4, act), conv(), kinds(name)(4, act), conv()]
    model = randomize_any(nn.Sequential(nn.Tanh(), *layers).double())
    check(model, image())


@EVERY
def test_one_layer_at_two_places(name: str, kinds: Find) -> None:
    arguments = (nn.ReLU(True),) if name in WITH_ACT else ()
    layer = kinds(name)(4, *arguments)
    model = randomize_any(nn.Sequential(conv(), layer, conv(), layer, conv()).double())
    model.again = layer
    model.forward = (lambda self, x: self[4](self[3](self[2](self[1](self[0](x)))))).__get__(model)
    check(model, image())


@pytest.mark.parametrize("name", [name for name in HOMES if name not in FROZEN])
def test_training_mode_is_refused_by_name(name: str, kinds: Find) -> None:
    model = block(kinds(name)(4))
    model[1].training = True
    with pytest.raises(ValueError, match=r"^1 is in training mode"):
        canonize(model)


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_layer_may_be_in_training_mode(name: str, kinds: Find) -> None:
    model = block(kinds(name)(4))
    model[1].training = True
    check_norm(model[1], "1")
    check(model, image())


@pytest.mark.parametrize("name", ["BatchNormAct2d", "SyncBatchNormAct"])
@pytest.mark.parametrize("prefer", BOTH)
def test_without_weight_and_bias(name: str, prefer: str, kinds: Find) -> None:
    model, x = block(kinds(name)(4, nn.ReLU(), affine=False)), image()
    assert model[1].weight is None
    expected = model(x)
    with canonize(model, prefer=prefer):
        assert relative_error(model(x), expected) < 1e-12


def test_a_subclass_with_another_forward_is_refused(kinds: Find) -> None:
    base = kinds("BatchNormAct2d")
    other: Any = type("Other", (base,), {"forward": lambda self, x: self.act(base.forward(self, x) * 2)})
    model, x = block(other(4, nn.ReLU())), image()
    expected = model(x)
    (refusal,) = plan(model).refusals
    assert "its forward may differ from a BatchNorm's (Other)" in refusal.reason
    with canonize(model):
        assert type(model[1]) is other
        assert relative_error(model(x), expected) < 1e-14
