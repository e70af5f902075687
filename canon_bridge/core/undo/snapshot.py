"""Attributes and hooks that frameworks leave on modules, and their removal. Floor 0: imports torch alone."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from torch import nn

HOOKS: Final = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def drop_scratch(modules: Iterable[nn.Module], names: tuple[str, ...]) -> Callable[[], None]:
    """Return an action that makes the plain attributes ``names`` of the modules what they are now, or absent."""
    present = [(module, {n: vars(module)[n] for n in names if n in vars(module)}) for module in modules]

    def restore() -> None:
        for module, attributes in present:
            for name in names:
                vars(module).pop(name, None)
            vars(module).update(attributes)

    return restore


def drop_hooks(
    modules: Iterable[nn.Module], is_left: Callable[[object], bool], found: Callable[[], None]
) -> Callable[[], None]:
    """Return an action that removes the hooks that a framework has left since, because it was interrupted.

    Parameters
    ----------
    modules : iterable of nn.Module
        Where to look.
    is_left : callable
        Whether a hook is one of the framework.
    found : callable
        Called where there was one.
    """
    present = [(module, {table: set(vars(module)[table]) for table in HOOKS}) for module in modules]

    def restore() -> None:
        for module, keys in present:
            for table in HOOKS:
                hooks: dict[int, Any] = vars(module)[table]
                for key in [key for key, hook in hooks.items() if key not in keys[table] and is_left(hook)]:
                    found()
                    del hooks[key]

    return restore
