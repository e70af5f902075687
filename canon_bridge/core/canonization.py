"""The only place that knows the order of the steps: plan, apply, the block, undo.

Floor 8: imports everything below it.
"""

import types
import warnings
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from canon_bridge.core.affine import check_norm
from canon_bridge.core.arguments import CONSTANTS
from canon_bridge.core.edits import Edits, writes_in_force
from canon_bridge.core.guard import Guard
from canon_bridge.core.layers import Add
from canon_bridge.core.merge import expect_rank, make_linear, merge_left, merge_right
from canon_bridge.core.options import Backend, Options, Scope
from canon_bridge.core.plan import Merge, Plan, make_plan
from canon_bridge.core.snapshot import drop_scratch


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
        if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module.")
        self.model = model
        self.options = options
        self.backend = backend or Backend()
        self.plan: Plan = make_plan(model, options, scope or Scope())
        self._planned_on = self._state()
        self._edits: Edits | None = None
        self.function_error: float | None = None

    def apply(self) -> nn.Module:
        """Make the model canonical, in place, and return it; nothing has changed if this raises.

        Raises
        ------
        RuntimeError
            If the model is canonical already, or another canonization came or went since the plan was made.
        ValueError
            If a BatchNorm is in training mode.
        """
        self._check()
        before = self._outputs()
        edits = Edits()
        try:
            guard = Guard(self.model)
            edits.on_undo(guard.restore)
            with torch.no_grad(), torch.inference_mode(False):
                self._write(edits)
        except BaseException:
            edits.undo()
            raise
        self._edits = edits
        if before is not None:
            self._compare(before)
        return self.model

    def undo(self) -> None:
        """Make the model itself again: same objects, storages, keys and outputs; a second call does nothing."""
        edits, self._edits = self._edits, None
        if edits is not None:
            edits.undo()

    def __enter__(self) -> nn.Module:
        return self.apply()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()

    def is_current(self) -> bool:
        """Return whether the model still has the structure that the plan was made for (values may have changed)."""
        return self._state() == self._planned_on

    def _state(self) -> tuple[object, ...]:
        modules = tuple((id(module), type(module)) for module in self.model.modules())
        # What a forward reads as plain attributes has been written into its new forward.
        flags = tuple(
            (name, value)
            for rewrite in self.plan.rewrites
            for name, value in vars(self.model.get_submodule(rewrite.path)).items()
            if type(value) in CONSTANTS
        )
        return modules, flags, writes_in_force(self.model)

    def _check(self) -> None:
        if self._edits is not None:
            raise RuntimeError("the model is canonical already: leave the block (or call undo()) before the next.")
        if not self.is_current():
            raise RuntimeError(
                "the model has other modules or flags than when this plan was made, or another canonization of it "
                "began or ended since; call canonize(model) anew, in the state that the model is in now."
            )
        for merge in self.plan.merges:
            check_norm(self.model.get_submodule(merge.norm), merge.norm)

    def _write(self, edits: Edits) -> None:
        model, plan = self.model, self.plan
        for rewrite in plan.rewrites:
            container = model.get_submodule(rewrite.path)
            for name, make in rewrite.children:
                child = self.backend.add() if make is Add else make()
                edits.set(container, "_modules", name, child.train(container.training))
            for name, tensor in rewrite.constants.items():
                edits.set(container, "__dict__", name, tensor)
            edits.set(container, "__dict__", "forward", types.MethodType(rewrite.function, container))
        for path in plan.out_of_place:
            edits.set(model.get_submodule(path), "__dict__", "inplace", False)
        for merge in plan.merges:
            self._merge(edits, merge)
        for leftover in plan.leftovers:
            parent, _, name = leftover.norm.rpartition(".")
            make_linear(edits, model.get_submodule(parent), name, model.get_submodule(leftover.norm))
        self._adapt(edits)

    def _merge(self, edits: Edits, merge: Merge) -> None:
        chain, find = merge.chain, self.model.get_submodule
        norm = find(chain.norm)
        if chain.direction == "left":
            merge_left(edits, [find(target.linear) for target in chain.targets], norm)
        else:
            targets = {find(t.linear): None if t.activation is None else find(t.activation) for t in chain.targets}
            merge_right(edits, targets, norm, self.options.clipped == "absorb")
        if chain.rank is not None:
            expect_rank(edits, norm, chain.rank, f"{chain.norm} and {chain.targets[0].linear}")

    def _adapt(self, edits: Edits) -> None:
        modules = list(self.model.modules())
        if self.backend.leaf_hook is not None:
            for module in modules:
                if not vars(module)["_modules"]:
                    edits.add_pre_hook(module, self.backend.leaf_hook)
        if self.backend.scratch:
            edits.on_undo(drop_scratch(modules, self.backend.scratch))

    def _outputs(self) -> Any:
        arguments = self.options.arguments
        if arguments is None:
            return None
        with torch.no_grad():
            return self.model(*arguments)

    def _compare(self, before: Any) -> None:
        try:
            after = self._outputs()
            if isinstance(before, Tensor) and isinstance(after, Tensor):
                scale = before.abs().max().clamp(min=torch.finfo(before.dtype).tiny)
                self.function_error = float((after - before).abs().max() / scale)
        except BaseException:
            self.undo()
            raise
        limit = 1e-9 if isinstance(before, Tensor) and before.dtype == torch.float64 else 1e-3
        if self.function_error is not None and self.function_error > limit:
            warnings.warn(
                f"canonization changed the output of {self.plan.model} by {self.function_error:.1e} relative to its "
                "largest value: float32 loses precision where |running_mean| is much larger than the standard "
                "deviation; use model.double() for attribution.",
                stacklevel=4,
            )
