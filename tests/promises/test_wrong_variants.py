"""The tests notice what is wrong: for each wrong variant of the mathematics one fails that mirrors its place."""

import pytest
import torch

from canon_bridge.core.affine import Affine
from canon_bridge.core.layers.border import AxisGeometry
from canon_bridge.core.norms import register_norm
from tests.support import variants
from tests.support.variants import composed_in_the_other_order, no_border_at_the_upper_end
from tests.support.wrong import NeverReachedError, Variant, in_place, meet, variants_in, wrong

VARIANTS = variants_in(variants)


@wrong(Affine.joined)
def nothing(right, self, other):
    return right(self, other)


@wrong(Affine.identity)
def never_reached(right, cls, like):
    return right(cls, like)


def test_every_variant_has_a_name_of_its_own_and_tests_that_mirror_its_place() -> None:
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS) > 40
    assert not [variant.name for variant in VARIANTS if not variant.tests]
    assert "test_affine.py" in [path.name for path in nothing.tests]


def test_a_variant_is_in_place_in_the_block_alone() -> None:
    one, other = (Affine(*torch.randn(2, 3)) for _ in range(2))
    after, code = Affine.after, Affine.after.__code__
    with in_place(composed_in_the_other_order) as called:
        assert not called
        assert torch.equal(one.after(other).shift, other.scale * one.shift + other.shift)
        assert called == {composed_in_the_other_order}
    with pytest.raises(AttributeError), in_place(composed_in_the_other_order):
        one.after(None)
    assert Affine.after is after
    assert after.__code__ is code
    assert torch.equal(one.after(other).shift, one.scale * other.shift + one.shift)


def test_a_variant_of_a_property_is_in_place() -> None:
    geometry = AxisGeometry(2, 1, 1, 0, 1)
    with in_place(no_border_at_the_upper_end):
        assert not geometry.has_border
    assert geometry.has_border


def test_what_a_table_or_a_partial_holds_and_defaults_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    @wrong(register_norm)
    def keywords(right, *args, **kwargs):
        return args, kwargs, right.__kwdefaults__["frozen"]

    table = {"function": register_norm}
    with in_place(keywords):
        assert table["function"](1, read=2) == ((1,), {"read": 2}, False)


def test_a_variant_that_changes_nothing_survives() -> None:
    status, output = meet(nothing)
    assert status == pytest.ExitCode.OK, output


def test_a_variant_that_is_never_reached_is_an_error() -> None:
    with pytest.raises(NeverReachedError, match=r"never_reached was not called:\n\.+"):
        meet(never_reached)


def test_a_variant_is_noticed() -> None:
    status, output = meet(composed_in_the_other_order)
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "test_affine.py::test_after_is_the_composition_in_this_order" in output


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_is_noticed(variant: Variant) -> None:
    status, output = meet(variant)
    assert status == pytest.ExitCode.TESTS_FAILED, output
