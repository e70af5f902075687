"""The journal: every write to a user's model goes through :class:`Edits` and is undone from it.

Floor 1: imports ``register`` and ``steps``. A slot is one key of ``__dict__``, of ``_parameters``, ``_buffers`` or
``_modules``, or of a table of hooks of one module; the class of a module is a slot, too. Undo puts the former *object*
back at its former place, whatever a framework has put into the slot in between.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

from torch import nn

from canon_bridge.core.undo.register import IN_FORCE, Key, Record, Write
from canon_bridge.core.undo.steps import refill, run_all

ABSENT: Final = object()
TRANSIENT: Final = "_non_persistent_buffers_set"
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


def slots(module: nn.Module, table: str) -> dict[Any, Any]:
    """Return the dictionary of the module that ``table`` names."""
    return vars(module) if table == "__dict__" else vars(module)[table]


class Edits:
    """A journal of writes to module slots, undone last-in-first-out.

    Invariant: after :meth:`undo` each slot holds the very object that it held before this journal wrote to it, or
    what a younger journal has put above; keys that were new are gone, those that were removed are back in their
    place, and the order of the others is unchanged.
    """

    def __init__(self) -> None:
        self.writes: list[tuple[Write, object]] = []  # with what was written, which the register must not hold
        self._cleanups: list[Callable[[], None]] = []
        self._owner = object()  # by which its writes are known, without keeping the journal alive

    def __len__(self) -> int:
        return len(self.writes)

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
        self._write(module, table, name, ABSENT)

    def set_class(self, module: nn.Module, kind: type[nn.Module]) -> None:
        """Make the module an instance of another class."""
        self._write(module, _CLASS, _CLASS, kind)

    def hold(self, module: nn.Module) -> None:
        """Keep what other journals have written to the module as long as this one, also where they are undone first.

        For writes of this journal that have a meaning only on top of those.
        """
        record = IN_FORCE.get(module)
        for (table, name), stack in list(record.stacks.items()) if record is not None else ():
            if stack[-1].owner is not self._owner:
                self._write(module, table, name, _read(module, table, name))

    def _write(self, module: nn.Module, table: str, name: Key, value: object) -> None:
        write = Write(module, table, name, _read(module, table, name), self._owner)
        record = IN_FORCE.setdefault(module, Record())
        if table != _CLASS:
            record.order(table, slots(module, table))
        # Journal first: an exception before the last line leaves a write that restores what is there anyway.
        self.writes.append((write, value))
        record.stacks.setdefault((table, name), []).append(write)
        _put(module, table, name, value)

    def set_buffer(self, module: nn.Module, name: str, value: object) -> None:
        """Add a buffer that moves with the module (``.to``, ``.float``) and stays out of its ``state_dict``."""
        transient: frozenset[str] | set[str] = vars(module)[TRANSIENT]
        self.set(module, "__dict__", TRANSIENT, {*transient, name})
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
        """Call ``action`` when the journal is undone, before the slots are restored.

        Once more if it raises, for an interrupt may have cut it short.
        """
        self._cleanups.append(action)

    def undo(self) -> None:
        """Restore every slot and run every clean-up, newest first; a second call does nothing.

        An exception, also an interrupt, keeps no slot from being restored; the first one is raised at the end. If
        this very call was cut short, another one goes on where it stopped.
        """
        try:
            run_all(self._cleanups, lambda action: action())
        finally:
            run_all(self.writes, lambda write: self._revert(*write))

    def keep(self) -> None:
        """Make the writes permanent: there is nothing to undo any more, and the model counts as it is now."""
        for write, _ in self.writes:
            module = write.module
            if module is not None and module in IN_FORCE:
                IN_FORCE[module].forget(write)
                if not IN_FORCE[module].stacks:
                    del IN_FORCE[module]
        self.writes.clear()
        self._cleanups.clear()

    @staticmethod
    def _revert(write: Write, value: object) -> None:
        """Restore one slot; a second call, where the first was interrupted, does what is left to do."""
        module = write.module
        record = None if module is None else IN_FORCE.get(module)
        if module is None or record is None:
            return
        stack = record.stacks.get((write.table, write.name), [])
        above = stack.index(write) + 1 if write in stack else None
        if above is not None and above < len(stack):
            # A younger journal has written above: it inherits what was there before this one.
            stack[above].old = write.old
        elif above is not None and (name := _place(module, write, value)) is not ABSENT:
            _put(module, write.table, name, write.old)
            if write.old is not ABSENT and write.table != _CLASS:
                keys = slots(module, write.table)
                _sort(keys, record.order(write.table, keys))
        record.forget(write)
        if not record.stacks:
            IN_FORCE.pop(module, None)


def _read(module: nn.Module, table: str, name: Key) -> object:
    return type(module) if table == _CLASS else slots(module, table).get(name, ABSENT)


def _put(module: nn.Module, table: str, name: Key, value: object) -> None:
    if table == _CLASS:
        object.__setattr__(module, _CLASS, value)
    elif value is ABSENT:
        slots(module, table).pop(name, None)
    else:
        slots(module, table)[name] = value


def _place(module: nn.Module, write: Write, value: object) -> Any:
    """Return under which name the old object comes back: no module that the user has put in or taken out is touched."""
    if write.table != "_modules" or value is ABSENT:
        return write.name
    names = [name for name, child in slots(module, "_modules").items() if child is value]
    return write.name if write.name in names else (names or [ABSENT])[0]  # insertions into a Sequential move children


def _sort(keys: dict[Any, Any], order: dict[Key, None]) -> None:
    names = [key for key in order if key in keys]
    if list(keys) == names:
        return
    refill(keys, {key: keys[key] for key in names})


def named_slots(model: nn.Module, tables: tuple[str, ...]) -> Iterator[tuple[nn.Module, str, str, Any]]:
    """Yield ``(module, table, name, value)`` for every slot of the given tables in the model."""
    for module in model.modules():
        for table in tables:
            for name, value in slots(module, table).items():
                yield module, table, name, value
