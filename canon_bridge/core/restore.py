"""The journal: every write to a user's model goes through :class:`Edits`, and is undone from it to the bit.

On the first touch of a module a journal puts a *layer* on it: which objects its slots held, and in which order the
keys of its tables stood. A slot is one key of ``__dict__``, of ``_parameters``, ``_buffers`` or ``_modules``, or of a
table of hooks; the class of a module is a slot, too. Undo puts the former *objects* back, whatever a framework has put
there in between. All of it can be repeated, so that an undo that was interrupted is right when it is done again.
"""

import itertools
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, Self

from torch import nn

Key = str | int
Slot = tuple[str, Key]

ABSENT: Final = object()
TRANSIENT: Final = "_non_persistent_buffers_set"
_CLASS: Final = ("__class__", "__class__")
_SERIAL: Final = itertools.count()


class _Layer:
    """What one journal has written to one module, on top of the layers that were there before."""

    __slots__ = ("__weakref__", "module", "new", "old", "orders", "owner", "serial", "thread")

    def __init__(self, module: nn.Module, owner: object) -> None:
        self.module, self.owner, self.serial = module, owner, next(_SERIAL)
        self.thread = weakref.ref(threading.current_thread())
        self.old: dict[Slot, Any] = {}
        self.new: dict[Slot, Any] = {}
        self.orders: dict[str, list[Key]] = {}

    def take_off(self) -> None:
        """Restore what no layer above has written to; those above inherit the rest."""
        layers = _layers(self.module)
        if self not in layers:
            return
        above = layers[layers.index(self) + 1 :]
        for slot, old in self.old.items():
            heir = next((layer for layer in above if slot in layer.old), None) if above else None
            if heir is not None:
                heir.old[slot] = old
            elif slot == _CLASS:
                object.__setattr__(self.module, "__class__", old)
            else:
                self._put_back(slot, old, layers)
        for table, order in self.orders.items():
            heir = next((layer for layer in above if table in layer.orders), None) if above else None
            if heir is not None:
                heir.orders[table] = _arranged(heir.orders[table], order)
            keys = slots(self.module, table)
            if (present := list(keys)) != order:
                names = [name for name in _arranged(present, order) if name in keys]
                if present != names:
                    refill(keys, {name: keys[name] for name in names})
        self.forget()

    def _put_back(self, slot: Slot, old: Any, layers: list["_Layer"]) -> None:
        table, name = slot
        keys, value = slots(self.module, table), self.new.get(slot)
        if table == "_modules" and value is not ABSENT and keys.get(name) is not value:
            # A child that the user has put in or taken out stays so; insertions into a Sequential move children.
            name = next((other for other, child in keys.items() if child is value), None)
            if name is None:
                return
        if name == TRANSIENT and old is not ABSENT:  # a buffer that the user registers stays out of the state, too
            own = {key for layer in layers for table, key in layer.old if table == "_buffers"}
            old |= {key for key in keys[name] if key in slots(self.module, "_buffers") and key not in own}
        if old is ABSENT:
            keys.pop(name, None)
        else:
            keys[name] = old

    def forget(self) -> None:
        """Take the layer out of the register; the module counts as it is now."""
        left = [weakref.ref(layer) for layer in _layers(self.module) if layer is not self]
        if left:
            _REGISTER[self.module] = left
        else:
            _REGISTER.pop(self.module, None)


# The layers on each module, oldest first, whichever journals made them: zennit removes its canonizers
# first-in-first-out. A journal that is dropped without an undo leaves the module as it is.
_REGISTER: Final[weakref.WeakKeyDictionary[nn.Module, list[weakref.ref[_Layer]]]] = weakref.WeakKeyDictionary()


