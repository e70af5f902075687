"""Normalization layers: the scale and shift of each channel that one computes in evaluation mode, and how to write it.

A new normalization layer is one entry of ``NORMS``, or one call of :func:`register_norm`. Nothing outside the entries
knows by which tensors a layer computes.
"""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from canon_bridge.core.affine import Affine, is_eager, working_dtype
from canon_bridge.core.forwards import bind_forward, bound_function
from canon_bridge.core.layers.parameters import gradients, parameter, tracked, trial_input
from canon_bridge.core.layers.weights import computed_tensors
from canon_bridge.core.registry import Registry, TypeKey
from canon_bridge.core.restore import Edits


def _always(module: nn.Module) -> bool:
    return True


@dataclass(frozen=True)
class NormType:
    """How one type of normalization layer is read and written.

    Attributes
    ----------
    read : callable
        Module to :class:`Affine`; the module is in evaluation mode.
    write : callable
        From the module and an :class:`Affine` to ``{attribute: value}``: what makes the module compute just that map,
        and for scale 1 and shift 0 the identity to the bit. Tensors are in the precision of the map; each goes where
        the module has its attribute, with the precision and the flags that it has there.
    ranks : tuple of int
        Numbers of dimensions of the input, ``(N, C, *spatial)``, that the type accepts.
    then : tuple of str
        Names of children that its forward calls after the normalization, one after the other.
    frozen : bool
        Whether it computes the same in training mode.
    width : callable or None
        Module to its number of channels, also where it has no statistics; None where :attr:`read` tells it.
    statistics : callable
        Whether the module normalizes by statistics of its own in evaluation mode; else it is refused.
    mean_ratio : callable or None
        By how many standard deviations the mean is from zero, a tensor of one number, see :func:`mean_ratio`; None
        where that is not known.
    applies : callable
        Whether a layer of the type is one; others are what else their type may be.
    determined : bool
        Whether a layer computes with nothing but the attributes that are written, so that where the identity is one to
        the bit in one layer it is in all of the type.
    """

    read: Callable[[nn.Module], Affine]
    write: Callable[[nn.Module, Affine], Mapping[str, object]]
    ranks: tuple[int, ...] = field(kw_only=True)
    then: tuple[str, ...] = ()
    frozen: bool = False
    width: Callable[[nn.Module], int] | None = None
    statistics: Callable[[nn.Module], bool] = _always
    mean_ratio: Callable[[nn.Module], Tensor] | None = None
    applies: Callable[[nn.Module], bool] = _always
    determined: bool = False


def _read_batch_norm(module: Any) -> Affine:
    # s = weight / sqrt(running_var + eps), b = bias - s * running_mean (design 3; Ioffe & Szegedy 2015, eq. 3).
    scale, mean, bias = _scale_of_batch_norm(module), module.running_mean, module.bias
    shift = -scale * mean.to(scale.dtype)
    if isinstance(bias, Tensor):
        shift = bias.to(scale.dtype) + shift
    return Affine(scale, shift)


def _scale_of_batch_norm(module: Any) -> Tensor:
    mean, variance, weight = module.running_mean, module.running_var, module.weight
    dtype = working_dtype(mean.dtype)  # a tensor: check_norm has refused all others
    scale = (variance.to(dtype) + float(module.eps)).rsqrt()
    return weight.to(dtype) * scale if isinstance(weight, Tensor) else scale


def _write_batch_norm(module: Any, affine: Affine) -> dict[str, object]:
    # eps 0 too: with running_var 1 and eps 1e-5 the layer would still scale by 1 - 5e-6.
    mean, variance = module.running_mean, module.running_var
    written: dict[str, object] = {
        "eps": 0.0,
        "running_mean": torch.zeros_like(mean),
        "running_var": torch.ones_like(variance),
    }
    for name, value, neutral in (("weight", affine.scale, 1), ("bias", affine.shift, 0)):
        if isinstance(getattr(module, name), Tensor) or value.requires_grad or not bool((value == neutral).all()):
            written[name] = value.to(mean.dtype)
    return written


def _width_of_batch_norm(module: Any) -> int:
    mean = module.running_mean
    return mean.numel() if isinstance(mean, Tensor) else int(module.num_features)


def _has_statistics(module: Any) -> bool:
    return isinstance(module.running_mean, Tensor) and isinstance(module.running_var, Tensor)


def _mean_ratio_of_batch_norm(module: Any) -> Tensor:
    deviations = _scale_of_batch_norm(module) * module.running_mean
    weight = module.weight
    return _largest(deviations) / _largest(weight) if isinstance(weight, Tensor) else _largest(deviations)


