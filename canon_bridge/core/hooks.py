"""Hooks that are on a model already and change values: what they compute is no operation of the model.

Where one lies between the parts of a merge, it would get, and give, other values than in the model itself: that is
refused when it happens, since nothing else tells what a hook returns. Elsewhere the function is right; a map is not.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from canon_bridge.core.alerts import FunctionChangedError, UncoveredOperationWarning, alert
from canon_bridge.core.plan import Merge, Plan
from canon_bridge.core.restore import Edits, paths

_SIDES: Final = {"_forward_pre_hooks": "input", "_forward_hooks": "output"}


def watch_hooks(edits: Edits, model: nn.Module, plan: Plan, has_rules: bool) -> None:
    """Have the hooks of a model say where they change values; nothing changes for those that only look.

    The plan is carried out, and hooks of a framework are not on the model yet; ``has_rules`` says whether maps are
    made of it.
    """
    crossed: dict[tuple[str, str], str] = {}
    for norm, before, after in _gaps(plan):
        for path in _left(before, after):
            crossed.setdefault((path, "_forward_hooks"), norm)
        for path in _left(after, before):
            crossed.setdefault((path, "_forward_pre_hooks"), norm)
    for module, path in paths(model).items():
        for table, side in _SIDES.items():
            hooks: dict[int, Any] = vars(module)[table]
            norm = crossed.get((path, table))
            if not hooks or (norm is None and not has_rules):
                continue
            watched = {k: _Watched(hook, path, side, norm) for k, hook in hooks.items() if not _is_own(hook)}
            edits.on_undo(partial(_unwatch, hooks, watched))
            hooks.update(watched)


def _gaps(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Yield each BatchNorm, and two modules between which values differ by its map, in the order of the data flow."""
    for entry in (*plan.merges, *plan.untangled):
        is_left = not isinstance(entry, Merge) or entry.chain.direction == "left"
        steps = entry.chain.steps if isinstance(entry, Merge) else entry.copies
        for step in steps:
            yield (entry.norm, step.module, entry.norm) if is_left else (entry.norm, entry.norm, step.module)
            if step.absorbs:  # it lies between the BatchNorm and layers after it
                yield from ((entry.norm, step.module, after.module) for after in steps if not after.absorbs)


def _left(start: str, end: str) -> Iterator[str]:
    """Yield the modules that the way from one module to another leads out of, by their paths."""
    parts = start.split(".")
    for number in range(len(parts), 0, -1):
        path = ".".join(parts[:number])
        if end == path or end.startswith(f"{path}."):
            break
        yield path


@dataclass(eq=False)
class _Watched:
    """A hook, which module it is on, and the BatchNorm that is merged across that side of the module, if one is."""

    hook: Callable[..., Any]
    path: str
    side: str
    norm: str | None

    def __call__(self, *arguments: Any) -> Any:
        result = self.hook(*arguments)
        given = arguments[-1] if self.side == "output" else arguments[1:]
        if result is None or not _differ(result, given):
            return result
        what = f"a hook on {self.path or 'the model'} changes its {self.side}"
        if self.norm is not None:
            raise FunctionChangedError(
                f"{what}, and {self.norm} is merged across it, where values are others than in the model itself. "
                "Remove the hook, or write what it does into the model as a module."
            )
        alert(
            f"{what}; that is no operation of the model, and relevance follows its gradient there, which is no rule. "
            "Write it into the model as a module.",
            UncoveredOperationWarning,
        )
        return result


def _unwatch(hooks: dict[int, Any], watched: dict[int, _Watched]) -> None:
    """Put the hooks themselves back, but for those that were removed since."""
    for key, watcher in watched.items():
        holder = hooks.get(key)
        if holder is watcher:
            hooks[key] = watcher.hook
        while isinstance(holder, _Watched):  # a block that began later, and ends later, watches the hook, too
            if holder.hook is watcher:
                holder.hook = watcher.hook
            holder = holder.hook


def _is_own(hook: Any) -> bool:
    """Return whether a hook is one of this package, which another block removes by itself."""
    home = str(getattr(getattr(hook, "func", hook), "__module__", ""))
    return home.partition(".")[0] == __name__.partition(".")[0] and not isinstance(hook, _Watched)


def _differ(result: Any, given: Any) -> bool:
    """Return whether a hook has returned other tensors than it was given."""
    before, after = ([leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)] for value in (given, result))
    return len(before) != len(after) or not all(_is_same(*pair) for pair in zip(before, after, strict=True))


@torch.no_grad()
def _is_same(before: Tensor, after: Tensor) -> bool:
    if before is after or before.is_meta or before.shape != after.shape:
        return before.shape == after.shape
    return bool(((before == after) | before.isnan()).all())
