"""What forward asks of its input by a function: no branch, kept in a new forward, without a part in the map."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize, plan
from tests.support.errors import relative_error
from tests.support.pieces import Written, conv, image, norm
from tests.support.statistics import randomize

CHECKS: dict[str, tuple[Callable[[Tensor], object], type[Exception]]] = {
    "assert": (lambda x: torch._assert(x.shape[0] < 3, "too many"), AssertionError),
    "check": (lambda x: torch._check(x.shape[0] < 3), RuntimeError),
    "check, with a message": (lambda x: torch._check(x.shape[0] < 3, lambda: "too many"), RuntimeError),
    "check of what is no tensor": (lambda x: (torch._check(True), torch._check(x.shape[0] < 3)), RuntimeError),
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_is_made_in_the_block_too(name: str) -> None:
    check, error = CHECKS[name]

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        check(x)
        return m.norm(m.a(x)).relu() + x

    model = randomize(Written(forward, a=conv(), norm=norm()).double())
    x = image(2, 4, 6, 6)
    expected = model(x)
    assert plan(model).uncovered == ()
    with canonize(model):
        assert relative_error(model(x), expected) < 1e-14
        with pytest.raises(error):
            model(torch.cat([x, x]))
    with pytest.raises(error):
        model(torch.cat([x, x]))
