"""What all activations share that absorb the affine map before them.

Floor 2: imports ``affine`` and ``edits``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from canon_bridge.core.affine import Affine
from canon_bridge.core.undo.edits import Edits, OwnHook, slots
from canon_bridge.core.undo.snapshot import HOOKS

# Below this scale, or beyond this threshold (about the largest float16), the quotient -b/s is not used: it loses
# nothing yet, but grows towards overflow.
SMALLEST_SCALE: Final = 1e-12
LARGEST_THRESHOLD: Final = 6e4
_SLOT: Final = "_absorbed"

# Methods that compare with a reference input: for them a clipped unit is no constant, it may not be clipped there.
REFERENCE_METHODS: Final = frozenset({"captum.attr._core.deep_lift.DeepLift"})


def choose(affine: Affine) -> tuple[Tensor, Tensor, Tensor]:
    """Return which channels have scale zero, which can be divided by it, and which have a tiny one."""
    zero = affine.scale == 0
    large = affine.scale.abs() >= SMALLEST_SCALE
    quotient = affine.shift / torch.where(large, affine.scale, torch.ones_like(affine.scale))
    normal = large & (quotient.abs() <= LARGEST_THRESHOLD)
    return zero, normal, ~(zero | normal)


@dataclass(frozen=True, eq=False)
class _Absorbed:
    """The map that an activation has absorbed, and the one behind it; no tuple, which torch.export would rebuild."""

    whole: Affine
    behind: Affine


def composed(edits: Edits, module: nn.Module, affine: Affine, write: Callable[[Affine, bool], Affine]) -> Affine:
    r"""Have an activation absorb a map, together with one that it may have absorbed before.

    With :math:`\phi(s x + b) = e \psi(x) + d` for the map absorbed earlier and :math:`e' \psi'(x) + d'` for both
    together, :math:`\psi(s_2 x + b_2) = (e' \psi'(x) + d' - d) / e`.

    Parameters
    ----------
    edits : Edits
        The journal.
    module : nn.Module
        The activation.
    affine : Affine
        The map that comes before the module as it is now.
    write : callable
        From the whole map and whether it is the first one to the map behind the new activation, :math:`(e', d')`;
        it changes the module.

    Returns
    -------
    Affine
        From the output of the new activation to that of the activation as it was.
    """
    earlier: _Absorbed | None = vars(module).get(_SLOT)
    whole = affine if earlier is None else earlier.whole.after(affine)
    behind = write(whole, earlier is None)
    edits.set(module, "__dict__", _SLOT, _Absorbed(whole, behind))
    if earlier is None:
        return behind
    former = earlier.behind
    return Affine(behind.scale / former.scale, (behind.shift - former.shift) / former.scale)


def has_rule(module: nn.Module) -> bool:
    """Return whether the module carries a hook that is not ours, as every rule that replaces its gradient has one.

    Without a rule the gradient of the module stands, and has to be that of the function.
    """
    return any(not isinstance(hook, OwnHook) for table in HOOKS for hook in slots(module, table).values())


def has_reference(module: nn.Module) -> bool:
    """Return whether a hook on the module belongs to one of ``REFERENCE_METHODS``."""
    owners = [type(getattr(hook, "__self__", None)) for hook in vars(module)["_forward_hooks"].values()]
    return any(f"{base.__module__}.{base.__qualname__}" in REFERENCE_METHODS for o in owners for base in o.__mro__)


def per_channel(values: Tensor, input: Tensor) -> Tensor:
    """Return ``(C,)`` in a shape that broadcasts against ``(N, C, *spatial)``, or ``(N, C * k)`` behind a flatten."""
    if input.shape[1] != values.numel():
        values = values.repeat_interleave(input.shape[1] // values.numel())
    return values.to(input.dtype).view(-1, *(1,) * (input.dim() - 2))
