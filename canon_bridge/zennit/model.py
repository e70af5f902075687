"""Canonizers for whole models, of any architecture."""

import copy
from dataclasses import replace
from typing import ClassVar, Self

from torch import nn
from zennit.canonizers import Canonizer

from canon_bridge.core import (
    Backend,
    Canonization,
    Clipped,
    ExampleInputs,
    LeftoverOption,
    Options,
    Prefer,
    Scope,
    warn_uncovered,
)
from canon_bridge.zennit.arithmetic import adapt
from canon_bridge.zennit.sizes import remember_sizes

BACKEND = Backend(adapt, remember_sizes, has_rules=True)


class ModelCanonizer(Canonizer):
    """Canonize any model inside a zennit composite; the keywords are those of :func:`canon_bridge.canonize`.

    Parameters
    ----------
    prefer : {"left", "right", "untangled"}, default "left"
        Which merge to try first; "untangled" copies layers instead of thresholding activations.
    clipped : {"absorb", "pass"}, default "absorb"
        What happens to relevance at units that a thresholded ReLU clips.
    leftover : {"linear", "keep"}, default "linear"
        What becomes of a BatchNorm that nothing can take.
    example_inputs : Tensor or tuple, optional
        Positional arguments of the model, to compare its function before and after.
    differentiable : bool, default False
        Whether gradients of a relevance map reach the model's own parameters, for training with explanations. The
        parameters inside the block are then computed from those of the model (:class:`LiveParameter`), also for
        zennit's rules, which otherwise cut the graph. Create the optimizer from the model outside the block, and
        step it outside. The attributor needs ``create_graph=True``, and an ``attr_output`` that requires gradients
        (zennit's rules record the graph only for those): the default, the output itself, does.

    Examples
    --------
    >>> composite = EpsilonPlusFlat(canonizers=[ModelCanonizer()])
    >>> with composite.context(model) as modified:
    ...     ...
    """

    scope: ClassVar[Scope] = Scope()

    def __init__(
        self,
        prefer: Prefer = "left",
        clipped: Clipped = "absorb",
        leftover: LeftoverOption = "linear",
        example_inputs: ExampleInputs | None = None,
        differentiable: bool = False,
    ) -> None:
        super().__init__()
        self.options = Options(prefer, clipped, leftover, example_inputs)
        self.backend = replace(BACKEND, differentiable=differentiable)
        self._canonization: Canonization | None = None

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        """Canonize the model and return one handle, whose ``remove()`` undoes everything.

        Raises
        ------
        TypeError, ValueError, TracingError
            As :func:`canon_bridge.canonize`; nothing has changed then.

        Warns
        -----
        UncoveredOperationWarning
            If there are operations without a rule between the input and the output; it names each of them.
        """
        instance = self.copy()
        try:
            instance.register(root_module)
            return [instance]
        except BaseException:
            instance.remove()
            raise

    # zennit's base class has no argument here, its own canonizers have.
    def register(self, root_module: nn.Module) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Canonize the model with this very instance."""
        self._canonization = Canonization(root_module, self.options, self.backend, self.scope)
        warn_uncovered(self._canonization.plan)
        self._canonization.apply()

    def remove(self) -> None:
        """Make the model itself again; a second call does nothing."""
        if self._canonization is not None:
            self._canonization.undo()
            self._canonization = None

    def copy(self) -> Self:
        """Return a canonizer with the same keywords that is not applied to anything."""
        twin = copy.copy(self)
        twin._canonization = None
        return twin


class DenseNetSeqThreshCanonizer(ModelCanonizer):
    """Merge BatchNorms to the left where possible, else by the thresholded ReLU to the right."""

    def __init__(
        self,
        clipped: Clipped = "absorb",
        leftover: LeftoverOption = "linear",
        example_inputs: ExampleInputs | None = None,
        differentiable: bool = False,
    ) -> None:
        super().__init__("left", clipped, leftover, example_inputs, differentiable)


class DenseNetThreshSeqCanonizer(ModelCanonizer):
    """Merge BatchNorms by the thresholded ReLU to the right where possible, else to the left."""

    def __init__(
        self,
        clipped: Clipped = "absorb",
        leftover: LeftoverOption = "linear",
        example_inputs: ExampleInputs | None = None,
        differentiable: bool = False,
    ) -> None:
        super().__init__("right", clipped, leftover, example_inputs, differentiable)


class DenseNetAdaptiveAvgPoolCanonizer(ModelCanonizer):
    """Make functional ReLUs, pools and sums of any model modules (in DenseNet those after the last BatchNorm)."""

    scope = Scope(kinds=frozenset())

    def __init__(self) -> None:
        super().__init__()
