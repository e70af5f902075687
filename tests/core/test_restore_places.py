"""The journal, continued: removed keys, hooks, the class of a module, and what is held for younger journals."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import nn

from canon_bridge.core.restore import Edits, slots, writes_in_force
from tests.core.test_restore import Everything
from tests.support.computed_layers import Deep

TABLES = ("__dict__", "_parameters", "_buffers", "_modules", "_forward_pre_hooks")
# Without these a module is none.
VITAL = frozenset(vars(nn.Module()))


class Other(Everything):
    pass


def hook(module: nn.Module, inputs: object) -> None:
    pass


def model() -> Everything:
    made = Everything()
    for number in range(3):
        made.register_forward_pre_hook(lambda module, inputs, number=number: None)
    return made


def keys(module: nn.Module, table: str) -> list[str | int]:
    return [key for key in slots(module, table) if key not in VITAL]


def value_for(table: str) -> object:
    return {
        "_parameters": lambda: nn.Parameter(torch.zeros(5)),
        "_buffers": lambda: torch.zeros(5),
        "_modules": nn.Identity,
        "_forward_pre_hooks": lambda: hook,
        "__dict__": object,
    }[table]()


@pytest.mark.parametrize("table", TABLES)
def test_a_removed_key_comes_back_in_its_place(table: str) -> None:
    module = model()
    deep = Deep(module)
    for key in keys(module, table):
        edits = Edits()
        edits.remove(module, table, key)
        assert key not in slots(module, table)
        with pytest.raises((AssertionError, ValueError)):
            deep.check()
        edits.undo()
        edits.undo()
        deep.check()
    edits = Edits()
    for key in keys(module, table):
        edits.remove(module, table, key)
    assert not keys(module, table)
    edits.undo()
    deep.check()
    assert not writes_in_force(module)


@pytest.mark.parametrize("table", TABLES)
def test_a_removed_key_comes_back_in_its_place_whatever_is_there_now(table: str) -> None:
    for meddle in range(4):
        module = model()
        first, middle, *_ = keys(module, table)
        before, edits = list(slots(module, table).items()), Edits()
        edits.remove(module, table, middle) if meddle < 2 else edits.set(module, table, middle, value_for(table))
        edits.remove(module, table, first)
        if meddle % 2:
            slots(module, table)[first] = value_for(table)  # at the end
            slots(module, table).pop(middle, None)
            if table == "_modules" and meddle == 3:  # a child that a user has taken out stays out
                before = [(key, value) for key, value in before if key != middle]
        slots(module, table)["mine"] = mine = value_for(table)
        edits.undo()
        now = list(slots(module, table).items())
        assert [(key, value) for key, value in now if key != "mine"] == before
        assert slots(module, table)["mine"] is mine


def test_keys_of_a_user_stay_where_they_are() -> None:
    module, edits = model(), Edits()
    hooks = module._forward_pre_hooks
    first, second, third = hooks
    edits.remove(module, "_forward_pre_hooks", second)
    mine = module.register_forward_pre_hook(hook, prepend=True).id
    last = module.register_forward_pre_hook(hook).id
    edits.remove(module, "_forward_pre_hooks", third)
    edits.undo()
    assert module._forward_pre_hooks is hooks
    assert list(hooks) == [mine, first, second, third, last]


def test_a_new_key_stays_behind_those_that_a_user_moved() -> None:
    module, edits = model(), Edits()
    hooks = module._forward_pre_hooks
    first, second, third = hooks
    for key in hooks:
        edits.set(module, "_forward_pre_hooks", key, hook)
    hooks.move_to_end(first)
    mine = module.register_forward_pre_hook(hook).id
    edits.undo()
    assert list(hooks) == [first, second, third, mine]


def test_the_removal_of_a_key_that_is_not_there_outlives_an_older_one() -> None:
    module, old, young = model(), Edits(), Edits()
    deep = Deep(module)
    old.remove(module, "__dict__", "flag")
    young.remove(module, "__dict__", "flag")
    old.undo()
    assert "flag" not in vars(module)
    young.undo()
    deep.check()


def test_the_class_is_a_slot() -> None:
    module, old, young = model(), Edits(), Edits()
    deep = Deep(module)
    old.set_class(module, Other)
    assert type(module) is Other
    young.set_class(module, nn.Module)
    old.undo()
    assert type(module) is nn.Module
    module.__class__ = Other  # as torch's parametrizations do
    young.undo()
    deep.check()
    assert not writes_in_force(module)


def test_what_is_held_stays_as_long_as_the_younger_journal() -> None:
    module, old, young = model(), Edits(), Edits()
    deep = Deep(module)
    old.set_class(module, Other)
    old.set(module, "__dict__", "flag", "old")
    old.set(module, "_parameters", "new", None)
    old.remove(module, "_modules", "child")
    young.set(module, "__dict__", "flag", "young")
    young.hold(module)
    writes = len(young)
    young.hold(module)
    assert len(young) == writes == 4
    held = Deep(module)
    old.undo()
    held.check()
    young.undo()
    deep.check()
    young.hold(module)
    assert len(young) == 0


@pytest.mark.parametrize("seed", range(200))
def test_any_writes_of_any_journals_are_undone_in_any_order(seed: int) -> None:
    chance, module = random.Random(seed), model()
    deep, journals = Deep(module), [Edits() for _ in range(4)]
    writes: list[Callable[[Edits, str, str | int], None]] = [
        lambda edits, table, key: edits.set(module, table, key, value_for(table)),
        lambda edits, table, key: edits.set(module, table, f"new_{chance.randrange(3)}", value_for(table)),
        lambda edits, table, key: edits.remove(module, table, key),
        lambda edits, table, key: edits.set_class(module, chance.choice((Everything, Other))),
        lambda edits, table, key: edits.hold(module),
        lambda edits, table, key: edits.undo(),
        lambda edits, table, key: slots(module, table).update({key: value_for(table)}),
    ]
    known = {table: keys(module, table) for table in TABLES}
    for _ in range(40):
        table, write = chance.choice(TABLES), chance.choice(writes)
        candidates = known[table]
        if write is writes[-1]:  # a user writes over what a journal wrote; other slots would stay as the user has them
            written = {name for j in journals for layer in j._stack for where, name in layer.old if where == table}
            # Modules that a user puts in stay.
            candidates = [key for key in candidates if key in written and table != "_modules"]
        if candidates:
            write(chance.choice(journals), table, chance.choice(candidates))
    for journal in chance.sample(journals, 4):
        journal.undo()
    deep.check()
    assert not writes_in_force(module)


def test_many_keys() -> None:
    module, edits = nn.Sequential(*(nn.Identity() for _ in range(500))), Edits()
    names = list(module._modules)
    for name in names[::2]:
        edits.set(module, "_modules", name, nn.ReLU())
        edits.set(module, "_modules", f"new_{name}", nn.ReLU())
    edits.undo()
    assert list(module._modules) == names
