"""Attributes that frameworks leave on modules, and their removal. Floor 0: imports torch alone."""

from collections.abc import Callable, Iterable

from torch import nn


def drop_scratch(modules: Iterable[nn.Module], names: tuple[str, ...]) -> Callable[[], None]:
    """Return an action that makes the plain attributes ``names`` of the modules what they are now, or absent."""
    present = [(module, {n: vars(module)[n] for n in names if n in vars(module)}) for module in modules]

    def restore() -> None:
        for module, attributes in present:
            for name in names:
                vars(module).pop(name, None)
            vars(module).update(attributes)

    return restore
