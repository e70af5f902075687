"""Hooks that are on a model before a block and change values: refused where a merge leads across, named in maps."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from canon_bridge import FunctionChangedError, UncoveredOperationWarning, canonize, canonized_copy
from canon_bridge.captum import LRP
from canon_bridge.zennit import ModelCanonizer
from tests.support.errors import relative_error
from tests.support.in_zennit import epsilon_composite
from tests.support.pieces import conv, image
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

Register = Callable[[nn.Module, bool], Any]


class Net(nn.Module):
    """Two blocks with a BatchNorm in each: one behind its convolution, one before the convolution of the next block."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Sequential(conv()), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
        self.third = nn.Sequential(conv(), nn.Flatten(), nn.Linear(144, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x)))


def network() -> Net:
    return randomize(Net().double()).requires_grad_(False)


def after(module: nn.Module, changes: bool, with_kwargs: bool = False) -> Any:
    def hook(module: nn.Module, *values: Any) -> Any:
        return values[-1] * 0.5 if changes else values[-1].clone()

    return module.register_forward_hook(hook, with_kwargs=with_kwargs)


def before(module: nn.Module, changes: bool, with_kwargs: bool = False) -> Any:
    def hook(module: nn.Module, args: Any, *kwargs: Any) -> Any:
        result = args[0] * 0.5 if changes else args[0].clone()
        return ((result,), *kwargs) if kwargs else result

    return module.register_forward_pre_hook(hook, with_kwargs=with_kwargs)


# Where values in the canonical model are not those of the model itself: (prefer, module, side).
CROSSED = [
    ("left", "first.0.0", after),
    ("left", "first.0", after),
    ("left", "first.1", before),
    ("left", "second.0", after),  # nothing is before it but a ReLU: it goes right, into the third block
    ("left", "second.1", before),
    ("left", "second.1", after),
    ("left", "second", after),
    ("left", "third", before),
    ("left", "third.0", before),
    ("right", "first.1", before),
    ("right", "second.0", after),
    ("right", "third.0", before),
]
KEPT = [
    ("left", "first.0.0", before),
    ("left", "first", before),
    ("left", "first.1", after),
    ("left", "first", after),
    ("left", "second.0", before),
    ("left", "second", before),
    ("left", "third.0", after),
    ("left", "third", after),
    ("left", "", after),
    ("right", "first.1", after),
    ("right", "second.0", before),
]
WITH = pytest.mark.parametrize("with_kwargs", [False, True])


@WITH
@pytest.mark.parametrize(("prefer", "path", "register"), CROSSED)
def test_one_that_a_merge_leads_across_is_refused_where_it_changes_values(
    prefer: Any, path: str, register: Any, with_kwargs: bool
) -> None:
    model, x = network(), image()
    expected = model(x)
    handle = register(model.get_submodule(path), changes=True, with_kwargs=with_kwargs)
    side = "output" if register is after else "input"
    with canonize(model, prefer=prefer):
        with pytest.raises(
            FunctionChangedError, match=rf"^a hook on {path} changes its {side}, and .* is merged across"
        ):
            model(x)
        handle.remove()
        assert relative_error(model(x), expected) < 1e-12
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    handle = register(model.get_submodule(path), changes=False, with_kwargs=with_kwargs)
    with canonize(model, prefer=prefer):
        assert relative_error(model(x), expected) < 1e-12
    handle.remove()


@WITH
@pytest.mark.parametrize(("prefer", "path", "register"), KEPT)
def test_elsewhere_it_changes_what_it_changes_in_the_model_itself(
    prefer: Any, path: str, register: Any, with_kwargs: bool
) -> None:
    model, x = network(), image()
    register(model.get_submodule(path), changes=True, with_kwargs=with_kwargs)
    snapshot, expected = Snapshot(model), model(x)
    with canonize(model, prefer=prefer):
        assert relative_error(model(x), expected) < 1e-12
    snapshot.check()


def test_a_copy_refuses_it_too() -> None:
    model, x = network(), image()
    after(model.first[0][0], changes=True)
    for twin in (canonized_copy(model), copy.deepcopy(canonized_copy(model))):
        with pytest.raises(FunctionChangedError, match=r"a hook on first\.0\.0"):
            twin(x)


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("framework", ["captum", "zennit"])
def test_a_map_warns_of_it(framework: str, changes: bool) -> None:
    model, x = network(), image()
    after(model.third[0], changes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if framework == "captum":
            LRP(model).attribute(x, target=1)
        else:
            with epsilon_composite(1e-6, [ModelCanonizer()]).context(model):
                model(x)
    messages = {str(entry.message) for entry in caught if entry.category is UncoveredOperationWarning}
    assert len(messages) == changes
    assert all(message.startswith("a hook on third.0 changes its output; that is no operation") for message in messages)


@pytest.mark.parametrize("outer_first", [False, True])
def test_blocks_that_end_in_any_order_leave_the_hooks_themselves(outer_first: bool) -> None:
    model = network()
    after(model.first[0][0], changes=True)
    after(model.first[1], changes=True)
    snapshot = Snapshot(model)
    outer = canonize(model, prefer="left")
    outer.apply()
    inner = canonize(model, prefer="right")
    inner.apply()
    for block in (outer, inner) if outer_first else (inner, outer):
        block.undo()
    snapshot.check()


def test_one_that_is_removed_in_the_block_stays_removed() -> None:
    model = network()
    handle, stays = after(model.first[0][0], changes=True), after(model.first[0][0], changes=True)
    with canonize(model):
        handle.remove()
        assert len(model.first[0][0]._forward_hooks) == 1
    assert list(model.first[0][0]._forward_hooks) == [stays.id]
