"""What a user has done by hand, while a journal was in force, to slots that the journal has written.

Floor 3: imports ``edits`` and ``register``.
"""

from torch import nn

from canon_bridge.core.undo.edits import ABSENT, TRANSIENT, Edits, slots
from canon_bridge.core.undo.register import writes_in_force_at


def overwritten(edits: Edits, model: nn.Module) -> list[str]:
    """Return the paths of plain attributes (a forward, an ``eps``) that were set since the journal wrote them."""
    paths = {module: path for path, module in model.named_modules()}
    names: list[str] = []
    for write, value in edits.writes:
        module = write.module
        if module is None or module not in paths or write.table != "__dict__":
            continue
        is_newest = writes_in_force_at(module, write.table, write.name)[-1:] == [write]
        if is_newest and vars(module).get(str(write.name), ABSENT) is not value:
            names.append(f"{paths[module]}.{write.name}".removeprefix("."))
    return names


def keep_transient_buffers(edits: Edits) -> None:
    """Have buffers that were registered with ``persistent=False`` meanwhile stay out of the ``state_dict`` later, too.

    To be called before the journal is undone: it holds a set of its own.
    """
    for write, _ in edits.writes:
        module, former = write.module, write.old
        if module is not None and write.name == TRANSIENT and isinstance(former, set):
            now: set[str] = vars(module)[TRANSIENT]
            former.update(
                name
                for name in now
                if name in slots(module, "_buffers") and not writes_in_force_at(module, "_buffers", name)
            )


def follow_mode(module: nn.Module, stand_in: nn.Module, mode: bool) -> None:
    """Put a module that was out of the model into the mode that the user has given to its stand-in since.

    Parameters
    ----------
    module, stand_in : nn.Module
        What was taken out, and what ``train()`` and ``eval()`` have reached in its place.
    mode : bool
        The ``training`` flag of the stand-in at first.
    """
    if stand_in.training != mode:
        module.train(stand_in.training)
