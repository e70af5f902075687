"""The only place that knows the order of the steps: plan, apply, the block, undo."""

import threading
from types import TracebackType
from typing import Final

from torch import Tensor, nn

from canon_bridge.core.carry_out import carry_out
from canon_bridge.core.layers.parameters import keeping_graph
from canon_bridge.core.norms import check_norm, is_identity
from canon_bridge.core.obstacles import check_values, check_wrappers
from canon_bridge.core.planning.options import Backend, Options, Scope
from canon_bridge.core.planning.plan import Plan
from canon_bridge.core.planning.planner import IS_IDENTITY, make_plan
from canon_bridge.core.precision import describe, function_error, outputs
from canon_bridge.core.trace.flow import CONSTANTS
from canon_bridge.core.undo.alerts import LostChangeWarning, PrecisionWarning, alert
from canon_bridge.core.undo.edits import Edits
from canon_bridge.core.undo.guard import Guard, convert
from canon_bridge.core.undo.register import other_writer, writes_in_force
from canon_bridge.core.undo.snapshot import drop_hooks
from canon_bridge.core.undo.users import keep_transient_buffers, overwritten
from canon_bridge.core.undo.watch import Changes, Watch

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
    """

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        backend: Backend | None = None,
        scope: Scope | None = None,
    ) -> None:
        check_module(model)
        self.model = model
        self.options = options
        self.backend = backend or Backend()
        self.plan: Plan = make_plan(model, options, scope or Scope())
        self._planned_on = self._state()
        self._edits: Edits | None = None
        self._watch: Watch | None = None
        self.function_error: float | None = None

    def apply(self) -> nn.Module:
        """Make the model canonical, in place, and return it; nothing has changed if this raises.

        Raises
        ------
        RuntimeError
            If the model is canonical already, also in another thread, or another canonization came or went since the
            plan was made.
        ValueError
            If a BatchNorm is in training mode.

        Warns
        -----
        PrecisionWarning
            If a merge loses precision: by the statistics of a BatchNorm, or as measured on ``example_inputs``.
        """
        before = None
        if self.options.arguments is not None:
            self._check()  # before the model runs
            before = outputs(self.model, self.options.arguments)
        edits = Edits()
        try:
            with _ONE_AT_A_TIME:
                self._check()
                doubts = self._enter(edits)
            self._judge(before, doubts)
            return self.model
        except BaseException:
            if self._edits is edits:  # not that of another thread, which has it canonical
                self._edits = self._watch = None
            edits.undo()
            raise

    def _enter(self, edits: Edits) -> dict[str, float]:
        guard = Guard(self.model)
        edits.on_undo(guard.restore)
        with keeping_graph(self.backend.differentiable):
            doubts = carry_out(edits, self.model, self.plan, self.backend)
        if self.backend.leaves_hook is not None:
            edits.on_undo(drop_hooks(self.model.modules(), self.backend.leaves_hook, guard.insist))
        watch = Watch(self.model, guard)
        self._edits, self._watch = edits, watch
        return doubts

    def _judge(self, before: list[Tensor] | None, doubts: dict[str, float]) -> None:
        """Measure the function error, and warn where precision is lost."""
        messages = [describe(doubts)] if doubts else []
        if before is not None and self.options.arguments is not None:
            self.function_error, is_rounding = function_error(before, outputs(self.model, self.options.arguments))
            if doubts or not is_rounding:
                messages.insert(
                    0,
                    f"canonization changed the output of {self.plan.model} on example_inputs by "
                    f"{self.function_error:.1e} relative to its largest value",
                )
            if not is_rounding and not doubts:
                messages.append("more than rounding accounts for; use model.double() for attribution.")
        if messages:
            alert(": ".join(messages), PrecisionWarning)

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
        self._edits = self._watch = None

    def _leave(self) -> None:
        edits = self._edits
        if edits is None:
            return
        changes, set_over = Changes(), list[str]()
        with _ONE_AT_A_TIME:
            try:
                watch, self._watch = self._watch, None  # not again, if this is taken up later
                changes = watch.changes() if watch else changes
                set_over = overwritten(edits, self.model)
                keep_transient_buffers(edits)
            finally:
                edits.undo()
                self._edits = None
            for path, kinds in changes.converted.items():
                convert(self._restored(path), kinds)
        if set_over:
            alert(
                f"{', '.join(set_over)}: set while the model was canonical, and taken back, because canonization had a "
                "value of its own there. Set it outside the block.",
                LostChangeWarning,
            )
        if changes.lost:
            alert(
                f"{', '.join(changes.lost)}: changed while the model was canonical, and the change is lost, because "
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
        return {**vars(self), "_edits": None, "_watch": None}

    def __enter__(self) -> nn.Module:
        return self.apply()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        state = "canonical" if self._edits is not None else "as it was"
        error = "" if self.function_error is None else f", function error {self.function_error:.1e} on example_inputs"
        merged = f"{len(self.plan.merges)} of {len(self.plan.entries)} BatchNorms merged"
        return f"Canonization({self.plan.model}: {state}, {merged}{error})"

    def is_current(self) -> bool:
        """Return whether the model still has the structure that the plan was made for (values may have changed)."""
        return self._state() == self._planned_on

    def _state(self) -> tuple[object, ...]:
        modules = tuple((id(module), type(module)) for module in self.model.modules())
        # What a forward reads as plain attributes has been written into its new forward.
        flags = tuple(
            (name, value)
            for rewrite in self.plan.rewrites
            for name, value in vars(self.model.get_submodule(rewrite.original)).items()
            if type(value) in CONSTANTS
        )
        # Other norms were searched through because they were the identity.
        passed = {entry.norm for entry in self.plan.refusals if entry.reason is IS_IDENTITY}
        ready = tuple(is_identity(norm) for path, norm in self.model.named_modules() if path in passed)
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
        if not self.is_current():
            raise RuntimeError(
                "the model has other modules or flags than when this plan was made, or another canonization of it "
                "began or ended since, or a BatchNorm that was the identity is none any "
                "more; call canonize(model) anew, in the state that the model is in now."
            )
        check_values(self.model)
        paths = {path for path, _ in self.model.named_modules()}
        for path in [entry.norm for entry in self.plan.merges if entry.norm in paths]:
            check_norm(self.model.get_submodule(path), path)


def check_module(model: object) -> None:
    """Raise ``TypeError`` if the model is something else, or a wrapper that hides one."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module.")
    check_wrappers(model)
    check_values(model)
