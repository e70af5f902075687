"""The journal: every write to a user's model goes through :class:`Edits` and is undone from it.

Floor 0: imports torch alone. A slot is one key of ``_parameters``, ``_buffers``, ``_modules`` or ``__dict__`` of
one module. Undo puts the former *object* back, whatever a framework has put into the slot in between.
"""

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

from torch import nn

_ABSENT: Final = object()


class _Write:
    """One write: where, and the object that was there before (``_ABSENT`` if the key was new).

    It does not keep the module alive: it is held by the register of writes below as long as the module lives.
    """

    __slots__ = ("_module", "name", "old", "table")

    def __init__(self, module: nn.Module, table: str, name: str, old: object) -> None:
        self._module, self.table, self.name, self.old = weakref.ref(module), table, name, old

    @property
    def module(self) -> nn.Module | None:
        """The module, or None if it is gone."""
        return self._module()


# For each module, the writes that are in force, oldest first, slot by slot. It has to be known to all journals:
# zennit removes its canonizers first-in-first-out, so a journal may have to be undone from under a younger one.
_IN_FORCE: Final[weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, str], list[_Write]]]] = (
    weakref.WeakKeyDictionary()
)


def slots(module: nn.Module, table: str) -> dict[str, Any]:
    """Return the dictionary of the module that ``table`` names."""
    return vars(module) if table == "__dict__" else vars(module)[table]


def writes_in_force(model: nn.Module) -> frozenset[int]:
    """Return the identities of all writes that journals hold on the model; it tells whether others came or went."""
    return frozenset(
        id(write) for module in model.modules() for stack in _IN_FORCE.get(module, {}).values() for write in stack
    )


class Edits:
    """A journal of writes to module slots, undone last-in-first-out.

    Invariant: after :meth:`undo` each slot holds the very object that it held before this journal wrote to it, or
    what a younger journal has put above; keys that were new are gone, and the order of the others is unchanged.
    """

    def __init__(self) -> None:
        self._writes: list[_Write] = []
        self._cleanups: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._writes)

    def set(self, module: nn.Module, table: str, name: str, value: object) -> None:
        """Put ``value`` into a slot of the module.

        Parameters
        ----------
        module : nn.Module
            The module to change.
        table : {"_parameters", "_buffers", "_modules", "__dict__"}
            The dictionary of the module that holds the slot.
        name : str
            The key, without dots.
        value : object
            Parameter, Tensor, Module or plain attribute, as the table wants it.
        """
        table_slots = slots(module, table)
        write = _Write(module, table, name, table_slots.get(name, _ABSENT))
        # Journal first: an exception between the two lines leaves a write that restores what is there anyway.
        self._writes.append(write)
        _IN_FORCE.setdefault(module, {}).setdefault((table, name), []).append(write)
        table_slots[name] = value

    def set_buffer(self, module: nn.Module, name: str, value: object) -> None:
        """Add a buffer that moves with the module (``.to``, ``.float``) and stays out of its ``state_dict``."""
        transient: frozenset[str] | set[str] = vars(module)["_non_persistent_buffers_set"]
        self.set(module, "__dict__", "_non_persistent_buffers_set", {*transient, name})
        self.set(module, "_buffers", name, value)

    def add_pre_hook(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Register a forward pre-hook that runs before all others of the module."""
        own = functools.partial(hook)  # an object of this journal, by which the hook is found again

        def remove() -> None:
            hooks: dict[int, object] = vars(module)["_forward_pre_hooks"]
            for key in [key for key, value in hooks.items() if value is own]:
                del hooks[key]

        self.on_undo(remove)
        module.register_forward_pre_hook(own, prepend=True)

    def on_undo(self, action: Callable[[], None]) -> None:
        """Call ``action`` when the journal is undone, before the slots are restored."""
        self._cleanups.append(action)

    def undo(self) -> None:
        """Restore every slot and run every clean-up, newest first; a second call does nothing.

        An exception in a clean-up does not keep the others from running; the first one is raised at the end.
        """
        failure: BaseException | None = None
        while self._cleanups:
            try:
                self._cleanups.pop()()
            except BaseException as error:  # whatever it is, the slots must be restored first
                failure = failure or error
        while self._writes:
            self._revert(self._writes[-1])
            self._writes.pop()
        if failure is not None:
            raise failure

    @staticmethod
    def _revert(write: _Write) -> None:
        module = write.module
        if module is None:
            return
        stacks = _IN_FORCE.get(module, {})
        stack = stacks.get((write.table, write.name), [])
        if write not in stack:
            return  # reverted already, by an undo that was interrupted
        above = stack.index(write) + 1
        if above < len(stack):
            # A younger journal has written above: it inherits what was there before this one.
            stack[above].old = write.old
        elif write.old is _ABSENT:
            slots(module, write.table).pop(write.name, None)
        else:
            slots(module, write.table)[write.name] = write.old
        stack.remove(write)
        if not stack:
            del stacks[write.table, write.name]
        if not stacks:
            _IN_FORCE.pop(module, None)


def named_slots(model: nn.Module, tables: tuple[str, ...]) -> Iterator[tuple[nn.Module, str, str, Any]]:
    """Yield ``(module, table, name, value)`` for every slot of the given tables in the model."""
    for module in model.modules():
        for table in tables:
            for name, value in slots(module, table).items():
                yield module, table, name, value
