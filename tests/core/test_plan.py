"""The plan: one line for each BatchNorm by its path, a total, every decision with its reason, and no change."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torchvision.models import DenseNet, resnet18
from torchvision.models.vgg import cfgs, make_layers

from canon_bridge import Leftover, Merge, Plan, Refusal, canonize, plan
from tests.conftest import Snapshot, randomize, relative_error
from tests.core.test_chains import conv, image, norm
from tests.core.test_explicit import Written


class Network(nn.Module):
    """One of everything: merged left, right, through an activation, into several; a leftover; one not called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(), norm(), nn.ReLU(True))
        self.before, self.first, self.second = norm(), conv(), conv(4, 4, 1, 0)
        self.alone, self.unused = norm(), norm()
        self.last = norm()
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 2)
        y = self.before(x)
        x = self.first(y) + self.second(y)
        x = F.relu(self.last(torch.tanh(self.alone(x))))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


TABLE = """\
plan for Network (prefer='left', clipped='absorb', leftover='linear')

BatchNorm  direction  merged into                 through
---------  ---------  --------------------------  --------------------------------------------------------------------
stem.1     left       stem.0                      -
before     right      first, second               -
alone      -          a per-channel linear layer  left: add (Add) before it is not linear; \
right: tanh behind it is not linear
last       right      classifier                  ReLU relu, adaptive average pooling, flatten
unused     -          nothing                     it is not called in forward

explicit modules in the model itself: max_pool2d, add, relu, adaptive_avg_pool2d
total: 5 BatchNorms: 1 merged left, 2 merged right, 1 to explicit linear layers, 1 left as they are; \
4 operations made modules"""


def lines(text: str) -> list[str]:
    """Return the lines without the rule, whose length nobody reads."""
    return [line for line in text.splitlines() if not line.startswith("---")]


def test_the_plan_is_printed_as_a_table_with_a_total() -> None:
    made = plan(randomize(Network()))
    text = str(made)
    assert lines(text) == lines(TABLE)
    assert {len(line) - len(line.rstrip()) for line in text.splitlines()} == {0}
    assert text.splitlines()[-1] == made.total()


def test_the_entries_are_in_the_order_of_the_flow_and_fall_into_three_kinds() -> None:
    made = plan(randomize(Network()))
    assert [entry.norm for entry in made.entries] == ["stem.1", "before", "alone", "last", "unused"]
    assert [merge.norm for merge in made.merges] == ["stem.1", "before", "last"]
    assert [type(entry) for entry in made.entries] == [Merge, Merge, Leftover, Merge, Refusal]
    assert {*made.merges, *made.leftovers, *made.refusals} == {*made.entries}


def test_every_keyword_has_its_say() -> None:
    model = randomize(nn.Sequential(nn.MaxPool2d(2), conv(), norm(), conv(), nn.Tanh(), norm()))
    left, right = plan(model), plan(model, prefer="right", clipped="pass", leftover="keep")
    assert (left.merges[0].chain.direction, right.merges[0].chain.direction) == ("left", "right")
    assert (len(left.leftovers), len(left.refusals)) == (1, 0)
    assert (len(right.leftovers), len(right.refusals)) == (0, 1)
    assert set(left.leftovers[0].reason.split("; ")) == set(right.refusals[0].reason.split("; "))
    assert "(prefer='right', clipped='pass', leftover='keep')" in str(right)


NETWORKS: dict[str, Any] = {
    "densenet": lambda: DenseNet(8, (2, 2, 2, 2), 16, num_classes=5),
    "resnet18": lambda: resnet18(num_classes=5),
    # The convolutions of vgg11_bn; its classifier, without BatchNorm, is most of its size.
    "vgg11_bn": lambda: nn.Sequential(make_layers(cfgs["A"], batch_norm=True), nn.Flatten(), nn.Linear(512, 5)),
}