def _largest(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, torch.inf)


def _tracks(module: nn.Module) -> bool:
    return getattr(module, "track_running_stats", False) is True


_batch_norm = partial(
    NormType,
    _read_batch_norm,
    _write_batch_norm,
    width=_width_of_batch_norm,
    statistics=_has_statistics,
    mean_ratio=_mean_ratio_of_batch_norm,
    determined=True,
)
_THEN: Final = ("drop", "act")

NORMS: Final = Registry[NormType](
    {
        nn.BatchNorm1d: _batch_norm(ranks=(2, 3)),
        nn.BatchNorm2d: _batch_norm(ranks=(4,)),
        nn.BatchNorm3d: _batch_norm(ranks=(5,)),
        nn.SyncBatchNorm: _batch_norm(ranks=(2, 3, 4, 5)),
        # By running statistics, where they keep any: as BatchNorms do. By those of the input they are no affine map.
        nn.InstanceNorm1d: _batch_norm(ranks=(3,), applies=_tracks),
        nn.InstanceNorm2d: _batch_norm(ranks=(4,), applies=_tracks),
        nn.InstanceNorm3d: _batch_norm(ranks=(5,), applies=_tracks),
        "canon_bridge.core.explicit.BatchNorm": _batch_norm(ranks=(2, 3, 4, 5), frozen=True),
        "torchvision.ops.misc.FrozenBatchNorm2d": _batch_norm(ranks=(4,), frozen=True),
        "detectron2.layers.batch_norm.FrozenBatchNorm2d": _batch_norm(ranks=(4,), frozen=True),
        "timm.layers.norm_act.BatchNormAct2d": _batch_norm(ranks=(4,), then=_THEN),
        "timm.layers.norm_act.SyncBatchNormAct": _batch_norm(ranks=(4,), then=_THEN),
        "timm.layers.norm_act.FrozenBatchNormAct2d": _batch_norm(ranks=(4,), then=_THEN, frozen=True),
    }
)


def register_norm(
    type_or_name: TypeKey,
    *,
    read: Callable[[nn.Module], Affine],
    write: Callable[[nn.Module, Affine], Mapping[str, object]],
    ranks: tuple[int, ...],
    width: Callable[[nn.Module], int] | None = None,
    frozen: bool = False,
    then: tuple[str, ...] = (),
) -> None:
    r"""Make a type of normalization layer known, so that layers of it are merged as BatchNorms are.

    In evaluation mode such a layer computes :math:`y_c = s_c x_c + b_c` for each channel :math:`c` of its input
    ``(N, C, *spatial)``, with :math:`s` and :math:`b` that depend on its parameters and buffers alone.

    Parameters
    ----------
    type_or_name : type or str
        The class, or its full name, ``"package.module.Type"``. Subclasses that override nothing count, too.
    read : callable
        ``read(module)`` returns ``Affine(scale, shift)``, each of shape ``(C,)`` and no less precise than float32.
    write : callable
        ``write(module, affine)`` returns ``{attribute: value}``: with these attributes the module computes the map
        ``affine``, and exactly its input for scale 1 and shift 0. It changes nothing itself. Tensors become parameters
        or buffers, as they are now, and get the precision and ``requires_grad`` that they have now.
    ranks : tuple of int
        How many dimensions the input may have, the batch included.
    width : callable, optional
        ``width(module)`` returns the number of channels; by default it is read.
    frozen : bool, default False
        Whether the layer computes the same in training mode, which is refused for others.
    then : tuple of str, default ()
        Names of children that its forward calls after the normalization, one after the other.

    Raises
    ------
    TypeError
        If ``type_or_name`` is neither a type of module nor a full name, or ``read`` or ``write`` is no function.
    ValueError
        If ``ranks`` holds anything but numbers from 2 on.

    Each layer of the type is tried when a model is planned: a plan raises ``TypeError`` or ``ValueError`` where
    ``read`` or ``write`` is not what it has to be.

    Examples
    --------
    >>> class Scaled(nn.Module):
    ...     def __init__(self, channels):
    ...         super().__init__()
    ...         self.alpha, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
    ...         self.register_buffer("mean", torch.zeros(channels))
    ...
    ...     def forward(self, x):  # (N, C)
    ...         return (x - self.mean) * self.alpha + self.beta
    >>> def read(module):
    ...     return Affine(module.alpha, module.beta - module.alpha * module.mean)
    >>> def write(module, affine):
    ...     return {"alpha": affine.scale, "beta": affine.shift, "mean": torch.zeros_like(module.mean)}
    >>> register_norm(Scaled, read=read, write=write, ranks=(2,))
    """
    for name, value in (("read", read), ("write", write)):
        if not callable(value):
            raise TypeError(f"{name} is {value!r}; it must be a function, see canon_bridge.register_norm.")
    given: Any = ranks
    if not isinstance(given, tuple | list) or not given or not all(type(rank) is int and rank >= 2 for rank in ranks):
        raise ValueError(
            f"ranks is {ranks!r}; it must be a tuple of the numbers of dimensions of (N, C, *spatial), from 2 on."
        )
    NORMS[type_or_name] = NormType(read, write, ranks=tuple(ranks), then=tuple(then), frozen=frozen, width=width)


