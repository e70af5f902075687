"""Pooling, resizing and changes of shape as steps of a random network; as ``random_options``."""

from typing import Any

from torch import Tensor

from tests.support.random.options import Made, activation, each, linear, norm, same_shape

# The order of the arguments of the functions, for calls by position.
AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
MAXIMUM = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def pool(draft: Any, value: Tensor) -> Made:
    """Draw a pooling of any kind."""
    what = draft.one_of("avg", "max", "adaptive_avg", "adaptive_max", "mean")
    return _mean(draft, value) if what == "mean" and not draft.plain else _pool(draft, value.dim() - 2, what)


def max_pool(draft: Any, value: Tensor) -> Made:
    """Draw a max pooling."""
    return _pool(draft, value.dim() - 2, draft.one_of("max", "max", "adaptive_max"))


def _pool(draft: Any, spatial: int, what: str) -> Made:
    if spatial == 0:
        return None
    chosen: dict[str, Any] = {}
    if what.startswith("adaptive"):
        chosen["output_size"] = each(draft, spatial, 1, 2, 3)
    else:
        what = "avg" if what == "mean" else what
        chosen["kernel_size"] = each(draft, spatial, 1, 2, 3)
        if draft.maybe(60):
            chosen["stride"] = each(draft, spatial, 1, 2)
        if draft.maybe(40):
            chosen["padding"] = 1
        if draft.maybe(30):
            chosen["ceil_mode"] = True
        if what == "max" and draft.maybe(25):
            chosen["dilation"] = each(draft, spatial, 1, 2)
        if what == "avg" and draft.maybe(40):
            chosen["count_include_pad"] = False
        if what == "avg" and spatial > 1 and draft.maybe(30):
            chosen["divisor_override"] = 3
    if draft.maybe(50):
        name = "".join(part.capitalize() for part in what.split("_"))
        return f"{name}Pool{spatial}d", chosen
    order = {"avg": AVERAGE, "max": MAXIMUM}.get(what, ("output_size",))[: 5 if spatial == 1 else 6]
    if draft.maybe(50):
        defaults = {"stride": chosen.get("kernel_size"), "padding": 0, "dilation": 1, "ceil_mode": False}
        defaults |= {"count_include_pad": True, "divisor_override": None}
        chosen = {"args": tuple(chosen.get(name, defaults.get(name)) for name in order)}
    home = "torch" if spatial == 1 and what in ("avg", "max") and draft.maybe(60) else "F"
    return f"{home}.{what}_pool{spatial}d", chosen


def _mean(draft: Any, value: Tensor) -> Made:
    rank = value.dim()
    if rank == 2:
        return None
    dims = draft.one_of(tuple(range(2, rank)), -1, tuple(range(-1, 1 - rank, -1)), 2)
    keepdim = {"keepdim": True} if draft.maybe(50) else {}
    kind = draft.one_of(".mean", "torch.mean", ".amax", ".sum")
    return kind, {"args": (dims,), **keepdim} if draft.maybe(50) else {"dim": dims, **keepdim}


def resize(draft: Any, value: Tensor) -> Made:
    """Draw an interpolation or a padding."""
    spatial = value.dim() - 2
    if spatial == 0:
        return None
    if draft.maybe(30):
        return _pad(draft, spatial)
    mode = draft.one_of("nearest", ("linear", "bilinear", "trilinear")[spatial - 1], "nearest-exact", "area")
    chosen: dict[str, Any] = {"size": each(draft, spatial, 2, 3, 5)} if draft.maybe(40) else {"scale_factor": 2}
    if "linear" in mode and draft.maybe(50):
        chosen["align_corners"] = True
    return draft.one_of("Upsample", "F.interpolate"), {**chosen, "mode": mode}


