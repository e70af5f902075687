"""Random numbers that a forward draws are drawn at each call, not once for all when it is traced."""

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize
from tests.support.statistics import randomize

DRAWN = {
    "torch.rand": lambda: torch.rand((), dtype=torch.float64),
    "torch.randn": lambda: torch.randn(1, 4, 1, 1, dtype=torch.float64),
    "uniform_": lambda: torch.empty(1, dtype=torch.float64).uniform_(),
    "torch.normal": lambda: torch.normal(0.0, 1.0, (1,), dtype=torch.float64),
}


class Noisy(nn.Module):
    def __init__(self, draw: object) -> None:
        super().__init__()
        self.draw, self.conv, self.norm = draw, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu() + self.draw())


@pytest.mark.parametrize("name", DRAWN)
def test_they_are_drawn_at_each_call(name: str) -> None:
    model, x = randomize(Noisy(DRAWN[name]).double()), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.manual_seed(3)
    expected = model(x), model(x)
    with canonize(model):
        torch.manual_seed(3)
        found = model(x), model(x)
    assert not torch.allclose(found[0], found[1])
    for value, right in zip(found, expected, strict=True):
        assert torch.allclose(value, right, rtol=1e-10)


def test_they_are_drawn_from_the_generator_that_forward_names() -> None:
    generator = torch.Generator()

    def draw() -> Tensor:
        return torch.randn(1, 4, 1, 1, dtype=torch.float64, generator=generator)

    model, x = randomize(Noisy(draw).double()), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    generator.manual_seed(3)
    expected = model(x), model(x)
    with canonize(model):
        generator.manual_seed(3)
        found = model(x), model(x)
    assert not torch.allclose(found[0], found[1])
    for value, right in zip(found, expected, strict=True):
        assert torch.allclose(value, right, rtol=1e-10)
