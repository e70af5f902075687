"""The public functions, and the order of steps behind them: plan, apply, the block, undo."""

import copy
import threading
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from canon_bridge.core.alerts import FunctionChangedError, LostChangeWarning, PrecisionWarning, alert
from canon_bridge.core.apply import carry_out, replace_child
from canon_bridge.core.explicit import OfRank
from canon_bridge.core.first_change import first_change
from canon_bridge.core.garbage import without_collection
from canon_bridge.core.guard import Conversions, Guard, convert
from canon_bridge.core.layers.linear import computes_weight, make_plain, why_not_foldable
from canon_bridge.core.layers.parameters import keeping_graph
from canon_bridge.core.norms import check_norm, is_identity, is_norm
from canon_bridge.core.obstacles import check_module, check_values
from canon_bridge.core.options import Backend, Clipped, ExampleInputs, LeftoverOption, Options, Prefer, Scope
from canon_bridge.core.plan import Plan
from canon_bridge.core.planner import IS_IDENTITY
from canon_bridge.core.plans import plan_for
from canon_bridge.core.precision import (
    Loss,
    Reference,
    comparable,
    describe,
    doubtful,
    explained,
    function_error,
    reference,
    rounding_inside,
    sensitivity,
)
from canon_bridge.core.restore import TRANSIENT, Edits, other_writer, paths, writes_in_force
from canon_bridge.core.trace.flow import CONSTANTS

# Writes to a model and their undo are one thread's at a time, so that of two that enter one model, one is refused.
_ONE_AT_A_TIME: Final = threading.RLock()


