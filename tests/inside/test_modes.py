"""Conversions and modes inside the block: ``.to``, ``.half``, ``.train``, ``requires_grad_``, ``apply``."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from canon_bridge import canonize, canonized_copy
from tests.inside.models import BLOCKS, made, mostly
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, Written, conv, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

HARMLESS: dict[str, Callable[[nn.Module], object]] = {
    "double": lambda model: model.double(),
    "to the same device": lambda model: model.to("cpu"),
    "requires_grad_": lambda model: model.requires_grad_(False),
    "zero_grad": lambda model: model.zero_grad(),
    "apply": lambda model: model.apply(lambda module: None),
    "eval": lambda model: model.eval(),
    "train and eval": lambda model: model.train().eval(),
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("use", HARMLESS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", mostly("branches"))
def test_what_changes_no_value_does_no_harm(name: str, block: str, use: str) -> None:
    model, x, expected = made(name)
    before = Snapshot(model)
    with BLOCKS[block](model):
        HARMLESS[use](model)
        assert relative_error(model(x).detach(), expected) < 1e-12
    if use != "channels last":
        before.check()
    assert relative_error(model(x), expected) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefer", BOTH)
@pytest.mark.parametrize("name", mostly("everything", "branches", "leftover"))
def test_a_change_of_dtype_works_in_the_block_and_stays(name: str, prefer: str, dtype: torch.dtype) -> None:
    model, x, _ = made(name)
    if name != "everything":
        randomize(model, mild=True)
    expected = model(x).detach()
    with canonize(model, prefer=prefer):
        model.to(dtype)
        value = model(x.to(dtype))
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {dtype}
    for output in (value, model(x.to(dtype))):
        assert output.dtype == dtype
        assert relative_error(output.double(), expected) < 30 * torch.finfo(dtype).eps


@pytest.mark.parametrize("prefer", BOTH)
def test_a_change_of_device_is_not_lost_in_silence(prefer: str) -> None:
    for name in ("pre-activation", "branches"):
        model, x, _ = made(name)
        shape = model(x).shape
        canonization = canonize(model, prefer=prefer)
        canonization.apply()
        model.to("meta")
        assert model(x.to("meta")).shape == shape
        with pytest.warns(UserWarning, match="changed while the model was canonical"):
            canonization.undo()


@pytest.mark.parametrize("name", mostly("everything", "branches", "leftover"))
@pytest.mark.parametrize("block", ["left", "right", "captum"])
def test_training_mode_in_the_block_is_refused_at_the_first_forward(block: str, name: str) -> None:
    model, x, expected = made(name)
    with BLOCKS[block](model):
        model.train()
        with pytest.raises(ValueError, match="training"):
            model(x)
    assert all(module.training for module in model.modules())  # as the user said, also where others stood in
    model.eval()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("prefer", BOTH)
def test_eval_of_one_leftover_is_its_own(prefer: str) -> None:
    model, *_ = made("leftover")
    with canonize(model, prefer=prefer):
        model[1].train()
    assert [module.training for module in model] == [False, True, False, False, False, False]


@pytest.mark.parametrize("prefer", BOTH)
def test_a_frozen_norm_that_stands_in_training_mode_stays_there(prefer: str) -> None:
    model = nn.Sequential(nn.Softmax(1), FrozenBatchNorm2d(4), nn.Softmax(1)).double().train()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    expected = model(x)
    with canonize(model, prefer=prefer):
        assert type(model[1]) is nn.Conv2d
        assert relative_error(model(x), expected) < 1e-12
        model.train()
        assert relative_error(model(x), expected) < 1e-12
    assert model[1].training


@pytest.mark.parametrize("prefer", BOTH)
def test_a_model_in_training_mode_is_refused_on_entry(prefer: str) -> None:
    model = randomize(nn.Sequential(conv(), norm()).double()).train()
    with pytest.raises(ValueError, match=r"1 is in training mode.*model\.eval\(\)"):
        canonize(model, prefer=prefer)


class Asking(Written):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(F.dropout(self.a(x), 0.5, self.training))


def test_a_forward_that_asks_for_its_mode_is_refused_in_another_one() -> None:
    model = Asking(None, a=nn.Conv2d(4, 4, 1))
    before, x = Snapshot(model), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    expected = model(x)
    with canonize(model):
        assert torch.equal(model(x), expected)
        model.train()
        with pytest.raises(ValueError, match="the model is in training mode now, and its forward asks for that"):
            model(x)
        model.eval()
        assert torch.equal(model(x), expected)
    before.check()


class Flags(nn.Module):
    """A forward that names plain attributes, one of them in a method that it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.scale, self.pools, self.last, self.note = 1.5, False, 0.5, "unread"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.scale
        return F.relu(self.norm(self.a(self.pooled(x)))) * self.scale

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 2) if self.pools else x


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_flag_that_forward_names_is_refused_where_it_is_changed_later(is_copy: bool) -> None:
    model, x = randomize(Flags().double()), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    expected = model(x)
    with nullcontext(canonized_copy(model)) if is_copy else canonize(model) as canonical:
        canonical.note = "set"
        for name, value in (("scale", 3.0), ("pools", True), ("scale", None)):
            former = getattr(canonical, name)
            setattr(canonical, name, value)
            with pytest.raises(ValueError, match=f"the model has {name}={value!r} now, .*canonized with {former!r}"):
                canonical(x)
            setattr(canonical, name, former)
        canonical.last = 2.5  # which it writes and does not read
        assert relative_error(canonical(x), expected) < 1e-12
    assert canonical.note == "set"
