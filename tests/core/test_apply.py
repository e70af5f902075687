"""One merge carried out by hand: into a BatchNorm, on either side, of channels in any order."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize
from canon_bridge.core.apply import merge
from canon_bridge.core.norms import is_identity
from canon_bridge.core.plan import Chain, Step
from canon_bridge.core.restore import Edits
from tests.support.errors import relative_error
from tests.support.pieces import conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

TOLERANCE, WRONG = 1e-14, 1e-3


@pytest.mark.parametrize("direction", ["left", "right"])
@torch.no_grad()
def test_a_norm_goes_into_another_norm(direction: str) -> None:
    model = randomize(nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4)).double())
    norm, taker = ("1", "0") if direction == "left" else ("0", "1")
    x, edits, before = torch.randn(2, 4, 3, 3, dtype=torch.float64), Edits(), Snapshot(model)
    expected = model(x)
    assert relative_error(model[1](x), expected) > WRONG
    assert relative_error(model[0](model[1](x)), expected) > WRONG, "the order does not matter here"
    merge(edits, model.get_submodule, Chain(norm, 4, direction, (Step(taker, (0, 1, 2, 3)),), ()), True)
    assert is_identity(model.get_submodule(norm))
    assert relative_error(model(x), expected) < TOLERANCE
    assert relative_error(model.get_submodule(taker)(x), expected) < TOLERANCE
    edits.undo()
    before.check()


@torch.no_grad()
def test_a_norm_takes_some_channels_and_keeps_its_own_map_on_the_others() -> None:
    model = randomize(nn.ModuleDict({"norm": nn.BatchNorm2d(3), "taker": nn.BatchNorm2d(5)}).double())
    x, other = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 2, 4, 4, dtype=torch.float64)

    def value(y: torch.Tensor) -> torch.Tensor:
        return model["taker"](torch.cat([y[:, 2:], other, y[:, :2]], 1))

    expected = value(model["norm"](x))
    step = Step("taker", (2, -1, -1, 0, 1))
    merge(Edits(), model.get_submodule, Chain("norm", 3, "right", (step,), ()), True)
    assert relative_error(value(x), expected) < TOLERANCE


class CallsItself(nn.Module):
    """Some rounds of one block; the last call computes nothing, and needs no new forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(self, x: Tensor, rounds: int = 2) -> Tensor:
        return x if rounds == 0 else self(self.norm(self.conv(x)).relu(), rounds - 1)


@pytest.mark.parametrize("prefer", ["left", "right"])
def test_a_stand_in_has_the_forward_of_what_it_stands_for_and_not_the_new_one(prefer: Any) -> None:
    model, x = randomize(nn.Sequential(CallsItself()).double()), image()
    before, expected = Snapshot(model), model(x)
    with canonize(model, prefer=prefer):
        assert relative_error(model(x), expected) < 1e-12
    before.check()