def norm_entry(module: nn.Module) -> NormType | None:
    """Return the entry of ``NORMS`` for a layer, whether or not its forward is that of its class, or None."""
    entry = NORMS.find(module)
    return entry if entry is not None and entry.applies(module) else None


def norm_type(module: nn.Module) -> NormType:
    """Return the entry of ``NORMS`` for a layer for which :func:`is_norm` holds."""
    entry = norm_entry(module)
    if entry is None:
        raise TypeError(f"{type(module).__name__} is no normalization layer with an entry in NORMS.")
    return entry


def children_after(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the children that the layer calls after the normalization, in order; none for most."""
    entry = norm_entry(module)
    return tuple(name for name in entry.then if name in vars(module)["_modules"]) if entry else ()


def is_norm(module: nn.Module) -> bool:
    """Return whether the module is of a type in ``NORMS``, computes what that computes, and has tensors to be set."""
    if norm_entry(module) is None or computed_tensors(module):
        return False
    bound = bound_function(module)
    return "forward" not in vars(module) or (bound is not None and bound[0] is _merged)


@torch.no_grad()
def width(norm: nn.Module) -> int:
    """Return the number of channels of a normalization layer."""
    entry = norm_type(norm)
    return entry.read(norm).scale.numel() if entry.width is None else entry.width(norm)


def normalized(norm: nn.Module, input: Tensor) -> Tensor:
    """Return what the normalization layer alone makes of its input, without the children that it calls."""
    return norm_type(norm).read(norm).applied(input)


@torch.no_grad()
def mean_ratio(norm: nn.Module) -> Tensor | None:
    r"""Return by how many standard deviations the mean is from zero, :math:`\max |s \mu| / \max |\gamma|`.

    A channel counts by its weight, compared with the largest of the layer: NaN where all are zero. None where it is not
    known.
    """
    entry = norm_type(norm)
    return None if entry.mean_ratio is None or not width(norm) else entry.mean_ratio(norm)


def has_statistics(module: nn.Module) -> bool:
    """Return whether the layer normalizes by statistics of its own in evaluation mode."""
    return norm_type(module).statistics(module)


def check_norm(module: nn.Module, path: str) -> None:
    """Raise ``ValueError`` where the layer normalizes by batch statistics, which are not an affine map.

    Parameters
    ----------
    module : nn.Module
        A layer for which :func:`is_norm` holds.
    path : str
        Its name in the model, for the message.
    """
    if module.training and not norm_type(module).frozen:
        raise ValueError(f"{path} is in training mode: its batch statistics cannot be merged; call model.eval() first.")
    if not has_statistics(module):
        raise ValueError(
            f"{path} has no running statistics (track_running_stats=False): it normalizes by the batch even in "
            "evaluation mode, which is not an affine map; give it running statistics or replace it by "
            "GroupNorm or LayerNorm before canonization."
        )


@torch.no_grad()
def check_taught(module: nn.Module, path: str) -> None:
    """Raise where a layer is not what :func:`register_norm` was told of its type, by trying twins on a small input.

    Parameters are those of :func:`check_norm`. Raises ``TypeError`` where ``read`` returns no map, and ``ValueError``
    where it, or ``write``, is not what the layer computes.
    """
    entry, what = norm_type(module), f"{path}: register_norm was told of {type(module).__name__} that"
    if entry.determined or "forward" in vars(module) or children_after(module):
        return
    affine: Any = entry.read(module)
    is_map = isinstance(affine, Affine) and affine.scale.dim() == 1 and affine.scale.shape == affine.shift.shape
    if not is_map:
        raise TypeError(
            f"{what} `read` returns its map, and it returned {affine!r}; return Affine(scale, shift), (C,)."
        )
    x = trial_input(affine.scale, 2, affine.scale.numel(), *(3,) * (min(entry.ranks) - 2))
    identity = Affine.identity(affine.scale)
    tries: tuple[tuple[Affine, Any, str], ...] = (
        (affine, {}, "the map that `read` returns"),
        (affine, entry.write(module, affine), "that map with the attributes that `write` returns for it"),
        (identity, entry.write(module, identity), "its input with the attributes that `write` returns for that map"),
    )
    own = {*vars(module), *vars(module)["_parameters"], *vars(module)["_buffers"]}
    for wanted, given, claim in tries:
        written: Any = given
        if not isinstance(written, Mapping) or not own.issuperset(cast("Mapping[str, object]", written)):
            raise ValueError(
                f"{what} `write` returns values of its attributes, and it returned {written!r}; return "
                "{name: value} with names of attributes, parameters or buffers that it has."
            )
        twin = _with_slots(module, slots_for(module, cast("Mapping[str, object]", written)))
        try:
            found = twin.forward(x.to(next(tensors_of(twin), x).dtype)).to(x.dtype)
        except Exception:  # an input that it does not take, with features of one size, say
            return
        expected = wanted.applied(x)
        scale = 2 * _largest(wanted.scale) + _largest(wanted.shift)
        if found.shape != x.shape or not bool(_largest(found - expected) <= _ALMOST * scale):
            raise ValueError(f"{what} it computes {claim}, and it does not; see canon_bridge.register_norm.")


def _with_slots(module: nn.Module, slots: Mapping[tuple[str, str], object]) -> nn.Module:
    """Return a copy of a layer with other values in some places, which shares no table with it."""
    twin = copy.copy(module)
    for table in ("_parameters", "_buffers"):
        vars(twin)[table] = dict(vars(module)[table])
    for (table, name), value in slots.items():
        (vars(twin) if table == "__dict__" else vars(twin)[table])[name] = value
    return twin


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a layer that hold no integers."""
    values = (*vars(module)["_parameters"].values(), *vars(module)["_buffers"].values())
    return (value for value in values if isinstance(value, Tensor) and value.is_floating_point())


@torch.no_grad()
def is_identity(module: nn.Module) -> bool:
    """Return whether a layer in ``NORMS`` computes exactly ``y = x``, in any precision (so an ``eps`` must be 0)."""
    if not has_statistics(module):
        return False
    entry = norm_type(module)
    affine = entry.read(module)
    if not affine.is_identity():
        return False
    # Rounding may hide what is small. What is no tensor of the channels has to be what the identity has there.
    exact = entry.write(module, Affine.identity(affine.scale))
    per_channel = {name for name, value in exact.items() if isinstance(value, Tensor) and value.dim()}
    return all(bool(getattr(module, name) == exact[name]) for name in exact.keys() - per_channel)


def write(edits: Edits, norm: nn.Module, affine: Affine) -> Mapping[str, object]:
    """Make a norm compute a map of as many channels, and return the values that its attributes have by then."""
    values = norm_type(norm).write(norm, affine)
    for (table, name), value in slots_for(norm, values).items():
        edits.set(norm, table, name, value)
    return values


def slots_for(norm: nn.Module, values: Mapping[str, object]) -> dict[tuple[str, str], object]:
    """Return ``{(table, name): value}``, with which attributes of a norm have these values, in tensors of its own."""
    parameters, buffers = vars(norm)["_parameters"], vars(norm)["_buffers"]
    slots: dict[tuple[str, str], object] = {}
    for name, value in values.items():
        former = getattr(norm, name, None)
        if name in parameters and isinstance(value, Tensor):
            requires_grad = isinstance(former, Tensor) and former.requires_grad
            slots["_parameters", name] = parameter(_own(value, former), requires_grad)
        else:
            table = "_buffers" if name in buffers else "__dict__"
            slots[table, name] = _own(tracked(value), former) if isinstance(value, Tensor) else value
    return slots


def _own(value: Tensor, former: object) -> Tensor:
    """Return the values in a tensor of its own, with the precision of the one that was there."""
    return value.to(former.dtype if isinstance(former, Tensor) else value.dtype, copy=True)


def norm_map(norm: nn.Module) -> Affine:
    """Return the map of a norm, with its graph if that is kept."""
    with gradients():
        return norm_type(norm).read(norm)


def take(edits: Edits, norm: nn.Module, ranks: tuple[int, ...] = (), paths: str = "") -> Affine:
    """Return the map of a norm, and make the norm the identity.

    ``ranks`` are the numbers of dimensions that the merge holds for, where the type accepts others, too: these are
    refused, with ``paths``, what is merged, in the message.
    """
    entry, affine = norm_type(norm), norm_map(norm)
    neutral = write(edits, norm, Affine.identity(affine.scale))
    merged = _Merged(
        neutral,
        width=affine.scale.numel(),
        ranks=ranks or entry.ranks,
        is_rank_needed=bool(ranks),
        paths=paths,
        frozen=entry.frozen,
        is_exact=False if children_after(norm) else None,
    )
    bind_forward(edits, norm, _merged, merged)
    return affine


SHAPES: Final = {2: "(N, C)", 3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}
# Two threads that make one tensor copy-on-write at once would each wrap its memory.
_ONE_AT_A_TIME: Final = threading.Lock()
_ALMOST: Final = 1e-2  # of half precision; what is wrongly taught is off by more
_EXACT: Final[dict[tuple[NormType, torch.dtype], bool]] = {}


@dataclass(eq=False)
class _Merged:
    """What a norm that is merged looks at before it computes: no dictionary, which torch.export would rebuild."""

    neutral: Mapping[str, object]
    width: int
    ranks: tuple[int, ...]
    is_rank_needed: bool
    paths: str
    frozen: bool
    is_exact: bool | None  # whether its type makes of these values the identity to the bit; None until it is asked

    def is_identity(self, norm: nn.Module, input: Tensor) -> bool:
        """Return whether the norm would return the very values of this input."""
        if self.is_exact is False:
            return False
        if input.dim() not in self.ranks or input.shape[1] != self.width or not _is_dense(input):
            return False
        if not all(_holds(getattr(norm, name, None), value, input.dtype) for name, value in self.neutral.items()):
            return False
        if self.is_exact is None:
            key = norm_type(norm), input.dtype
            self.is_exact = _EXACT.get(key)
            if self.is_exact is None:
                self.is_exact = key[0].read(norm).is_identity()
                if key[0].determined:
                    _EXACT[key] = self.is_exact
        return self.is_exact


def _is_dense(input: Tensor) -> bool:
    return input.is_contiguous() or (input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last))


