"""New modules stand in the container whose forward wrote the operation; containers keep hooks, names and children."""

import dataclasses
from collections import Counter
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from canon_bridge import canonize, plan
from canon_bridge.core.explicit import stand_in
from tests.core.test_explicit import Written, check, conv, image
from tests.support.errors import relative_error
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


class Block(nn.Module):
    """One ReLU module for two call sites, and a sum in place, as residual networks write it."""

    def __init__(self, relu: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second = conv(), conv()
        self.relu = relu or nn.ReLU(True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.relu(self.first(x)))
        y += x
        return self.relu(y)


def sequential(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules).double().eval()


def test_a_shared_module_gets_one_module_for_each_call_site() -> None:
    model = sequential(conv(), Block(), Block())
    assert set(check(model, image())) == {"1.relu_2", "1.add", "2.relu_2", "2.add"}
    with canonize(model):
        relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
        assert len(relus) == len({id(module) for module in relus}) == 4
        calls: Counter[nn.Module] = Counter()
        for module in model.modules():
            module.register_forward_hook(lambda module, *_: calls.update([module]))
        model(image())
        assert set(calls.values()) == {1}
        assert not any(relu.inplace for relu in relus)


def test_a_module_shared_between_containers_gets_a_twin_in_the_second() -> None:
    relu = nn.ReLU()
    model = sequential(conv(), Block(relu), Block(relu), relu)
    assert {type(module).__name__ for module in check(model, image()).values()} == {"ReLU", "Add"}
    with canonize(model):
        calls: Counter[nn.Module] = Counter()
        for module in model.modules():
            module.register_forward_hook(lambda module, *_: calls.update([module]))
        model(image())
        relus = [module for module in calls if isinstance(module, nn.ReLU)]
        assert len(relus) == 5
        assert {calls[module] for module in relus} == {1}


def test_a_shared_module_in_a_sequential_and_in_a_list() -> None:
    relu = nn.ReLU(True)
    inner = nn.Sequential(conv(), relu, relu)
    listed = nn.ModuleList([conv(), relu, conv(), relu])
    named = nn.ModuleDict({"conv": conv(), "again": relu})

    def function(model: nn.Module, x: Tensor) -> Tensor:
        for module in (*model.listed, model.inner, *model.named.values()):
            x = module(x)
        return x

    model = Written(function, listed=listed, inner=inner, named=named)
    new = check(model, image())
    assert len(new) == 4  # five call sites
    assert {type(module) for module in new.values()} == {nn.ReLU}


def test_a_container_that_is_called_twice() -> None:
    block = Block()
    model = sequential(block, conv(), block)
    before, x = Snapshot(model), image()
    expected = model(x)
    with canonize(model):
        assert {"0.relu_2", "0.add"} <= dict(model.named_modules()).keys()
        assert relative_error(model(x), expected) < 1e-12
    before.check()


def test_shared_modules_called_by_keyword_and_with_several_arguments() -> None:
    check(Written(lambda m, x: m.relu(input=m.left(m.relu(input=x))), relu=nn.ReLU(), left=conv()), image())
    check(Written(lambda m, x: m.relu(input=m.left(m.relu(input=x * 1))), relu=nn.ReLU(True), left=conv()), image())


def test_a_shared_module_of_two_arguments() -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        y, first = model.pool(x)
        z, second = model.pool(model.left(y))
        return model.unpool(model.unpool(z, second), first)

    pool, unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    check(Written(function, left=conv(), pool=pool, unpool=unpool), image(2, 8))


def test_hooks_of_the_user_on_containers_and_on_shared_modules_run_in_the_block() -> None:
    model, calls = sequential(conv(), Block(), Block()), Counter[str]()
    for path in ("", "1", "2", "1.relu", "1.second"):
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.update([path]))
    before, x = Snapshot(model), image()
    model(x)
    outside = Counter(calls)
    calls.clear()
    with canonize(model):
        model(x)
        assert calls == outside == {"": 1, "1": 1, "2": 1, "1.relu": 2, "1.second": 1}
    before.check()


