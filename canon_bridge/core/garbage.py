"""Look for no garbage where many new objects are made that are all alive: the search takes longer than the work."""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Generator[None]:
    """Have the interpreter look for no cyclic garbage in the block, or in the function that this decorates."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
