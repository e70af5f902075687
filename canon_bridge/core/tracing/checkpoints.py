"""Activation checkpointing, taken out of a forward while it is traced.

Floor 0: imports torch alone. A checkpoint runs its function a second time in the backward pass: hooks of attribution
frameworks would see every module in it twice. Outside training it only saves memory.
"""

import threading
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
    here = threading.get_ident()

    def reentrant(original: Any) -> Any:
        class Reentrant:
            @staticmethod
            def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
                if threading.get_ident() != here:  # a model that trains in another thread
                    return original.apply(function, preserve, *args)
                found()
                return function(*args)

        return Reentrant

    def around(original: Callable[..., Generator[None]]) -> Callable[..., Generator[None]]:
        def generator(*args: Any, **kwargs: Any) -> Generator[None]:
            if threading.get_ident() != here:
                yield from original(*args, **kwargs)
                return
            found()
            yield

        return generator

    replacements = {"CheckpointFunction": reentrant, **dict.fromkeys(_GENERATORS, around)}
    with ExitStack() as stack:
        for name, replace in replacements.items():
            if hasattr(checkpoint, name):
                stack.enter_context(patch.object(checkpoint, name, replace(getattr(checkpoint, name))))
        yield
