"""A plan is used again as long as the model would get the same one, and never else."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from zennit.composites import EpsilonPlus

from canon_bridge import canonize, canonized_copy, plan, register_norm
from canon_bridge.captum import LRP
from canon_bridge.core import Affine, Plan, plans
from canon_bridge.core.norms import NORMS
from canon_bridge.core.options import Options, Scope
from canon_bridge.core.planner import make_plan
from canon_bridge.zennit import ModelCanonizer
from tests.core.test_canonize_restore import everything
from tests.support.errors import relative_error
from tests.support.pieces import conv, image, norm, tiny_densenet
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


class Settings:
    """What a forward may be told by."""

    double = False


class Custom(nn.Module):
    """A norm that is not known until it is registered."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.relu, self.last = conv(), norm(), nn.ReLU(), conv()
        self.still, self.behind, self.custom = norm(), norm(), Custom()
        self.skip, self.settings, self.factors = True, Settings(), [1.0]
        self.gate = [torch.ones(())]

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x))) * self.factors[0]
        x = self.last(x) + x if self.skip else self.last(x)
        x = x + x if self.settings.double else x
        x = x.sin() if self.gate[0].item() > 0 else x.cos()
        return self.custom(self.behind(self.still(x)))


def made() -> Net:
    model = randomize(Net().double())
    still = model.still
    for tensor, value in ((still.weight, 1), (still.bias, 0), (still.running_mean, 0), (still.running_var, 1)):
        tensor.data.fill_(value)
    still.eps = 0.0
    return model


def again(model: nn.Module) -> bool:
    """Return whether a second plan is the first one, and check that it is what a new one would be."""
    first = plan(model)
    second = plan(model)
    assert str(second) == str(make_plan(model, Options(), Scope()))
    return first is second


def test_the_same_plan_is_used_again() -> None:
    model = made()
    assert again(model)
    first = plan(model)
    with canonize(model):
        assert plan(model) is not first  # of the canonical model
    assert plan(model) is first
    assert plan(model, prefer="right") is not first
    assert plan(model) is first
    with torch.no_grad():
        model.first.weight.mul_(2)  # a plan holds for any values
        model.norm.running_mean.add_(1)
    model.first.register_forward_hook(lambda *_: None)
    assert plan(model) is first


def test_frameworks_use_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, calls = randomize(nn.Sequential(conv(), norm(), nn.ReLU()).double()), image(), []
    monkeypatch.setattr(plans, "make_plan", lambda *given: calls.append(given) or make_plan(*given))
    before, expected = Snapshot(model), model(x)
    for _ in range(3):
        with EpsilonPlus(canonizers=[ModelCanonizer()]).context(model):
            assert relative_error(model(x), expected) < 1e-12
        before.check()
        LRP(model).attribute(x, (0, 0, 0))
        with canonize(model):
            assert relative_error(model(x), expected) < 1e-12
        before.check()
    assert len(calls) == 1


def replace(model: Net) -> None:
    model.relu = nn.Sigmoid()


def rename(model: Net) -> None:
    model._modules["last"], model._modules["first"] = model._modules["first"], model._modules["last"]


def become_the_identity(model: Net) -> None:
    for tensor, value in ((model.behind.weight, 1), (model.behind.bias, 0)):
        with torch.no_grad():
            tensor.fill_(value)
    model.behind.running_mean.zero_()
    model.behind.running_var.fill_(1)
    model.behind.eps = 0.0


def override(model: Net) -> None:
    model.norm.forward = lambda x: x.cos()


def other_forward(model: Net) -> None:
    type(model.custom).forward = lambda self, x: x * 2