def _holds(present: Any, value: object, dtype: torch.dtype) -> bool:
    """Return whether an attribute has a value, told by values: writes to ``.data`` leave no other trace."""
    if not isinstance(value, Tensor):
        return bool(present == value)
    return isinstance(present, Tensor) and present.dtype == dtype and torch.equal(present, value.to(present))


def _merged(norm: nn.Module, merged: _Merged, input: Tensor) -> Tensor:
    """Compute what the class computes, and nothing where that is the identity and no gradient is recorded.

    The output is a tensor of its own: whoever writes to it, or to the input, gets a copy first (copy-on-write).
    """
    if merged.is_rank_needed and input.dim() not in merged.ranks:
        wanted = " or ".join(SHAPES[rank] for rank in merged.ranks)
        raise ValueError(
            f"{merged.paths} are merged for input of shape {wanted}, but got {tuple(input.shape)}: here the layers "
            "count other channels. Pass example_inputs of this shape, add the batch dimension, or use a convolution "
            "with kernel size 1 where a Linear layer acts on the last dimension."
        )
    if norm.training and not merged.frozen:  # not every torch refuses that with an eps of 0
        raise ValueError(
            f"{merged.paths or 'a BatchNorm'} were put into training mode while the model was canonical: they are "
            "merged and cannot normalize by the batch; call model.eval(), or train the model outside the block."
        )
    if not torch.is_grad_enabled() and is_eager(input) and merged.is_identity(norm, input):
        try:
            with _ONE_AT_A_TIME:
                return torch._lazy_clone(input)  # pyright: ignore
        except RuntimeError:  # memory that is not torch's own, such as that of a numpy array
            pass
    return type(norm).forward(norm, input)


def compose(edits: Edits, norm: nn.Module, affine: Affine, comes_before: bool) -> None:
    """Have a norm compute its own map together with one that comes before or after it.

    For a norm after a flatten the other map may have fewer channels.
    """
    own = norm_map(norm)
    with gradients():
        affine = affine.repeat(own.scale.numel() // affine.scale.numel())
        write(edits, norm, own.after(affine) if comes_before else affine.after(own))


def as_convolution(norm: nn.Module, of: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
    """Return weight ``(C, 1, 1, 1)`` and bias ``(C,)`` of the depthwise convolution that computes what a norm computes.

    They are parameters in the norm's own precision, and require gradients where one of its parameters does; ``of`` says
    for which channels, by default for all.
    """
    affine = norm_map(norm)
    if of is not None:
        with gradients():
            affine = affine.select(of)
    floating = list(tensors_of(norm))
    dtype = min((value.dtype for value in floating), key=lambda dtype: torch.finfo(dtype).eps)
    requires_grad = any(value.requires_grad for value in floating)
    weight, bias = (tracked(value).to(dtype) for value in (affine.scale, affine.shift))
    return parameter(weight.view(-1, 1, 1, 1).clone(), requires_grad), parameter(bias.clone(), requires_grad)
