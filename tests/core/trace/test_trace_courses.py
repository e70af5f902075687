"""Inputs that take another course through a forward than the example inputs: the right result, or an error."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import canonize
from tests.core.trace.test_trace_values import Function, body
from tests.support.errors import relative_error
from tests.support.pieces import Written, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


def early(m: nn.Module, x: Tensor) -> Tensor:
    y = body(m, x)
    return F.relu(y) if x.shape[-1] > 5 else torch.tanh(y)


def over_the_batch(m: nn.Module, x: Tensor) -> Tensor:
    total = 0
    for part in F.relu(body(m, x)):
        total = total + part
    return total


def counted(m: nn.Module, x: Tensor) -> Tensor:
    return F.relu(body(m, x)) / int(x.shape[0])


def signed(m: nn.Module, x: Tensor) -> Tensor:
    return F.relu(body(m, x)) if x.sum() > 0 else -F.relu(body(m, -x))


def contains(m: nn.Module, x: Tensor) -> Tensor:
    y = body(m, x)
    return F.relu(y) if 5 in x.shape else torch.tanh(y)


def by_dtype(m: nn.Module, x: Tensor) -> Tensor:
    y = body(m, x.double())
    return F.relu(y) if x.dtype == torch.float32 else torch.tanh(y)


def by_rank(m: nn.Module, x: Tensor) -> Tensor:
    return F.relu(body(m, x[None] if x.ndim == 3 else x))


COURSES: dict[str, tuple[Function, Tensor, Tensor]] = {
    "shape": (early, image(), image(2, 4, 4, 4)),
    "a size among the others": (contains, image(2, 4, 5, 6), image(2, 4, 6, 6)),
    "dtype": (by_dtype, image().float(), image()),
    "rank": (by_rank, image(4, 5, 5), image()),
    "batch": (over_the_batch, image(1, 4, 6, 6), image(3, 4, 6, 6)),
    "number": (counted, image(1, 4, 6, 6), image(3, 4, 6, 6)),
    "values": (signed, image().abs(), -image().abs()),
}


@pytest.mark.parametrize("course", COURSES)
def test_inputs_that_take_another_course_than_the_example_get_the_right_result_or_an_error(course: str) -> None:
    function, example, other = COURSES[course]
    model = randomize(Written(function, a=conv(), norm=norm(), relu=nn.ReLU(True), b=conv()))
    before, expected = Snapshot(model), model(other)
    canonization = canonize(model, example_inputs=example)
    canonization.apply()
    try:
        value = model(other)
    except (ValueError, RuntimeError):
        pass
    else:
        assert value.shape == expected.shape
        assert relative_error(value, expected) < 1e-12
    finally:
        canonization.undo()
    before.check()