def test_a_hook_on_a_container_may_change_its_output() -> None:
    model, x = sequential(conv(), Block()), image()
    model[1].register_forward_hook(lambda module, args, output: output * 3)
    expected = model(x)
    with canonize(model):
        assert relative_error(model(x), expected) < 1e-12


class Taken(nn.Module):
    """Every name that a new module would like to have is in use: a layer, a number, a method, a buffer."""

    relu_5 = "an attribute of the class"

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.relu_2 = conv(), 5
        self.register_buffer("relu_3", torch.ones(1))
        self.register_parameter("relu_4", None)

    def add(self, x: Tensor) -> Tensor:
        return x * self.relu_2

    def forward(self, x: Tensor) -> Tensor:
        return self.add(F.relu(self.relu(x))) + F.relu(x) * self.relu_3


def test_new_names_do_not_collide_with_what_is_there() -> None:
    model = Taken().double().eval()
    assert set(check(model, image())) == {"relu_6", "relu_7", "add_2", "multiply", "multiply_2"}


def test_the_same_name_is_free_in_another_container() -> None:
    model = sequential(Taken(), Taken())
    assert {"0.relu_6", "1.relu_6"} <= set(check(model, image()))


def test_the_plan_lists_what_becomes_a_module() -> None:
    text = str(plan(sequential(conv(), Block())))
    assert "explicit modules in 1: relu_2, add" in text or "explicit modules in 1: add, relu_2" in text
    assert text.splitlines()[1].endswith("2 operations made modules")


def written(model: nn.Module) -> set[str]:
    """Return the paths of modules with a forward of their own."""
    return {path for path, module in model.named_modules() if "forward" in vars(module)}


CHANGED = ("0", "1", "3", "3.relu")  # merged, rewritten, made out of place


def test_modules_that_need_no_change_are_not_changed() -> None:
    plain = nn.Sequential(conv(), nn.ReLU(), nn.Sequential(nn.Tanh(), conv()), nn.MaxPool2d(2), nn.Flatten())
    model = sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), Block(), plain)
    untouched = {path: dict(vars(module)) for path, module in model.named_modules() if path not in CHANGED}
    with canonize(model):
        assert written(model) == {"1", "3"}  # the norm, and the only one that calls functions
        for path, former in untouched.items():
            assert dict(vars(model.get_submodule(path))) == former, path
    with canonize(plain):
        assert written(plain) == set()
    assert plan(plain).rewrites == ()


def test_only_what_a_merge_needs_is_changed() -> None:
    padded, bare = conv(), nn.Conv2d(4, 4, 1)
    model = randomize(sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(padded), nn.Tanh(), bare))
    with canonize(model):
        # The norm, the thresholded ReLU, and the convolution whose bias depends on the position.
        assert written(model) == {"1", "2", "3.0"}
    model[3][0] = nn.Conv2d(4, 4, 3).double().eval()
    with canonize(model):
        assert written(model) == {"1", "2"}


@pytest.mark.parametrize(
    "shared",
    [nn.ReLU(True), nn.SiLU(), nn.LeakyReLU(), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.Sigmoid(), nn.ReLU6()],
    ids=lambda module: type(module).__name__,
)
def test_a_shared_activation_or_pool_gets_one_module_for_each_call_site(shared: nn.Module) -> None:
    def function(model: nn.Module, x: Tensor) -> Tensor:
        y = model.shared(model.first(model.shared(x * 1)))
        return model.shared(y) + model.inner(y)

    inner = nn.Sequential(shared, conv(), shared)
    model, x = Written(function, shared=shared, first=conv(), inner=inner), image()
    new = check(model, x)
    assert sum(type(module) is type(shared) for module in new.values()) == 4
    with canonize(model):
        calls: Counter[nn.Module] = Counter()
        for module in model.modules():
            module.register_forward_hook(lambda module, *_: calls.update([module]))
        model(x)
        sites = [module for module in calls if type(module) is type(shared)]
        assert len(sites) == 5
        assert {calls[module] for module in sites} == {1}
        assert len({id(vars(module)) for module in sites}) == 5


