"""Captum's ``LRP`` and ``LayerLRP`` on the canonical model, with the rules of a preset."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import captum.attr
from captum._utils.common import _format_output, _is_tuple
from torch import Tensor, nn

from canon_bridge.captum import presets
from canon_bridge.captum.canonical import OnCanonicalModel
from canon_bridge.captum.taps import Tap
from canon_bridge.core import Clipped, ExampleInputs, LeftoverOption, Options, Prefer, check_module

Relevance = Tensor | tuple[Tensor, ...]
P = ParamSpec("P")
T = TypeVar("T")


def _wrapped(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function with the given one as ``__wrapped__``, which is what Captum's ``NoiseTunnel`` calls."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    return wrapper


class LRP(OnCanonicalModel, captum.attr.LRP):
    """Layer-wise relevance propagation on the canonical model, for any model with BatchNorms.

    The model is canonical only while ``attribute`` runs. Rules are attached at every call (a rule that the user has
    set as ``module.rule`` takes precedence and stays), and nothing is left on the model.

    Parameters
    ----------
    model : nn.Module
        The model, in evaluation mode.
    preset : Preset, optional
        Which rule each module gets; ``presets.epsilon_plus()`` by default.
    prefer, clipped, leftover, example_inputs
        See :func:`canon_bridge.canonize`.

    Raises
    ------
    TypeError, ValueError
        As :func:`canon_bridge.canonize`.

    Notes
    -----
    A model that cannot be traced without values is traced with those that are attributed. The first attribution of
    each plan compares the output of the canonical model with that of the model itself, by one forward pass more, and
    raises :class:`canon_bridge.FunctionChangedError` where they differ.

    Examples
    --------
    >>> lrp = LRP(model, preset=presets.epsilon_plus())
    >>> relevance = lrp.attribute(x, target=3)
    """

    def __init__(
        self,
        model: nn.Module,
        preset: presets.Preset | None = None,
        *,
        prefer: Prefer = "left",
        clipped: Clipped = "absorb",
        leftover: LeftoverOption = "linear",
        example_inputs: ExampleInputs | None = None,
    ) -> None:
        check_module(model)
        captum.attr.LRP.__init__(self, model)
        self._set_up(preset, Options(prefer, clipped, leftover, example_inputs))

    # Captum overloads it for each value of return_convergence_delta.
    @_wrapped
    def attribute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs: Relevance,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        verbose: bool = False,
    ) -> Any:
        """Return the relevance of each input element; its sum is the target's score less what was absorbed.

        Parameters
        ----------
        inputs : Tensor or tuple of Tensor
            Batch first, ``(N, ...)``.
        target : int, tuple, list or Tensor, optional
            Which output to explain, as in Captum; None for models with one value an example.
        additional_forward_args : any, optional
            Further arguments of the model, as in Captum.
        return_convergence_delta : bool, default False
            Whether to return also ``score - sum(relevance)``, shape ``(N,)``.
        verbose : bool, default False
            Whether to print which rule is on which module.

        Returns
        -------
        Tensor or tuple of Tensor, or a pair of that and the delta
            Same shapes as ``inputs``, detached.

        Raises
        ------
        TypeError
            For inputs that are integers or no tensors, a model that returns no tensor, a linear layer without a rule.
        ValueError
            If ``target`` does not select one value for each example.
        TracingError
            If the data flow of the model cannot be found, not even with these inputs.
        FunctionChangedError
            If the canonical model computes another function of these inputs.

        Warns
        -----
        UncoveredOperationWarning
            Once for each plan, if there are operations without a rule; it names each of them.
        """
        is_tuple = _is_tuple(inputs)
        relevance, output = self._propagate(inputs, target, additional_forward_args, verbose)
        formatted = _format_output(is_tuple, relevance)
        if return_convergence_delta:
            return formatted, self.compute_convergence_delta(relevance, output)
        return formatted


class LayerLRP(OnCanonicalModel, captum.attr.LayerLRP):
    """Relevance at the input or output of one layer, or of several, on the canonical model.

    Parameters
    ----------
    model : nn.Module
        The model, in evaluation mode.
    layer : nn.Module, or list or tuple of nn.Module
        Any modules of the model, containers too, that run once in one forward pass.
    preset, prefer, clipped, leftover, example_inputs
        As for :class:`LRP`.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module | list[nn.Module] | tuple[nn.Module, ...],
        preset: presets.Preset | None = None,
        *,
        prefer: Prefer = "left",
        clipped: Clipped = "absorb",
        leftover: LeftoverOption = "linear",
        example_inputs: ExampleInputs | None = None,
    ) -> None:
        check_module(model)
        captum.attr.LayerLRP.__init__(self, model, cast(Any, list(layer) if isinstance(layer, tuple) else layer))
        self._set_up(preset, Options(prefer, clipped, leftover, example_inputs))

    # Captum overloads it for each value of return_convergence_delta.
    @_wrapped
    def attribute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs: Relevance,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        verbose: bool = False,
    ) -> Any:
        """Return the relevance at the layer (a list for a list of layers); parameters as for ``LRP.attribute``.

        Parameters
        ----------
        attribute_to_layer_input : bool, default False
            Whether to return the relevance at the layer's input instead of its output.
        """
        layers = cast("list[nn.Module]", self.layer if isinstance(self.layer, list) else [self.layer])
        taps = [Tap(self.model, layer, attribute_to_layer_input) for layer in layers]
        _, output = self._propagate(inputs, target, additional_forward_args, verbose, taps)
        found = [tap.relevance() for tap in taps]
        deltas = [self.compute_convergence_delta(relevance, output) for relevance in found]
        relevance, delta = (found, deltas) if isinstance(self.layer, list) else (found[0], deltas[0])
        return (relevance, delta) if return_convergence_delta else relevance