@pytest.mark.parametrize("prefer", ["left", "right"])
@pytest.mark.parametrize("network", NETWORKS)
def test_known_networks_are_merged_to_the_last_norm(network: str, prefer: str) -> None:
    model = randomize(NETWORKS[network]())
    before = Snapshot.of(model)
    made = plan(model, prefer=prefer)
    before.check()
    norms = {path for path, module in model.named_modules() if isinstance(module, _BatchNorm)}
    assert {merge.norm for merge in made.merges} == norms
    assert len(made.entries) == len(norms)
    assert made.failures == ()
    # A linear layer takes at most one BatchNorm on each side.
    taken = [(merge.chain.direction, target.linear) for merge in made.merges for target in merge.chain.targets]
    assert len(taken) == len(set(taken)) >= len(norms)
    text = str(made)
    for path in norms:
        assert sum(line.split()[:1] == [path] for line in text.splitlines()) == 1
    assert f"total: {len(norms)} BatchNorms" in text


def test_planning_changes_nothing_and_runs_nothing() -> None:
    model, calls = randomize(Network()), []
    model.register_forward_hook(lambda *_: calls.append("ran"))
    before = Snapshot.of(model)
    state = torch.get_rng_state()
    assert isinstance(plan(model), Plan)
    canonize(model)
    str(plan(model, prefer="right"))
    before.check()
    assert calls == []
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_a_norm_that_is_the_identity_already_is_left_alone() -> None:
    layer = nn.BatchNorm2d(4, eps=0)
    (entry,) = plan(nn.Sequential(conv(), layer).eval()).entries
    assert entry == Refusal("1", "it is the identity already")
    layer.eps = 1e-5  # almost the identity is not the identity
    assert isinstance(plan(nn.Sequential(conv(), layer).eval()).entries[0], Merge)


def test_a_model_without_norms_has_a_plan_too() -> None:
    text = str(plan(nn.Sequential(conv(), nn.ReLU()).eval()))
    assert text.splitlines()[-1].startswith("total: 0 BatchNorms")
    assert "direction" not in text


def test_modules_in_place_that_nobody_relies_on_are_listed() -> None:
    model = nn.Sequential(conv(), nn.ReLU(True), conv(), nn.LeakyReLU(0.1, True), nn.ReLU()).eval()
    assert plan(model).out_of_place == ("1", "3")

    def function(model: nn.Module, x: Tensor) -> Tensor:
        y = model.a(x)
        return model.relu(y) + y  # y is the result of the ReLU by now

    model, x = Written(function, a=conv(), relu=nn.ReLU(True)), image()
    assert plan(model).out_of_place == ()
    expected = model(x)
    with canonize(model):
        assert relative_error(model(x), expected) == 0


class Named(nn.BatchNorm2d):
    """A subclass that changes nothing, as libraries have them."""


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def parametrized() -> nn.Module:
    layer = norm()
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def own_forward() -> nn.Module:
    layer = norm()
    layer.forward = lambda x: nn.BatchNorm2d.forward(layer, x) ** 2
    return layer


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        return torch.jit.script(nn.Sequential(nn.BatchNorm2d(4)).eval())


STRANGE: dict[str, Any] = {
    "a subclass": lambda: Named(4),
    "parametrized": parametrized,
    "with a forward of its own": own_forward,
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_norm_of_a_strange_kind_is_listed_with_a_reason_and_keeps_its_function(kind: str) -> None:
    # Design 4.5: a BatchNorm that cannot be merged is a refusal, never silence; and it may stand in any model.
    model, x = randomize(nn.Sequential(conv(), STRANGE[kind](), nn.ReLU(), conv(), norm()).double()), image()
    expected = model(x)
    made = plan(model)
    assert [entry.norm for entry in made.entries] == ["1", "4"]
    if isinstance(made.entries[0], Refusal):
        assert made.entries[0].reason
    with canonize(model):
        assert relative_error(model(x), expected) < 1e-12


def test_a_scripted_module_is_refused_by_name() -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError), match=r"\b1\b.*script"):
        plan(nn.Sequential(conv(), scripted()).eval())