class Edits:
    """A journal of writes to module slots; as a context manager it is undone when the block ends.

    Invariant: after :meth:`undo` each slot holds the very object that it held before this journal wrote to it, or
    what a younger journal has put above; keys that were new are gone, those that were removed are back in their
    place, and the order of the others is unchanged.
    """

    def __init__(self) -> None:
        self._stack: list[_Layer] = []
        self._cleanups: list[Callable[[], None]] = []
        self._owner = object()

    def __len__(self) -> int:
        return sum(len(layer.old) for layer in self._stack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

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
        keys = slots(module, table)
        layer = self._layer(module)
        if table not in layer.orders:
            layer.orders[table] = list(keys)
        # Noted first: an exception before the last line leaves a note that restores what is there anyway.
        slot = (table, name)
        layer.old.setdefault(slot, keys.get(name, ABSENT))
        layer.new[slot] = value
        if value is ABSENT:
            keys.pop(name, None)
        else:
            keys[name] = value

    def remove(self, module: nn.Module, table: str, name: Key) -> None:
        """Take a key out of a table of the module; one that is not there stays out after an older journal's undo."""
        self.set(module, table, name, ABSENT)

    def set_class(self, module: nn.Module, kind: type[nn.Module]) -> None:
        """Make the module an instance of another class."""
        layer = self._layer(module)
        layer.old.setdefault(_CLASS, type(module))
        object.__setattr__(module, "__class__", kind)

    def hold(self, module: nn.Module) -> None:
        """Keep what other journals have written to the module as long as this one, also where they are undone first.

        For writes of this journal that have a meaning only on top of those.
        """
        newest = {slot: layer for layer in _layers(module) for slot in layer.old}
        for table, name in [slot for slot, layer in newest.items() if layer.owner is not self._owner]:
            if (table, name) == _CLASS:
                self.set_class(module, type(module))
            else:
                self.set(module, table, name, slots(module, table).get(name, ABSENT))

    def set_buffer(self, module: nn.Module, name: str, value: object) -> None:
        """Add a buffer that moves with the module (``.to``, ``.float``) and stays out of its ``state_dict``."""
        self.set(module, "__dict__", TRANSIENT, {*vars(module)[TRANSIENT], name})
        self.set(module, "_buffers", name, value)

    def add_pre_hook(
        self, module: nn.Module, hook: Callable[..., Any], *bound: object, with_kwargs: bool = False
    ) -> None:
        """Register ``hook(*bound, module, args)`` as a forward pre-hook that runs before all others of the module.

        With ``with_kwargs`` it is ``hook(*bound, module, args, kwargs)``.
        """
        own = partial(hook, *bound)  # an object of this journal, by which the hook is found again

        def remove() -> None:
            hooks: dict[int, object] = vars(module)["_forward_pre_hooks"]
            for key in [key for key, value in hooks.items() if value is own]:
                del hooks[key]
                vars(module)["_forward_pre_hooks_with_kwargs"].pop(key, None)

        self.on_undo(remove)
        module.register_forward_pre_hook(own, prepend=True, with_kwargs=with_kwargs)

    def on_undo(self, action: Callable[[], None]) -> None:
        """Call ``action`` when the journal is undone, before the slots are restored.

        Once more if it raises, for an interrupt may have cut it short.
        """
        self._cleanups.append(action)

    def overwritten(self) -> list[tuple[nn.Module, Key]]:
        """Return the plain attributes (a forward, an ``eps``) that were set since the journal wrote them."""
        return [
            (layer.module, name)
            for layer in self._stack
            for (table, name), value in layer.new.items()
            if table == "__dict__" and vars(layer.module).get(str(name), ABSENT) is not value
            if not any((table, name) in above.old for above in _layers(layer.module) if above.serial > layer.serial)
        ]

    def undo(self) -> None:
        """Restore every slot and run every clean-up, newest first; a second call does nothing.

        An exception, also an interrupt, keeps no slot from being restored; the first one is raised at the end. If
        this very call was cut short, another one goes on where it stopped.
        """
        try:
            self._undo()
        except BaseException:
            self._undo()
            raise

    def _undo(self) -> None:
        try:
            run_all(self._cleanups)
        finally:
            while self._stack:
                self._stack[-1].take_off()
                self._stack.pop()

    def keep(self) -> None:
        """Make the writes permanent: there is nothing to undo any more, and the model counts as it is now."""
        for layer in self._stack:
            layer.forget()
        self._stack.clear()
        self._cleanups.clear()

    def _layer(self, module: nn.Module) -> _Layer:
        layers = _REGISTER.get(module)
        newest = layers[-1]() if layers else None
        if newest is not None and newest.owner is self._owner:
            return newest
        layer = _Layer(module, self._owner)
        self._stack.append(layer)
        _REGISTER.setdefault(module, []).append(weakref.ref(layer))
        return layer


def slots(module: nn.Module, table: str) -> dict[Any, Any]:
    """Return the dictionary of the module that ``table`` names."""
    return vars(module) if table == "__dict__" else vars(module)[table]


def writes_in_force(model: nn.Module) -> frozenset[int]:
    """Return the numbers of all layers that journals hold on the model; it tells whether others came or went."""
    return frozenset(layer.serial for layer in _in_force(model))


def other_writer(model: nn.Module) -> threading.Thread | None:
    """Return another thread that is running and has written to the model without having undone it, if there is one."""
    here = threading.current_thread()
    threads = (layer.thread() for layer in _in_force(model))
    return next((thread for thread in threads if thread not in (None, here) and thread.is_alive()), None)


def paths(model: nn.Module) -> dict[nn.Module, str]:
    """Return the modules of a model and their (first) paths, as ``named_modules`` does but a good deal faster."""
    found: dict[nn.Module, str] = {}
    todo = [("", model)]
    while todo:
        path, module = todo.pop()
        if module not in found:
            found[module] = path
            prefix = f"{path}." if path else ""
            children = reversed(vars(module).get("_modules", {}).items())  # a traced one (torch.jit) has no such table
            todo += [(prefix + name, child) for name, child in children if child is not None]
    return found


def finder(model: nn.Module) -> Callable[[str], nn.Module]:
    """Return what ``get_submodule`` returns, faster, as long as no module is replaced."""
    known = {path: module for module, path in paths(model).items()}
    return lambda path: known[path] if path in known else model.get_submodule(path)  # one module has several names


def follow_mode(module: nn.Module, stand_in: nn.Module, mode: bool) -> None:
    """Put a module that was out of the model into the mode that the user has given to its stand-in since.

    ``mode`` is the ``training`` flag that the stand-in had at first.
    """
    if stand_in.training != mode:
        module.train(stand_in.training)


def run_all(actions: list[Callable[[], None]]) -> None:
    """Run and take out all actions, last first, each once more if it raises; raise the first exception at the end."""
    failure: BaseException | None = None
    while actions:
        for _ in range(2):
            try:
                actions[-1]()
                break
            except BaseException as error:  # whatever it is, the others must have their turn
                failure = failure or error
        actions.pop()
    if failure is not None:
        raise failure


def refill(keys: dict[Any, Any], items: dict[Any, Any]) -> None:
    """Empty a dictionary and put the items into it, in their order; an interrupt leaves none of them out."""
    try:
        _ = keys.clear(), keys.update(items)  # on one line: an interrupt between two lines finds all or nothing done
    finally:
        keys.update(items)


def _layers(module: nn.Module) -> list[_Layer]:
    return [layer for reference in _REGISTER.get(module, ()) if (layer := reference()) is not None]


def _in_force(model: nn.Module) -> list[_Layer]:
    return [layer for module in (paths(model) if _REGISTER else ()) for layer in _layers(module)]


def _arranged(keys: Iterable[Key], order: list[Key]) -> list[Key]:
    """Return keys in an order that is known: new ones in front stay in front, the others go behind."""
    known, names = set(order), list(keys)
    first = next((place for place, name in enumerate(names) if name in known), len(names))
    return [*names[:first], *order, *(name for name in names[first:] if name not in known)]
