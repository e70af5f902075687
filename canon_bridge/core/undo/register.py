"""The register of all writes to modules that are in force, whichever journal made them.

Floor 0: imports torch alone. zennit removes its canonizers first-in-first-out, so a journal may have to be undone from
under a younger one; and a model that one thread has changed is not to be changed by another meanwhile.
"""

import threading
import weakref
from collections.abc import Iterator
from typing import Any, Final

from torch import nn

Key = str | int


class Write:
    """One write: where, by which journal, and the object that was there before (``ABSENT`` if there was none).

    It does not keep the module alive: it is held by the register of writes below as long as the module lives.
    """

    __slots__ = ("_module", "_thread", "name", "old", "owner", "table")

    def __init__(self, module: nn.Module, table: str, name: Key, old: object, owner: object) -> None:
        self._module, self.table, self.name, self.old, self.owner = weakref.ref(module), table, name, old, owner
        self._thread = weakref.ref(threading.current_thread())

    @property
    def module(self) -> nn.Module | None:
        """The module, or None if it is gone."""
        return self._module()

    @property
    def thread(self) -> threading.Thread | None:
        """The thread that wrote, or None if it has ended."""
        thread = self._thread()
        return thread if thread is not None and thread.is_alive() else None


class Record:
    """What is written to one module: the writes in force, oldest first, slot by slot, and the order of the keys."""

    __slots__ = ("orders", "stacks")

    def __init__(self) -> None:
        self.stacks: dict[tuple[str, Key], list[Write]] = {}
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

    def forget(self, write: Write) -> None:
        """Take a write out, and the order of its table with the last one; a second call does nothing."""
        stack = self.stacks.get((write.table, write.name), [])
        if write in stack:
            stack.remove(write)
        if not stack:
            self.stacks.pop((write.table, write.name), None)
        if all(table != write.table for table, _ in self.stacks):
            self.orders.pop(write.table, None)


IN_FORCE: Final[weakref.WeakKeyDictionary[nn.Module, Record]] = weakref.WeakKeyDictionary()


def writes_in_force(model: nn.Module) -> frozenset[int]:
    """Return the identities of all writes that journals hold on the model; it tells whether others came or went."""
    return frozenset(id(write) for write in _writes(model))


def other_writer(model: nn.Module) -> threading.Thread | None:
    """Return another thread that is running and has written to the model without having undone it, if there is one."""
    here = threading.current_thread()
    threads = (write.thread for write in _writes(model))
    return next((thread for thread in threads if thread not in (None, here)), None)


def _writes(model: nn.Module) -> Iterator[Write]:
    records = (IN_FORCE.get(module) for module in model.modules())
    return (write for r in records if r is not None for stack in list(r.stacks.values()) for write in list(stack))


def writes_in_force_at(module: nn.Module, table: str, name: Key) -> list[Write]:
    """Return the writes that journals hold on one slot, oldest first."""
    record = IN_FORCE.get(module)
    return [] if record is None else record.stacks.get((table, name), [])
