"""New modules stand in the container whose forward wrote the operation; containers keep hooks, names and children."""

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import canonize, plan
from tests.conftest import Snapshot, relative_error
from tests.core.test_explicit import Written, check, conv, image


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
    before, x = Snapshot.of(model), image()
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
    before, x = Snapshot.of(model), image()
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
    assert set(check(model, image())) == {"relu_6", "relu_7", "add_2"}


def test_the_same_name_is_free_in_another_container() -> None:
    model = sequential(Taken(), Taken())
    assert {"0.relu_6", "1.relu_6"} <= set(check(model, image()))


def test_the_plan_lists_what_becomes_a_module() -> None:
    text = str(plan(sequential(conv(), Block())))
    assert "explicit modules in 1: relu_2, add" in text or "explicit modules in 1: add, relu_2" in text
    assert text.endswith("2 operations made modules")
