"""Look for no garbage where many new objects are made that are all alike: the search takes longer than the work."""

import gc
from collections.abc import Generator
from contextlib import ExitStack, contextmanager


@contextmanager
def without_collection() -> Generator[None]:
    """Have the interpreter look for no cyclic garbage in the block, or in the function that this decorates."""
    with ExitStack() as stack:  # which an interrupt between two lines of ours does not pass by
        if gc.isenabled():
            stack.callback(gc.enable)
            gc.disable()
        yield