def test_a_further_call_of_a_layer_has_a_stand_in_with_the_same_parameters() -> None:
    shared = conv()
    model = Written(lambda m, x: m.shared(m.act(m.shared(m.act(x.clone())))), shared=shared, act=nn.PReLU())
    new = check(model, image())
    assert {path: next(module.parameters()) for path, module in new.items()} == {
        "act_2": model.act.weight,
        "shared_2": shared.weight,
    }


@pytest.mark.parametrize("norms", [0, 1, 2])
@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_further_call_of_a_parametrized_layer_has_a_stand_in_that_computes_the_same_weight(
    name: str, norms: int
) -> None:
    layer = getattr(parametrizations, name)(nn.Linear(4, 4))
    children = {f"norm{number}": nn.BatchNorm1d(4) for number in range(norms)}

    def function(m: nn.Module, x: Tensor) -> Tensor:
        for number in range(2):
            x = m.layer(x)
            x = getattr(m, f"norm{number}", nn.Identity())(x).tanh()
        return x

    model, x = randomize(Written(function, layer=layer, **children)), torch.randn(3, 4, dtype=torch.float64)
    before, expected, twin = Snapshot(model), model(x), stand_in(layer)
    assert set(twin.parameters()) == set(layer.parameters())
    assert torch.equal(twin(x), layer(x))
    for prefer in ("left", "right"):
        with canonize(model, prefer=prefer):
            assert relative_error(model(x), expected) < 1e-12
            assert model.layer_2 is not layer
        before.check()
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("path", ["", "1", "1.block"])
def test_hooks_on_containers_see_what_they_saw(path: str) -> None:
    inner = nn.Sequential()
    inner.add_module("block", Block())
    model, x, seen = sequential(conv(), inner), image(), []
    model.get_submodule(path).register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    model.get_submodule(path).register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    expected = model(x)
    with canonize(model):
        assert relative_error(model(x), expected) < 1e-12
    for before, after in zip(*seen, strict=True):
        assert relative_error(after, before) < 1e-12


class Pair(NamedTuple):
    a: Tensor
    b: Tensor | None = None


@dataclasses.dataclass
class Record:
    a: Tensor
    b: Tensor | None = None


class AsksForFields(nn.Module):
    """A part whose course depends on which fields of its argument are there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, pair):
        return Record(self.norm(self.conv(pair.a)) + pair.a, pair.a if pair.b is None else pair.a.relu())


class WritesFields(AsksForFields):
    """A part that writes into its argument."""

    def forward(self, pair):
        pair.b = self.norm(self.conv(pair.a)) + pair.a
        return pair


class OfFields(nn.Module):
    def __init__(self, part, structure) -> None:
        super().__init__()
        self.stem, self.part, self.other, self.structure = nn.Conv2d(3, 4, 3), part(), part(), structure

    def forward(self, x):
        first = self.structure(self.stem(x))
        last = self.other(self.part(first))
        return last.a - last.b


def _same_function(part, structure) -> tuple[str, ...]:
    model, x = randomize(OfFields(part, structure).double()), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    snapshot, expected = Snapshot(model), model(x)
    with canonize(model) as canonical:
        assert relative_error(canonical(x), expected) < 1e-9
    snapshot.check()
    return tuple(entry.reason for entry in plan(model).uncovered)


@pytest.mark.parametrize("structure", [Pair, Record])
def test_a_part_that_asks_which_fields_of_its_argument_are_there(structure) -> None:
    assert _same_function(AsksForFields, structure) == ()


def test_a_part_that_writes_into_the_fields_of_its_argument_stays_as_it_is() -> None:
    assert any("writes into" in reason for reason in _same_function(WritesFields, Record))
