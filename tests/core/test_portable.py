"""Functions that pickle finds by no name: stored with a copy, found again where they are, or refused by name."""

import functools
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from canon_bridge import canonized_copy
from canon_bridge.core.portable import Portable, named, portable
from tests.core.test_canonize_copy import HOW
from tests.support.errors import relative_error
from tests.support.statistics import randomize


class Calls(nn.Module):
    """Functions that pickle finds by no name: a pool of two forms, an autograd function, an operator of ATen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, *, scale: float = 2.0) -> Tensor:
        h = torch.ops.aten.relu.default(self.norm(self.conv(x)))
        h = F.max_pool2d(Doubled.apply(h), h.size()[-1] // 2)
        return F.softplus(h + torch.fft.fft(h).real) * scale


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


@pytest.mark.parametrize("how", HOW)
def test_functions_that_have_no_name_are_stored(how: str) -> None:
    model, x = randomize(Calls().double()).eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    again = HOW[how](canonized_copy(model))
    assert relative_error(again(x), model(x)) < 1e-12
    assert relative_error(again(x, scale=3.0), model(x, scale=3.0)) < 1e-12
    assert relative_error(again(x, scale=3.0), model(x)) > 1e-2


def _other_process(twin: nn.Module, x: Tensor, results: Any) -> None:
    results.put(twin(x).detach().numpy())


def test_a_copy_goes_to_a_process_that_is_spawned() -> None:
    model, x = randomize(Calls().double()).eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_other_process, args=(canonized_copy(model), x, results))
    process.start()
    found = torch.from_numpy(results.get(timeout=120))
    process.join()
    assert relative_error(found, model(x)) < 1e-12


class CallsLocal(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        class Local(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.relu()

        return Local.apply(super().forward(x))


def test_a_function_that_cannot_be_found_again_is_named() -> None:
    twin = canonized_copy(CallsLocal(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())
    with pytest.raises((pickle.PicklingError, AttributeError), match="Local"):
        pickle.dumps(twin)


def tripled(x: Tensor) -> Tensor:
    return 3 * x


with warnings.catch_warnings(action="ignore"):
    scripted = torch.jit.script(tripled)

doubled = lambda x: 2 * x  # noqa: E731
FOUND = {
    "a module": math,
    "a pool of two forms": F.max_pool2d,
    "a lambda at the top level": doubled,
    "an operator": torch.ops.aten.add,
    "an overload": torch.ops.aten.add.Scalar,
}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_found_by_its_place_comes_back_as_the_same_object(name: str) -> None:
    made = portable(FOUND[name])
    again = pickle.loads(pickle.dumps(made))
    assert type(made) is type(again) is Portable
    assert again.found is made.found is FOUND[name]


@pytest.mark.parametrize("value", [F.relu, torch.float64, functools.partial(F.relu, inplace=True), (1, "a"), None])
def test_what_pickle_can_store_stays_as_it_is(value: Any) -> None:
    assert portable(value) is value


def test_it_is_called_and_printed_like_what_it_stands_for() -> None:
    x = torch.randn(1, 1, 4, 4)
    made = portable(F.max_pool2d)
    assert torch.equal(made(x, 2, stride=1), F.max_pool2d(x, 2, stride=1))
    assert repr(portable(math)) == "math"
    assert repr(Portable(3)) == "3"


def test_a_call_of_a_function_that_torch_differentiates_otherwise_has_a_name_and_comes_back() -> None:
    x = torch.randn(3, requires_grad=True)
    call = named(Doubled, "a_name")
    again = pickle.loads(pickle.dumps(portable(call)))
    assert call is named(Doubled, "a_name") is again.found
    assert call.__name__ == call.__qualname__ == "a_name"
    assert torch.equal(again(x), 2 * x)
    assert type(again(x).grad_fn).__name__ == "DoubledBackward"
    assert torch.equal(named(scripted, "tripled")(x), 3 * x)


def test_what_has_no_place_is_refused_when_it_is_stored_and_can_be_called_until_then() -> None:
    for function, value in ((lambda x: x + 1, 5), (named(scripted, "tripled"), 12)):
        made = portable(function)
        assert made(torch.tensor(4)) == value
        with pytest.raises(
            pickle.PicklingError, match=r"function.* cannot be found by a name .*state_dict\(\) instead"
        ):
            pickle.dumps(made)
