"""The journal: every write to a user's model goes through :class:`Edits` and is undone from it.

Floor 0: imports torch alone. A slot is one key of ``__dict__``, of ``_parameters``, ``_buffers`` or ``_modules``, or
of a table of hooks of one module; the class of a module is a slot, too. Undo puts the former *object* back at its
former place, whatever a framework has put into the slot in between.
"""

import weakref
from collections.abc import Callable
from typing import Any, Final

from torch import nn

Key = str | int
_ABSENT: Final = object()
_CLASS: Final = "__class__"


class OwnHook:
    """A hook that a journal has registered; the others are those of the user and of a framework.

    No subclass of ``functools.partial``: ``torch.compile`` takes that for a plain one, and would not know it by type.
    """

    def __init__(self, hook: Callable[..., Any], *bound: object) -> None:
        self.func, self.bound = hook, bound

    def __call__(self, *arguments: Any) -> Any:
        """Call it."""
        return self.func(*self.bound, *arguments)


class _Write:
    """One write: where, by which journal, and the object that was there before (``_ABSENT`` if there was none).

    It does not keep the module alive: it is held by the register of writes below as long as the module lives.
    """

    __slots__ = ("_module", "name", "old", "owner", "table")

    def __init__(self, module: nn.Module, table: str, name: Key, old: object, owner: object) -> None:
        self._module, self.table, self.name, self.old, self.owner = weakref.ref(module), table, name, old, owner

    @property
    def module(self) -> nn.Module | None:
        """The module, or None if it is gone."""
        return self._module()


class _Record:
    """What is written to one module: the writes in force, oldest first, slot by slot, and the order of the keys."""

    __slots__ = ("orders", "stacks")

    def __init__(self) -> None:
        self.stacks: dict[tuple[str, Key], list[_Write]] = {}
        # For each table that was written to, all keys that it had at any write in force, also those now removed.
        self.orders: dict[str, dict[Key, None]] = {}

    def order(self, table: str, keys: dict[Any, Any]) -> dict[Key, None]:
        """Remember where the keys of a table stand, also those now removed; new ones stay behind all before them."""
        order = self.orders.setdefault(table, dict.fromkeys(keys))
        if order.keys() >= keys.keys():
            return order
        ranks = {key: rank for rank, key in enumerate(order)}
        new: dict[int, list[Key]] = {}
        last = -1
        for key in keys:
            if key in ranks:
                last = max(last, ranks[key])
            else:
                new.setdefault(last, []).append(key)
        names = new.get(-1, []) + [name for key, rank in ranks.items() for name in (key, *new.get(rank, ()))]
        self.orders[table] = dict.fromkeys(names)
        return self.orders[table]

    def forget(self, write: _Write) -> None:
        """Take a write out, and the order of its table with the last one."""
        stack = self.stacks[write.table, write.name]
        stack.remove(write)
        if not stack:
            del self.stacks[write.table, write.name]
        if all(table != write.table for table, _ in self.stacks):
            self.orders.pop(write.table, None)


# It has to be known to all journals: zennit removes its canonizers first-in-first-out, so a journal may have to be
# undone from under a younger one.
_IN_FORCE: Final[weakref.WeakKeyDictionary[nn.Module, _Record]] = weakref.WeakKeyDictionary()


def slots(module: nn.Module, table: str) -> dict[Any, Any]:
    """Return the dictionary of the module that ``table`` names."""
    return vars(module) if table == "__dict__" else vars(module)[table]


def writes_in_force(model: nn.Module) -> frozenset[int]:
    """Return the identities of all writes that journals hold on the model; it tells whether others came or went."""
    records = (_IN_FORCE.get(module) for module in model.modules())
    return frozenset(id(write) for r in records if r is not None for stack in r.stacks.values() for write in stack)


