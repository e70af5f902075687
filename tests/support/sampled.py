"""Which combinations of options run by default, where all of them take too long."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest


def every_other(*options: Sequence[Any]) -> list[Any]:
    """Return a parameter for each combination; of neighbours, which differ in one option, one is slow."""
    found: list[Any] = []
    for places in product(*(range(len(option)) for option in options)):
        chosen = [option[place] for option, place in zip(options, places, strict=True)]
        found.append(pytest.param(*chosen, marks=[pytest.mark.slow] if sum(places) % 2 else []))
    return found
