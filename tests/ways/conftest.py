"""What the tests of compilation and export share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """Have dynamo forget what it has compiled: it counts per function, and refuses when there is too much."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