class Edits:
    """A journal of writes to module slots, undone last-in-first-out.

    Invariant: after :meth:`undo` each slot holds the very object that it held before this journal wrote to it, or
    what a younger journal has put above; keys that were new are gone, those that were removed are back in their
    place, and the order of the others is unchanged.
    """

    def __init__(self) -> None:
        self._writes: list[_Write] = []
        self._cleanups: list[Callable[[], None]] = []
        self._owner = object()  # by which its writes are known, without keeping the journal alive

    def __len__(self) -> int:
        return len(self._writes)

    def set(self, module: nn.Module, table: str, name: Key, value: object) -> None:
        """Put ``value`` into a slot of the module.

        Parameters
        ----------
        module : nn.Module
            The module to change.
        table : str
            The dictionary of the module that holds the slot: ``"__dict__"``, ``"_parameters"``, ``"_buffers"``,
            ``"_modules"`` or a table of hooks such as ``"_forward_pre_hooks"``.
        name : str or int
            The key, without dots.
        value : object
            Parameter, Tensor, Module, hook or plain attribute, as the table wants it.
        """
        self._write(module, table, name, value)

    def remove(self, module: nn.Module, table: str, name: Key) -> None:
        """Take a key out of a table of the module; one that is not there stays out after an older journal's undo."""
        self._write(module, table, name, _ABSENT)

    def set_class(self, module: nn.Module, kind: type[nn.Module]) -> None:
        """Make the module an instance of another class."""
        self._write(module, _CLASS, _CLASS, kind)

    def hold(self, module: nn.Module) -> None:
        """Keep what other journals have written to the module as long as this one, also where they are undone first.

        For writes of this journal that have a meaning only on top of those.
        """
        record = _IN_FORCE.get(module)
        for (table, name), stack in list(record.stacks.items()) if record is not None else ():
            if stack[-1].owner is not self._owner:
                self._write(module, table, name, _read(module, table, name))

    def _write(self, module: nn.Module, table: str, name: Key, value: object) -> None:
        write = _Write(module, table, name, _read(module, table, name), self._owner)
        record = _IN_FORCE.setdefault(module, _Record())
        if table != _CLASS:
            record.order(table, slots(module, table))
        # Journal first: an exception before the last line leaves a write that restores what is there anyway.
        self._writes.append(write)
        record.stacks.setdefault((table, name), []).append(write)
        _put(module, table, name, value)

    def set_buffer(self, module: nn.Module, name: str, value: object) -> None:
        """Add a buffer that moves with the module (``.to``, ``.float``) and stays out of its ``state_dict``."""
        transient: frozenset[str] | set[str] = vars(module)["_non_persistent_buffers_set"]
        self.set(module, "__dict__", "_non_persistent_buffers_set", {*transient, name})
        self.set(module, "_buffers", name, value)

    def add_pre_hook(self, module: nn.Module, hook: Callable[..., Any], *bound: object) -> None:
        """Register ``hook(*bound, module, args)`` as a forward pre-hook that runs before all others of the module."""
        own = OwnHook(hook, *bound)  # an object of this journal, by which the hook is found again

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
        record = None if module is None else _IN_FORCE.get(module)
        if module is None or record is None:
            return
        stack = record.stacks.get((write.table, write.name), [])
        if write not in stack:
            return  # reverted already, by an undo that was interrupted
        above = stack.index(write) + 1
        if above < len(stack):
            # A younger journal has written above: it inherits what was there before this one.
            stack[above].old = write.old
        else:
            _put(module, write.table, write.name, write.old)
            if write.old is not _ABSENT and write.table != _CLASS:
                keys = slots(module, write.table)
                _sort(keys, record.order(write.table, keys))
        record.forget(write)
        if not record.stacks:
            _IN_FORCE.pop(module, None)


def _read(module: nn.Module, table: str, name: Key) -> object:
    return type(module) if table == _CLASS else slots(module, table).get(name, _ABSENT)


def _put(module: nn.Module, table: str, name: Key, value: object) -> None:
    if table == _CLASS:
        object.__setattr__(module, _CLASS, value)
    elif value is _ABSENT:
        slots(module, table).pop(name, None)
    else:
        slots(module, table)[name] = value


def _sort(keys: dict[Any, Any], order: dict[Key, None]) -> None:
    names = [key for key in order if key in keys]
    if list(keys) == names:
        return
    items = {key: keys[key] for key in names}
    try:
        keys.clear()
    finally:  # also where a signal comes in between
        keys.update(items)
