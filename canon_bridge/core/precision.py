"""What canonization costs in precision: estimated from statistics, and measured on example inputs."""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from canon_bridge.core.norms import mean_ratio, width
from canon_bridge.core.plan import Merge, Plan
from canon_bridge.core.trace.tracer import copied

# Deviations of the function, relative to its largest value, that rounding does not account for.
TOLERANCES: Final = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}

# A merge to the right subtracts s * mean only after the linear layer: its error is about 3 ratio eps, where a
# BatchNorm subtracts exactly. In float32 1e3 standard deviations cost 3e-4, ten to twenty times the rounding of the
# original.
_RATIO: Final = 1e3 * torch.finfo(torch.float32).eps
_SMALLEST_RATIO: Final = 10.0
_LISTED: Final = 5


def imprecise(model: nn.Module, plan: Plan) -> dict[str, float]:
    """Return the BatchNorms whose merge loses precision, with ``max |s mean| / max |weight|``, largest first.

    Merges to the left are as precise as the BatchNorm; so is a per-channel linear layer in float32 and above.
    """
    found: dict[str, float] = {}
    for entry in (*plan.merges, *plan.leftovers):
        norm = model.get_submodule(entry.norm)
        layers = entry.chain.targets if isinstance(entry, Merge) else ()
        dtype = _coarsest_dtype([norm, *map(model.get_submodule, layers)])
        is_exact = entry.chain.direction == "left" if isinstance(entry, Merge) else dtype.itemsize > 2
        ratio = mean_ratio(norm) if width(norm) and not is_exact else 0.0
        if ratio >= max(_SMALLEST_RATIO, _RATIO / torch.finfo(dtype).eps):
            found[entry.norm] = ratio
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _coarsest_dtype(modules: list[nn.Module]) -> torch.dtype:
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def describe(found: dict[str, float]) -> str:
    """Return a sentence that names the BatchNorms and says what to do."""
    names = ", ".join(f"{path or 'the model'} ({ratio:.1e})" for path, ratio in list(found.items())[:_LISTED])
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return (
        f"the mean of {names}{more} is that many standard deviations from zero: merged to the right, such a "
        "BatchNorm loses precision, about 3 times this ratio times the machine epsilon. Use model.double() for "
        'attribution, or prefer="left" where a linear layer precedes it; example_inputs=x measures what it costs.'
    )


def outputs(model: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Return copies of all tensors in the output, from copies of the arguments, which a model may overwrite."""
    own = copied(arguments)
    with torch.no_grad():
        return [leaf.clone() for leaf in tree_leaves(model(*own)) if isinstance(leaf, Tensor)]


def function_error(before: list[Tensor], after: list[Tensor]) -> tuple[float, bool]:
    """Return the largest deviation relative to the largest value, and whether rounding accounts for it."""
    errors = [(deviation(old, new), old.dtype) for old, new in zip(before, after, strict=True) if old.numel()]
    is_rounding = all(error <= TOLERANCES.get(dtype, 0.0) for error, dtype in errors)  # not for NaN
    return max((error for error, _ in errors), default=0.0), is_rounding


def deviation(old: Tensor, new: Tensor) -> float:
    """Return the largest deviation relative to the largest value (or one); infinite where only one of them is NaN."""
    if not bool(torch.equal(old.isnan(), new.isnan())):
        return float("inf")
    scale = float(old.nan_to_num().abs().max())
    return float((new - old).nan_to_num().abs().max()) / (scale or 1.0)
