"""Calls with a proxy where no tensor belongs are recorded, in torch as it is and as if its parser took none there."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, cat, nn

from canon_bridge import canonize
from canon_bridge.core import versions
from canon_bridge.core.trace import patches
from tests.support.errors import alive
from tests.support.statistics import randomize

PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "size": lambda x: x + torch.full((x.shape[0], 1, 1, 1), 1.5),
    "dtype": lambda x: x + torch.full((1,), 1.5, dtype=x.dtype),
    "kernel": lambda x: F.avg_pool2d(x, kernel_size=x.shape[2:]),
    "list": lambda x: torch.cat(x.chunk(2, 1), 1),
    "imported list": lambda x: cat(x.chunk(2, 1), 1),
    "number": lambda x: x * torch.linspace(0.5, 1, x.shape[3]),
    "method of a tensor": lambda x: x + torch.ones(1, 1, 1, 1).expand(x.shape[0], 4, 1, 1),
    "method without a proxy": lambda x: x + torch.ones(3).roll(1, 0).sum(),
}


class Model(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.norm(self.conv(x)))


@pytest.fixture(params=["as it is", "as if older"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "as if older":
        monkeypatch.setattr(versions, "takes_proxies_everywhere", lambda: False)
    patches._parsed.cache_clear()
    yield
    patches._parsed.cache_clear()


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("function", PLACES.values(), ids=PLACES)
def test_a_call_is_recorded_wherever_a_proxy_stands(function: Callable[[Tensor], Tensor]) -> None:
    model = randomize(Model(function)).double()
    inputs = [torch.randn(batch, 3, 7, 7, dtype=torch.float64) for batch in (2, 3)]
    expected = [model(x) for x in inputs]
    with canonize(model):
        assert alive(model) == []
        for x, wanted in zip(inputs, expected, strict=True):
            torch.testing.assert_close(model(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("parser")
def test_torch_is_itself_again_after_a_trace() -> None:
    homes = (torch, F, torch.linalg, torch.fft, torch.special, Tensor, globals())
    before = [dict(home if isinstance(home, dict) else vars(home)) for home in homes]
    with canonize(randomize(Model(PLACES["list"]))):
        pass
    for home, former in zip(homes, before, strict=True):
        now = home if isinstance(home, dict) else vars(home)
        assert {name for name, value in former.items() if now.get(name) is not value} == set()
        assert now.keys() - former.keys() - {"__builtins__"} == set()


def test_functions_and_methods_are_found_by_name() -> None:
    functions = {name for _, name, _ in versions.parsed_functions()}
    assert {"full", "cat", "avg_pool2d", "linspace", "arange"} <= functions
    assert {"expand", "roll", "sum", "new_full"} <= {name for name, _ in versions.parsed_methods()}
