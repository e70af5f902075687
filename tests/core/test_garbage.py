"""No search for garbage meanwhile; what was switched off before stays so."""

import gc

import pytest
from torch import nn

from canon_bridge import canonize
from canon_bridge.core.garbage import without_collection


@pytest.mark.parametrize("was_enabled", [True, False])
@pytest.mark.parametrize("error", [None, ValueError])
def test_the_switch_is_where_it_was(was_enabled: bool, error: type[Exception] | None) -> None:
    before = gc.isenabled()
    (gc.enable if was_enabled else gc.disable)()
    try:
        with pytest.raises(ValueError, match="inside") if error else without_collection():
            with without_collection(), without_collection():
                assert not gc.isenabled()
                if error:
                    raise error("inside")
            assert not gc.isenabled()
        assert gc.isenabled() is was_enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_garbage_is_searched_for_inside_the_block_and_after_it() -> None:
    assert gc.isenabled()
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval()
    with canonize(model):
        assert gc.isenabled()
    assert gc.isenabled()
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        canonize(model)
    assert gc.isenabled()