def _pad(draft: Any, spatial: int) -> Made:
    padding = tuple(draft.one_of(0, 1, 2) for _ in range(2 * spatial))
    kind = draft.one_of("F.pad", f"ZeroPad{spatial}d", f"ConstantPad{spatial}d", f"ReflectionPad{spatial}d")
    if kind == "F.pad":
        return kind, {"args": (padding,), **draft.one_of({}, {"value": 0.5}, {"mode": "replicate"})}
    return kind, {"padding": padding, "value": -0.5} if kind.startswith("Constant") else {"padding": padding}


def flatten(draft: Any, value: Tensor) -> Made:
    """Draw a way to write the flattening of all axes behind the batch."""
    del value
    kinds = ("Flatten", "torch.flatten", ".flatten", "view", "reshape")
    kind = draft.one_of(*kinds)
    if kind in ("torch.flatten", ".flatten"):
        return kind, {"args": (1,)} if draft.maybe(60) else {"start_dim": 1}
    return kind, {}


def global_pool(draft: Any, value: Tensor) -> Made:
    """Draw a way to leave one number, or one position, for each channel."""
    rank = value.dim()
    if rank == 2:
        return None
    if draft.maybe(60) or draft.plain:
        kind = draft.one_of("AdaptiveAvgPool{}d", "F.adaptive_avg_pool{}d", "AdaptiveMaxPool{}d")
        return kind.format(rank - 2), {"output_size": 1}
    return draft.one_of(".mean", "torch.mean"), {"dim": tuple(range(2, rank))}


def shape(draft: Any, value: Tensor) -> Made:
    """Draw a change of shape that is not a flattening of everything."""
    channels, rank = value.shape[1], value.dim()
    fitting: list[tuple[str, dict[str, Any]]] = []
    if channels > 1:
        fitting += [("slice", {"start": 1, "stop": channels}), ("slice", {"start": 0, "stop": channels - 1})]
        fitting += [(".narrow", {"args": (1, 1, channels - 1)}), ("slice", {"start": 0, "stop": channels})]
    if rank > 3:
        fitting += [(".flatten", {"args": (2,)}), ("Flatten", {"start_dim": 2}), ("torch.flatten", {"start_dim": -2})]
    if rank == 3:
        fitting += [(".transpose", {"args": (1, 2)}), ("torch.transpose", {"dim0": 2, "dim1": 1})]
    if rank > 2:
        fitting.append((".permute", {"args": (0, *range(2, rank), 1)}))
        groups = [g for g in range(2, channels + 1) if channels % g == 0]
        fitting += [("shuffle", {"groups": g, "rank": rank}) for g in groups]
    if rank > 2 and value.shape[-1] == 1:
        fitting += [(".squeeze", {"args": (-1,)}), ("torch.squeeze", {"dim": -1})] * 3
    if rank < 5:
        fitting += [(".unsqueeze", {"args": (-1,)}), ("torch.unsqueeze", {"dim": rank})]
    return draft.one_of(*fitting) if fitting else None


def nothing(draft: Any, value: Tensor) -> Made:
    """Draw an operation that does nothing in evaluation mode."""
    dims = value.dim() - 2
    kinds = ("Identity", "Dropout", "F.dropout", ".contiguous", *((f"Dropout{dims}d",) if dims else ()))
    return draft.one_of(*kinds), {}


def number(draft: Any, value: Tensor) -> Made:
    """Draw arithmetic with a number."""
    del value
    return draft.one_of("* number", "+ number"), {"number": draft.one_of(0.5, -2.0)}


OTHERS = (flatten, nothing, resize, resize, shape, shape, shape, global_pool, number)
PLAIN_OTHERS = (nothing, flatten, shape)
HEADS = (global_pool, flatten)
PLAIN_HEADS = (flatten,)
PLAIN_MODULES = (linear, same_shape, norm, activation, pool, flatten, nothing)
MODULES = (linear, same_shape, norm, activation, pool, resize, flatten, nothing)

# By the letters of the usual orders.
USUAL = {
    "l": (linear, same_shape),
    "n": (norm,),
    "a": (activation,),
    "p": (pool, global_pool),
    "m": (max_pool,),
    "o": PLAIN_OTHERS,
}
