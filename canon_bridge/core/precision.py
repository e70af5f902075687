"""What canonization costs in precision: estimated from statistics, and measured on inputs."""

from collections import defaultdict
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from canon_bridge.core.norms import mean_ratio, width
from canon_bridge.core.plan import Merge, Plan
from canon_bridge.core.restore import finder, paths
from canon_bridge.core.tables import shortened
from canon_bridge.core.trace.preserve import gpus_of, preserved
from canon_bridge.core.trace.tracer import copied

# Deviations of the function, relative to its largest value, that rounding does not account for.
TOLERANCES: Final = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}

# A merge to the right subtracts s * mean only after the linear layer: its error is about 3 ratio eps, where a
# BatchNorm subtracts exactly. In float32 1e3 standard deviations cost 3e-4, ten to twenty times the rounding of the
# original.
_RATIO: Final = 1e3 * torch.finfo(torch.float32).eps
_SMALLEST_RATIO: Final = 10.0
_LOSS: Final = 3.0
_LISTED: Final = 5
# A change of the inputs by rounding is one change; a model rounds in each of its layers, in each of its sums.
_ROUNDINGS: Final = 100.0


class Loss(NamedTuple):
    """A BatchNorm whose merge may lose precision."""

    norm: str
    ratio: float  # max |s mean| / max |weight|: how many standard deviations the mean is from zero
    eps: float  # of the coarsest type in the merge


def losses(model: nn.Module, plan: Plan) -> list[Loss]:
    """Return what the merges of a plan lose, in a model where they are still to be carried out.

    Merges to the left, also into copies, are as precise as the BatchNorm; so is a per-channel linear layer in float32
    and above.
    """
    find = finder(model)
    found: defaultdict[torch.device, list[tuple[str, Tensor, float]]] = defaultdict(list)
    with_linear_layer = [entry for entry in plan.untangled if entry.rest]
    for entry in (*plan.merges, *plan.leftovers, *with_linear_layer):
        if isinstance(entry, Merge) and entry.chain.direction == "left":
            continue
        norm, layers = find(entry.norm), entry.chain.targets if isinstance(entry, Merge) else ()
        dtype = _coarsest_dtype([norm, *map(find, layers)])
        if width(norm) and (isinstance(entry, Merge) or dtype.itemsize <= 2):
            ratio = mean_ratio(norm)
            if ratio is not None:
                found[ratio.device].append((entry.norm, ratio, torch.finfo(dtype).eps))
    result: list[Loss] = []
    for device, here in found.items():  # which is looked at once
        wide = torch.float64 if device.type == "cpu" else torch.float32
        ratios = torch.stack([ratio.to(wide) for _, ratio, _ in here]).nan_to_num(0.0, torch.inf).tolist()
        result += [Loss(norm, ratio, eps) for (norm, _, eps), ratio in zip(here, ratios, strict=True)]
    return result


def explained(found: list[Loss]) -> float:
    """Return how large an error the losses explain.

    That is ten times what they cost together, since the estimate is that of one layer, not of what comes after it.
    """
    return 10 * sum(_LOSS * loss.ratio * loss.eps for loss in found)


def doubtful(found: list[Loss]) -> list[Loss]:
    """Return the losses that are worth a warning, the largest first."""
    large = [loss for loss in found if loss.ratio >= max(_SMALLEST_RATIO, _RATIO / loss.eps)]
    return sorted(large, key=lambda loss: -loss.ratio)


def describe(found: list[Loss]) -> str:
    """Return a sentence that names the BatchNorms and says what to do."""
    names = shortened([f"{loss.norm or 'the model'} ({loss.ratio:.1e})" for loss in found], _LISTED)
    return (
        f"the mean of {names} is that many standard deviations from zero: merged to the right, such a "
        "BatchNorm loses precision, about 3 times this ratio times the machine epsilon. Use model.double() for "
        'attribution, or prefer="left" where a linear layer precedes it; example_inputs=x measures what it costs.'
    )


def _coarsest_dtype(modules: list[nn.Module]) -> torch.dtype:
    parts = [vars(part) for module in modules for part in paths(module)]
    tensors = (t for part in parts for table in ("_parameters", "_buffers") for t in part[table].values())
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None and tensor.is_floating_point()}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)


@dataclass(frozen=True, eq=False)
class Reference:
    """What a model computes before it is canonical."""

    arguments: tuple[Any, ...]  # the positional ones
    outputs: list[Tensor]  # all tensors in the output
    rounding: float  # the largest deviation, relative to the largest value, that rounding accounts for


def reference(model: nn.Module, arguments: tuple[Any, ...]) -> Reference:
    """Run a model that is not canonical yet."""
    with preserved(model):  # what forward writes on its modules
        before = outputs(model, arguments)
    return Reference(arguments, before, _rounding(model, before))