class Canonization:
    """A model that can be made canonical and made itself again; returned by :func:`canonize`.

    Use it as a context manager, as often as wanted (the plan is made once, the values are read at each entry), or
    call :meth:`apply` and :meth:`undo`.

    Attributes
    ----------
    model : nn.Module
        The model.
    plan : Plan
        What is done to it.
    function_error : float or None
        How far the output of the canonical model was from that of the model itself, relative to its largest value,
        where there were inputs to measure it on, and the output has finite numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        backend: Backend | None = None,
        scope: Scope | None = None,
        arguments: tuple[Any, ...] | None = None,
    ) -> None:
        check_module(model)
        self.model = model
        self.options = options
        self.backend = backend or Backend()
        self.scope = scope or Scope()
        self.function_error: float | None = None
        self._explained = 0.0  # by what the merges lose in precision
        self._edits: Edits | None = None
        self._guard: Guard | None = None
        self._make_plan(arguments)

    def _make_plan(self, arguments: tuple[Any, ...] | None = None) -> None:
        self.plan: Plan = plan_for(self.model, self.options, self.scope, arguments)
        self._planned_on = self._state()
        self._planned_modules = tuple(paths(self.model))  # their identities stay theirs as long as they are here
        self._planned_inside = writes_in_force(self.model)  # of other blocks

    def apply(self) -> nn.Module:
        """Make the model canonical, in place, and return it; nothing has changed if this raises.

        Raises
        ------
        RuntimeError
            If the model is canonical already, also in another thread, or another canonization came or went since the
            plan was made.
        ValueError
            If a BatchNorm is in training mode.
        FunctionChangedError
            If the model computes another function on ``example_inputs``, by more than precision accounts for.

        Warns
        -----
        PrecisionWarning
            If a merge loses precision: by the statistics of a BatchNorm, or as measured on ``example_inputs``; or if
            there is nothing to measure, since the output on them has no finite number.
        """
        before = None
        if self.options.arguments is not None:
            self._check()  # before the model runs
            before = self.reference(self.options.arguments)
        edits = Edits()
        try:
            with _ONE_AT_A_TIME, without_collection():
                self._check()
                lost = self._enter(edits)
            self._explained = explained(lost)
            doubts = [describe(found)] if (found := doubtful(lost)) else []
            if before is not None:
                after = self.reference(before.arguments).outputs
                if not self.check_function(before, after, "example_inputs", doubts):
                    alert(
                        f"the output of {self.plan.model} on example_inputs has no finite number, so its function was "
                        "not compared; give example inputs on which it has.",
                        PrecisionWarning,
                    )
            elif doubts:
                alert(doubts[0], PrecisionWarning)
            return self.model
        except BaseException:
            if self._edits is edits:  # not that of another thread, which has it canonical
                self._edits = self._guard = None
            edits.undo()
            raise

    def reference(self, arguments: tuple[Any, ...]) -> Reference:
        """Run the model, which is not canonical, to compare it later; see :meth:`check_function`."""
        return reference(self.model, arguments)

    def check_function(
        self, before: Reference, after: list[Tensor], inputs: str = "these inputs", doubts: Sequence[str] = ()
    ) -> bool:
        """Compare what the canonical model has returned with what the model itself returns.

        Parameters
        ----------
        before : Reference
            Of the model itself.
        after : list of Tensor
            All tensors in the output of the canonical model.
        inputs : str, default "these inputs"
            What they were computed from, in words.
        doubts : sequence of str
            What there is to warn of already.

        Returns
        -------
        bool
            Whether there was a finite number to compare.

        Raises
        ------
        FunctionChangedError
            If they differ by more than precision accounts for; it names the first step of the plan that makes them.

        Warns
        -----
        PrecisionWarning
            If they differ by more than rounding.
        """
        self.function_error, is_rounding = function_error(before.outputs, after)
        measured = (
            f"canonization changed the output of {self.plan.model} on {inputs} by {self.function_error:.1e} relative "
            "to its largest value"
        )
        allowed = max(before.rounding, self._explained)
        if not is_rounding and not self.function_error <= (inside := rounding_inside(self.model, before)):
            if self.function_error <= allowed:
                doubts = doubts or ["more than rounding accounts for; use model.double() for attribution."]
            elif self.function_error <= (own := sensitivity(self.model, before)):
                doubts = ["rounding of the inputs alone changes it as much: every map of this model is as uncertain."]
            else:
                raise self._changed(measured, before, max(allowed, inside, own))
        if doubts:
            alert(": ".join([measured, *doubts]), PrecisionWarning)
        if not (was_compared := comparable(before.outputs)):
            self.function_error = None
        return was_compared

    def _changed(self, measured: str, before: Reference, allowed: float) -> FunctionChangedError:
        """Return the error that says which step of the plan changes the function, of a model that is itself again."""
        with _ONE_AT_A_TIME:
            if self._edits is not None and other_writer(self.model) is None:
                self._edits.undo()
            step = first_change(self.model, self.plan, before, allowed)
        return FunctionChangedError(
            f"{measured}, which precision does not account for. It differs first {step}. No map of this model would "
            "be right: please report it, unless the model draws random numbers or counts its calls, which has to end "
            "first, or what a register_ function was told of that step is not so."
        )

    def _enter(self, edits: Edits) -> list[Loss]:
        guard = Guard(self.model, self.backend.scratch, self.backend.leaves_hook)
        edits.on_undo(guard.restore)
        with keeping_graph(self.backend.differentiable):
            lost = carry_out(edits, self.model, self.plan, self.backend)
        guard.watch(self.model)
        self._edits, self._guard = edits, guard
        return lost

    def undo(self) -> None:
        """Make the model itself again: same objects, storages, keys and outputs; a second call does nothing.

        Also where an exception interrupts it. A model that was converted in between (``model.half()``,
        ``model.cuda()``) comes back converted.

        Warns
        -----
        LostChangeWarning
            If parameters were changed that are merged: it names them.
        """
        try:
            self._leave()
        except BaseException:
            self._leave()  # takes up what an interrupt has cut short
            raise

    def keep(self) -> None:
        """Leave the model canonical for good: it cannot be undone any more, and counts as a model like any other."""
        if self._edits is not None:
            self._edits.keep()
        self._edits = self._guard = None

    def _leave(self) -> None:
        edits = self._edits
        if edits is None:
            return
        lost: list[str] = []
        set_over: list[str] = []
        converted: Conversions = {}
        with _ONE_AT_A_TIME, without_collection():
            try:
                guard, self._guard = self._guard, None  # not again, if this is taken up later
                if guard is not None:
                    lost, converted = guard.changes()
                if overwritten := edits.overwritten():
                    now = paths(self.model)
                    set_over = [f"{now[m]}.{name}".removeprefix(".") for m, name in overwritten if m in now]
            finally:
                edits.undo()
                self._edits = None
            for path, kinds in converted.items():
                convert(self._restored(path), kinds)
        if set_over:
            alert(
                f"{', '.join(set_over)}: set while the model was canonical, and taken back, because canonization had a "
                "value of its own there. Set it outside the block.",
                LostChangeWarning,
            )
        if lost:
            alert(
                f"{', '.join(lost)}: changed while the model was canonical, and the change is lost, because "
                "these parameters are merged. Train or load the model outside the block, or use "
                "canonized_copy(model).",
                LostChangeWarning,
            )

    def _restored(self, path: str) -> nn.Module:
        """Return the module of the model for which the one at a path of the canonical model stood."""
        module = self.model
        for name in filter(None, path.split(".")):
            child = vars(module)["_modules"].get(name)
            if child is None:
                break
            module = child
        return module

    def __getstate__(self) -> dict[str, object]:
        # A copy holds no journal: it cannot undo what was written to another model, or a second time.
        return {**vars(self), "_edits": None, "_guard": None}

    def __enter__(self) -> nn.Module:
        return self.apply()

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        state = "canonical" if self._edits is not None else "as it was"
        error = "" if self.function_error is None else f", function error {self.function_error:.1e} on example_inputs"
        merged = f"{len(self.plan.merges) + len(self.plan.untangled)} of {len(self.plan.entries)} BatchNorms merged"
        return f"Canonization({self.plan.model}: {state}, {merged}{error})"

    def is_current(self) -> bool:
        """Return whether the model still has the structure that the plan was made for (values may have changed)."""
        return self._state() == self._planned_on

    def _state(self) -> tuple[object, ...]:
        named = {path: module for module, path in paths(self.model).items()}
        modules = tuple((path, id(module), type(module)) for path, module in named.items())
        # What a forward reads as plain attributes has been written into its new forward.
        flags = tuple(
            (name, value)
            for rewrite in self.plan.rewrites
            if rewrite.original in named
            for name, value in vars(named[rewrite.original]).items()
            if type(value) in CONSTANTS
        )
        # Other norms were searched through because they were the identity.
        passed = [entry.norm for entry in self.plan.refusals if entry.reason is IS_IDENTITY]
        ready = tuple(is_identity(named[path]) for path in passed if path in named)
        return modules, flags, ready, writes_in_force(self.model)

    def _check(self) -> None:
        if self._edits is not None:
            raise RuntimeError("the model is canonical already: leave the block (or call undo()) before the next.")
        other = other_writer(self.model)
        if other is not None:
            raise RuntimeError(
                f"the model, or a part of it, is canonical in another thread ({other.name}), and two threads cannot "
                "have it in two states: put a lock around the block, or give each thread a canonized_copy(model)."
            )
        if self._planned_inside - writes_in_force(self.model) and not self.is_current():
            self._make_plan()  # the block that the plan was made in has ended
        merged = {entry.norm for entry in (*self.plan.merges, *self.plan.untangled)}
        for module, path in paths(self.model).items():
            if path in merged and is_norm(module):
                check_norm(module, path)
        if not self.is_current():
            raise RuntimeError(
                "the model has other modules or flags than when this plan was made, or another canonization of it "
                "began or ended since, or a BatchNorm that was the identity is none any "
                "more; call canonize(model) anew, in the state that the model is in now."
            )
        check_values(self.model)


def canonize(
    model: nn.Module,
    *,
    prefer: Prefer = "left",
    clipped: Clipped = "absorb",
    leftover: LeftoverOption = "linear",
    example_inputs: ExampleInputs | None = None,
) -> Canonization:
    r"""Make a model canonical for the length of a ``with`` block: same function, no BatchNorm, explicit modules.

    Each BatchNorm in evaluation mode is the per-channel affine map :math:`y = s x + b`,
    :math:`s = \gamma / \sqrt{\sigma^2 + \epsilon}`, :math:`b = \beta - s \mu`. It is merged into the linear layer
    before it or into the linear layers after it, where a ReLU in between becomes the thresholded ReLU; the
    BatchNorm then computes the exact identity.

    Parameters
    ----------
    model : nn.Module
        Any model in evaluation mode, float16 to float64, on any device. It is changed in place and restored.
    prefer : {"left", "right", "untangled"}, default "left"
        Which merge to try first: into the linear layer before the BatchNorm, or into those after it. With "untangled"
        no activation is changed: a layer before several BatchNorms is copied for each of them (its output channels
        hold the copies side by side, and each BatchNorm selects its own), which are then merged to the left; what
        comes from no linear layer gets an explicit per-channel linear layer.
    clipped : {"absorb", "pass"}, default "absorb"
        What happens to relevance at units that a thresholded ReLU clips, whose value does not depend on the input:
        it is absorbed (as by a bias), or passes to the input all the same.
    leftover : {"linear", "keep"}, default "linear"
        What becomes of a BatchNorm that nothing can take: an explicit per-channel linear layer, or nothing.
    example_inputs : Tensor or tuple, optional
        Positional arguments of the model. On entry the function is compared before and after on them
        (``Canonization.function_error``), with a warning where float32 loses precision, and an error where it is
        another function.

    Returns
    -------
    Canonization
        A context manager; ``with canonize(model) as canonical`` gives the model itself.

    Raises
    ------
    TypeError
        If ``model`` is not an ``nn.Module``, or ``example_inputs`` neither a tensor nor a tuple, or more or fewer than
        the model takes.
    ValueError
        If a BatchNorm is in training mode or has no running statistics, or a keyword has an unknown value.
    TracingError
        If the data flow of the model cannot be found (a ``RuntimeError``).
    FunctionChangedError
        On entry, if the canonical model computes something else on ``example_inputs`` (a ``RuntimeError``).

    Warns
    -----
    PrecisionWarning
        On entry, if a merge loses precision; it names the BatchNorms and says what to do.
    LostChangeWarning
        When the block ends, if something was changed inside that is not kept.

    Notes
    -----
    Module objects, names and types stay (with "untangled", a BatchNorm that selects its copy is another module
    inside, and a layer that is copied puts out all copies, side by side in its channels). Inside the block
    ``state_dict`` holds the merged values, and merged layers without bias have one. Parameters of merged layers are
    new objects; a change to them is lost on exit, with a ``LostChangeWarning`` that names them. Gradients are those
    of the function, whatever hooks look on; ``clipped`` holds for what a rule hands down, that is, puts in the place
    of an activation's gradient. The model is canonical for all threads, and another thread cannot enter a block on it
    meanwhile.

    References
    ----------
    Guillemot et al. 2020, "Breaking Batch Normalization for better explainability of Deep Neural Networks through
    Layer-wise Relevance Propagation"; Hui & Binder 2019, "BatchNorm Decomposition for Deep Neural Network
    Interpretation"; Pahde et al. 2023, "Optimizing Explanations by Network Canonization and Hyperparameter Search".

    Examples
    --------
    >>> with canonize(model):
    ...     relevance = explain(model, x)
    """
    return Canonization(model, Options(prefer, clipped, leftover, example_inputs))


def plan(
    model: nn.Module,
    *,
    prefer: Prefer = "left",
    clipped: Clipped = "absorb",
    leftover: LeftoverOption = "linear",
    example_inputs: ExampleInputs | None = None,
) -> Plan:
    """Return what :func:`canonize` would do with the same arguments, as a table for ``print``; change nothing."""
    return Canonization(model, Options(prefer, clipped, leftover, example_inputs)).plan


def canonized_copy(
    model: nn.Module,
    *,
    prefer: Prefer = "left",
    clipped: Clipped = "absorb",
    leftover: LeftoverOption = "linear",
    example_inputs: ExampleInputs | None = None,
) -> nn.Module:
    """Return a permanent, independent, canonical copy of a model, in which merged BatchNorms are ``nn.Identity``.

    Parameters and errors are those of :func:`canonize`; ``model`` is not changed. Linear layers that compute their
    weight (a parametrization, weight_norm) have it as a parameter in the copy. Its ``state_dict`` holds all that it
    computes with, thresholds of activations and signs of pools, too; it can be loaded into the copy of a model of the
    same class.
    """
    check_module(model)
    twin = _copy(model)
    transient = {module: vars(module)[TRANSIENT] for module in twin.modules()}
    canonization = Canonization(twin, Options(prefer, clipped, leftover, example_inputs))
    canonization.apply()
    edits = Edits()
    for merge in canonization.plan.merges:
        norm, ranks = twin.get_submodule(merge.norm), merge.chain.ranks
        if not isinstance(norm, nn.Sequential):  # what a norm calls after itself stays
            replace_child(edits, twin, norm, OfRank(ranks) if ranks else nn.Identity())
    for module in twin.modules():  # thresholds and signs belong to its state
        edits.set(module, "__dict__", TRANSIENT, transient.get(module, set()))
    canonization.keep()
    edits.keep()
    return twin


def _copy(model: nn.Module) -> nn.Module:
    # Tensors that hooks have computed (weight_norm) cannot be copied: they are parameters meanwhile.
    with Edits() as edits:
        for module in model.modules():
            if computes_weight(module) and why_not_foldable(module) is None:
                make_plain(edits, module)
        with torch.inference_mode(False):  # a copy that is made in there may be trained outside
            return copy.deepcopy(model)
