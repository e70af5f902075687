"""Activation checkpointing, taken out of a forward while it is traced.

Floor 0: imports torch alone. A checkpoint runs its function a second time in the backward pass: hooks of attribution
frameworks would see every module in it twice. Outside training it only saves memory.
"""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch.utils import checkpoint

_GENERATORS = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")


@contextmanager
def without_checkpoints(found: Callable[[], None]) -> Generator[None]:
    """Make :func:`torch.utils.checkpoint.checkpoint` call its function and nothing else while the block lasts.

    Parameters
    ----------
    found : callable
        Called for each checkpoint.
    """

    class Reentrant:
        @staticmethod
        def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
            found()
            return function(*args)

    def around(*args: Any, **kwargs: Any) -> Generator[None]:
        found()
        yield

    with ExitStack() as stack:
        if hasattr(checkpoint, "CheckpointFunction"):
            stack.enter_context(patch.object(checkpoint, "CheckpointFunction", Reentrant))
        for name in _GENERATORS:
            if hasattr(checkpoint, name):
                stack.enter_context(patch.object(checkpoint, name, around))
        yield
