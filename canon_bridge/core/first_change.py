"""Which step of a plan changes the function of a model: found by carrying out more or less of the plan."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

from torch import Tensor, nn

from canon_bridge.core.apply import carry_out
from canon_bridge.core.options import Backend
from canon_bridge.core.plan import Leftover, Merge, Plan
from canon_bridge.core.precision import Reference, function_error, outputs, tensors_in
from canon_bridge.core.restore import Edits
from canon_bridge.core.rewrite import Rewrite

_KEY: Final = -1  # of a hook; torch counts from 0


def first_change(model: nn.Module, plan: Plan, reference: Reference, allowed: float) -> str:
    """Return the first step of a plan after which the function of a model differs by more than allowed, in words.

    The model is as it is without the plan, and so it is left.
    """
    beginnings = list(_beginnings(plan))

    def differs(beginning: tuple[str, Plan]) -> bool:
        with Edits() as edits:
            try:
                carry_out(edits, model, beginning[1], Backend())
                return not function_error(reference.outputs, outputs(model, reference.arguments))[0] <= allowed
            except Exception:  # whatever it is that cannot be computed any more
                return True

    if differs(beginnings[0]):
        first = _unlike_itself(model, reference, allowed)
        return f"in {first}, without any change: the model is another function at every call"
    if not differs(beginnings[-1]):
        return "in the modules of the framework"
    return beginnings[bisect_left(beginnings, True, 1, len(beginnings) - 1, key=differs)][0]


def _unlike_itself(model: nn.Module, reference: Reference, allowed: float) -> str:
    """Return the first module whose output differs between two calls of the model, by its path."""
    first, second = (_outputs_of_modules(model, reference) for _ in range(2))
    pairs = zip(first, second, strict=False)
    unlike = (path for (path, old), (_, new) in pairs if not function_error(old, new)[0] <= allowed)
    return next(unlike, "") or "the model itself"


def _outputs_of_modules(model: nn.Module, reference: Reference) -> list[tuple[str, list[Tensor]]]:
    found: list[tuple[str, list[Tensor]]] = []

    def keep(path: str, module: nn.Module, args: Any, output: Any) -> None:
        found.append((path, tensors_in(output)))

    with Edits() as edits:
        for path, module in model.named_modules():
            edits.set(module, "_forward_hooks", _KEY, partial(keep, path))
        outputs(model, reference.arguments)
    return found


def _beginnings(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Yield what the last step does, in words, and the plan up to that step, from no step to all of them."""
    part = replace(plan, entries=(), rewrites=(), out_of_place=(), plain=(), expanded=())
    yield "in no step of the plan", part
    for rewrite in plan.rewrites:
        part = replace(part, rewrites=(*part.rewrites, rewrite))
        yield _written(rewrite), part
    for field, words in (
        ("expanded", "where {} was taken apart"),
        ("out_of_place", "where {} no longer works in place"),
        ("plain", "where the weight of {} was made a parameter"),
    ):
        for path in getattr(plan, field):
            part = replace(part, **{field: (*getattr(part, field), path)})
            yield words.format(path), part
    for entry in (*plan.merges, *plan.leftovers):
        part = replace(part, entries=(*part.entries, entry))
        yield _merged(entry), part
    if plan.untangled:  # a layer has all of its copies, or none
        norms = ", ".join(entry.norm for entry in plan.untangled)
        yield (
            f"where {norms} were merged into copies of the layers before",
            replace(part, entries=(*part.entries, *plan.untangled)),
        )


def _written(rewrite: Rewrite) -> str:
    names = ", ".join(name for name, _ in rewrite.children)
    return f"in {rewrite.path or 'the model itself'}, whose forward was written anew with {names or 'no new modules'}"


def _merged(entry: Merge | Leftover) -> str:
    if isinstance(entry, Leftover):
        return f"where {entry.norm} was made a per-channel linear layer"
    through = f" through {', '.join(entry.chain.absorbers)}" if entry.chain.absorbers else ""
    return f"where {entry.norm} was merged {entry.chain.direction} into {', '.join(entry.chain.targets)}{through}"