def _rounding(model: nn.Module, values: list[Tensor]) -> float:
    """Return the tolerance for the coarsest type that the model computes with."""
    found = [tensor.dtype for tensor in (*model.parameters(), *model.buffers(), *values)]
    for kind in {tensor.device.type for tensor in values}:
        if torch.is_autocast_enabled(kind):
            found.append(torch.get_autocast_dtype(kind))
        if kind == "cuda" and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32):
            found.append(torch.float16)  # TF32 has as many digits
    return max((TOLERANCES.get(dtype, 0.0) for dtype in found), default=0.0)


class _Seen(TorchFunctionMode):
    """Note the types of all that torch's functions return."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.dtypes.update(leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def rounding_inside(model: nn.Module, before: Reference) -> float:
    """Return the tolerance for the coarsest type that a value has on the way, by running the model once more.

    A forward may cast its input (``x.float()``), whatever the type of its parameters and of its output is.
    """
    return max((TOLERANCES.get(dtype, 0.0) for dtype in _types_inside(model, before)), default=0.0)


def _types_inside(model: nn.Module, before: Reference) -> set[torch.dtype]:
    with preserved(model), _Seen() as seen:
        outputs(model, before.arguments)
    return seen.dtypes


def sensitivity(model: nn.Module, before: Reference) -> float:
    """Return how much of a deviation the model accounts for itself: it may be another function of rounded inputs.

    That is a hundred times what its output changes by, relative to the largest value, where each input changes by the
    machine epsilon of the coarsest type on the way.
    """
    epsilons = (torch.finfo(dtype).eps for dtype in _types_inside(model, before) if dtype in TOLERANCES)
    epsilon = max(epsilons, default=0.0)
    nudges = [partial(_nudged, epsilon, torch.Generator().manual_seed(seed)) for seed in range(3)]
    nudged = [tree_map_only(Tensor, nudge, before.arguments) for nudge in nudges]
    runs = [reference(model, arguments) for arguments in (before.arguments, before.arguments, *nudged)]
    first, again, *others = [run.outputs for run in runs]
    if function_error(first, again)[0] > 0:  # another function at every call
        return 0.0
    return _ROUNDINGS * max(function_error(first, other)[0] for other in others)


def _nudged(epsilon: float, generator: torch.Generator, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    signs = torch.randint(2, value.shape, generator=generator).to(value) * 2 - 1
    return value.detach() * (1 + max(epsilon, torch.finfo(value.dtype).eps) * signs)


def outputs(model: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Return copies of all tensors in the output, from copies of the arguments, which a model may overwrite.

    Random numbers are drawn as they will be drawn again, by whatever comes next.
    """
    own = copied(arguments)
    with torch.no_grad(), torch.random.fork_rng(gpus_of((*model.parameters(), *tree_leaves(own)))):
        return tensors_in(model(*own))


def tensors_in(output: Any) -> list[Tensor]:
    """Return copies of all tensors in an output, also in the fields of dataclasses."""
    found: list[Tensor] = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf.detach().clone())
        elif is_dataclass(leaf):
            found += tensors_in([getattr(leaf, part.name) for part in fields(leaf)])
    return found


def comparable(outputs: list[Tensor]) -> bool:
    """Return whether there is a finite number in an output, without which a comparison says nothing."""
    return any(bool(value.isfinite().any()) for value in outputs)


def function_error(before: list[Tensor], after: list[Tensor]) -> tuple[float, bool]:
    """Return the largest deviation relative to the largest value, and whether rounding accounts for it."""
    if len(before) != len(after):
        return float("inf"), False
    errors = [(deviation(old, new), old.dtype) for old, new in zip(before, after, strict=True) if old.numel()]
    is_rounding = all(error <= TOLERANCES.get(dtype, 0.0) for error, dtype in errors)
    return max((error for error, _ in errors), default=0.0), is_rounding


def deviation(old: Tensor, new: Tensor) -> float:
    """Return the largest deviation relative to the largest value (or one).

    It is infinite where the shapes differ, where only one of the two is NaN or infinite, and for integers that are not
    equal.
    """
    if old.shape != new.shape:
        return float("inf")
    if old.is_complex():
        return deviation(torch.view_as_real(old), torch.view_as_real(new))
    if not old.is_floating_point():
        return 0.0 if torch.equal(old, new) else float("inf")
    same = (old == new) | (old.isnan() & new.isnan())
    error = (new - old).abs().masked_fill(same, 0.0).nan_to_num(torch.inf, torch.inf)
    is_measure = old.abs() < torch.finfo(old.dtype).max  # what a mask puts in is none
    scale = float(old.abs().masked_fill(~is_measure, 0.0).max())
    return float(error.max()) / (scale or 1.0)