CHANGES: dict[str, Callable[[Net], Any]] = {
    "a module is replaced": replace,
    "modules change places": rename,
    "a module is added": lambda model: model.add_module("more", norm().double().eval()),
    "a flag is flipped": lambda model: setattr(model, "skip", False),
    "a layer pads otherwise": lambda model: setattr(model.last, "padding_mode", "reflect"),
    "an entry of a list": lambda model: model.factors.__setitem__(0, 3.0),
    "an entry of a configuration": lambda model: setattr(model.settings, "double", True),
    "a value that forward asks for": lambda model: model.gate[0].zero_(),
    "a norm becomes the identity": become_the_identity,
    "a norm is the identity no more": lambda model: model.still.running_mean.data.add_(1),
    "a forward on an instance": override,
    "a parametrization": lambda model: parametrizations.weight_norm(model.last),
    "pruning": lambda model: nn.utils.prune.l1_unstructured(model.first, "weight", 0.5),
    "a hook that computes a weight": lambda model: model.first.register_forward_pre_hook(lambda *_: None),
    "a parameter is tied": lambda model: setattr(model.last, "weight", model.first.weight),
    "a bias is gone": lambda model: model.last.register_parameter("bias", None),
    "the precision": lambda model: model.float(),
    "it requires no gradients": lambda model: model.requires_grad_(False),
    "the mode of a part": lambda model: model.relu.train(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_would_get_another_plan_gets_it(change: str) -> None:
    model = made()
    assert again(model)
    first, x = plan(model), image()
    CHANGES[change](model)
    second = plan(model)
    assert second is not first
    assert str(second) == str(make_plan(model, Options(), Scope()))
    x = x.to(model.first.weight.dtype)
    expected = model(x).detach()
    with canonize(model):
        assert relative_error(model(x).detach(), expected) < 1e-5


def test_another_forward_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    assert again(model)
    first = plan(model)
    monkeypatch.setattr(Custom, "forward", lambda self, x: x.relu())
    assert plan(model) is not first


class Scaling(nn.Sequential):
    """Reads an attribute, a property and a method of its class."""

    factor = 2.0
    offset = property(lambda self: 0.5)

    def scaled(self, x: Tensor) -> Tensor:
        return x * self.factor

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(self.scaled(super().forward(input)) + self.offset)


OF_CLASS: dict[str, Any] = {
    "factor": 5.0,
    "offset": property(lambda self: -0.5),
    "scaled": lambda self, x: x * 3,
}


@pytest.mark.parametrize("name", OF_CLASS)
def test_another_attribute_of_a_class(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Scaling(conv(), norm()).double().eval(), image()
    assert again(model)
    former = model(x)
    monkeypatch.setattr(Scaling, name, OF_CLASS[name])
    expected = model(x)
    assert relative_error(former, expected) > 1e-3
    with canonize(model):
        assert relative_error(model(x), expected) < 1e-12


def test_an_attribute_of_a_class_that_changes_in_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scaling(conv(), norm()).double().eval()
    with canonize(model):
        monkeypatch.setattr(Scaling, "factor", 3.0)
        with pytest.raises(ValueError, match=r"factor=3\.0"):
            model(image())


def test_what_is_registered_since(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    before = plan(model)
    monkeypatch.setattr(NORMS, "data", dict(NORMS))
    register_norm(
        Custom,
        read=lambda module: Affine(module.scale, torch.zeros_like(module.scale)),
        write=lambda module, affine: {"scale": affine.scale},
        ranks=(4,),
    )
    assert len(plan(model).entries) == len(before.entries) + 1


def test_a_model_in_training_mode_is_refused_though_it_had_a_plan() -> None:
    model = made()
    plan(model)
    model.norm.train()
    with pytest.raises(ValueError, match="norm is in training mode"):
        plan(model)


def test_example_inputs_have_a_plan_of_their_own() -> None:
    model, x = made(), image()
    assert plan(model, example_inputs=x) is not plan(model)
    assert plan(model, example_inputs=x) is not plan(model, example_inputs=x)


@pytest.mark.parametrize("make", [made, tiny_densenet, everything])
def test_a_plan_keeps_no_model_alive(make: Callable[[], nn.Module]) -> None:
    model = make()
    with canonize(model, prefer="right"):
        pass
    plan(model)
    gone = weakref.ref(model)
    assert model in plans._KEPT
    del model
    gc.collect()
    assert gone() is None


def test_copies_have_plans_of_their_own() -> None:
    model = randomize(nn.Sequential(conv(), norm(), nn.ReLU()).double())
    first = plan(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin not in plans._KEPT
        assert plan(twin) is not first
    assert isinstance(first, Plan)


def test_constants_of_a_plan_are_not_changed_in_the_block() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = conv(), norm()

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.first(x)) + torch.full((1,), 0.5, dtype=x.dtype)

    model, x = randomize(Constant().double()), image()
    expected = model(x).detach()
    with pytest.warns(UserWarning, match="changed while"), canonize(model):  # noqa: PT031
        for buffer in model.buffers():
            buffer.add_(1)
    with canonize(model):
        assert relative_error(model(x).detach(), expected) < 1e-12
    assert relative_error(canonized_copy(model)(x), expected) < 1e-12
