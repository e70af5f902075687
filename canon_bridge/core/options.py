"""The keywords of ``canonize``, checked, and what an attribution framework adds to them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from canon_bridge.core.restore import Edits

Prefer = Literal["left", "right", "untangled"]
Clipped = Literal["absorb", "pass"]
LeftoverOption = Literal["linear", "keep"]
ExampleInputs = Tensor | tuple[Any, ...]


@dataclass(frozen=True)
class Options:
    """How to canonize; see :func:`canon_bridge.canonize` for the meaning.

    Raises
    ------
    ValueError
        For a value that is not allowed.
    TypeError
        If ``example_inputs`` is neither a tensor nor a tuple.
    """

    prefer: Prefer = "left"
    clipped: Clipped = "absorb"
    leftover: LeftoverOption = "linear"
    example_inputs: ExampleInputs | None = None

    def __post_init__(self) -> None:
        for name, kind in (("prefer", Prefer), ("clipped", Clipped), ("leftover", LeftoverOption)):
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")
        inputs: Any = vars(self)["example_inputs"]  # whatever the annotation says
        if not isinstance(inputs, Tensor | tuple | None):
            raise TypeError(
                f"example_inputs is a {type(inputs).__name__}; it must be a tensor or a tuple of the "
                "positional arguments of the model."
            )

    @property
    def arguments(self) -> tuple[Any, ...] | None:
        """The example inputs as the positional arguments of the model."""
        return (self.example_inputs,) if isinstance(self.example_inputs, Tensor) else self.example_inputs


def _as_it_is(module: nn.Module) -> nn.Module:
    return module


def _leave(edits: Edits, module: nn.Module) -> None:
    """Do nothing to a module."""


@dataclass(frozen=True)
class Backend:
    """What a framework wants to see inside the block; the core's own has no wishes.

    Attributes
    ----------
    adapt : callable
        From a module of the canonical model to the one that the framework wants in its place, or the module itself.
    prepare : callable
        From the journal and a module of the canonical model, after ``adapt``: changes that module.
    scratch : tuple of str
        Attributes that the framework leaves on modules; removed (or put back) when the block ends.
    leaves_hook : callable or None
        Whether a hook is one that the framework leaves on modules when it is interrupted; removed when the block ends.
    differentiable : bool
        Whether all parameters that require gradients are computed from those of the model, so that gradients of
        whatever the framework makes of them reach the model's own; see :class:`LiveParameter`.
    compares_with_reference : callable or None
        Whether hooks on a module are those of a method that compares with a reference input, for which a clipped unit
        is no constant. None for the core's own guess, :func:`compares_with_baselines`.
    has_rules : bool
        Whether maps are made of the canonical model by rules on its modules.
    """

    adapt: Callable[[nn.Module], nn.Module] = _as_it_is
    prepare: Callable[[Edits, nn.Module], None] = _leave
    scratch: tuple[str, ...] = ()
    leaves_hook: Callable[[object], bool] | None = None
    differentiable: bool = False
    compares_with_reference: Callable[[nn.Module], bool] | None = None
    has_rules: bool = False


@dataclass(frozen=True)
class Scope:
    """Which part of canonization is carried out; all of it by default.

    Attributes
    ----------
    kinds : frozenset of {"left", "right", "activation"} or None
        The kinds of merges: to the left, to the right without and with an activation in between; None means all,
        and what ``leftover`` says besides.
    explicit : bool
        Whether functional operations and shared stateless modules become modules of their own.
    """

    kinds: frozenset[str] | None = None
    explicit: bool = True
