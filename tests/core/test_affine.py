"""Per-channel maps: repeated behind a flatten, composed, side by side, selected; each against what it does to data."""

import pytest
import torch

from canon_bridge.core.affine import Affine, working_dtype
from tests.core.test_norms import CHANNELS, WRONG, apply
from tests.support.errors import relative_error


@pytest.mark.parametrize("times", [1, 2, 6])
def test_repeat_follows_flatten(times: int) -> None:
    affine = Affine(torch.randn(CHANNELS), torch.randn(CHANNELS))
    x = torch.randn(3, CHANNELS, times)
    repeated = affine.repeat(times)
    assert torch.equal(apply(repeated, x.flatten(1)), apply(affine, x).flatten(1))
    if times > 1:
        tiled = Affine(affine.scale.repeat(times), affine.shift.repeat(times))
        assert relative_error(apply(tiled, x.flatten(1)), apply(affine, x).flatten(1)) > WRONG


def maps(number: int) -> list[Affine]:
    return [Affine(torch.randn(CHANNELS).double(), torch.randn(CHANNELS).double()) for _ in range(number)]


def test_after_is_the_composition_in_this_order() -> None:
    first, second = maps(2)
    x = torch.randn(3, CHANNELS, 4, dtype=torch.float64)
    expected = apply(second, apply(first, x))
    assert relative_error(apply(second.after(first), x), expected) < 1e-15
    assert relative_error(apply(first.after(second), x), expected) > WRONG


def test_joined_is_side_by_side() -> None:
    first, second = maps(2)
    x, y = torch.randn(2, 3, CHANNELS, 4, dtype=torch.float64)
    both = apply(first.joined(second), torch.cat([x, y], 1))
    assert torch.equal(both, torch.cat([apply(first, x), apply(second, y)], 1))


def test_selected_channels_and_those_that_stay_as_they_are() -> None:
    (affine,) = maps(1)
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    value = apply(affine.select((4, -1, 0, 0, -1, 2)), x)
    assert torch.equal(value[:, [1, 4]], x[:, [1, 4]])
    for place, channel in ((0, 4), (2, 0), (3, 0), (5, 2)):
        expected = affine.scale[channel] * x[:, place] + affine.shift[channel]
        assert torch.equal(value[:, place], expected)


def test_nothing_is_merged_in_less_than_float32() -> None:
    half, single, double = torch.float16, torch.float32, torch.float64
    assert [working_dtype(dtype) for dtype in (half, torch.bfloat16, single, double)] == [
        single,
        single,
        single,
        double,
    ]
