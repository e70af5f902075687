"""The only place that knows the order of the steps: plan, apply, the block, undo.

Floor 16: imports everything below it.
"""

import warnings
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from canon_bridge.core.merge import expect_rank, make_linear, merge, replace_child, sequence_behind
from canon_bridge.core.modules.affine import check_norm, children_after, is_identity
from canon_bridge.core.modules.linear import make_plain
from canon_bridge.core.modules.obstacles import check_values, check_wrappers
from canon_bridge.core.modules.parameters import keeping_graph, make_live
from canon_bridge.core.planning.chains import Chain
from canon_bridge.core.planning.options import Backend, Options, Scope
from canon_bridge.core.planning.plan import Plan
from canon_bridge.core.planning.planner import IS_IDENTITY, make_plan
from canon_bridge.core.tracing.arguments import CONSTANTS, copied
from canon_bridge.core.undo.edits import Edits, writes_in_force
from canon_bridge.core.undo.forwards import bind_forward
from canon_bridge.core.undo.guard import Guard
from canon_bridge.core.undo.snapshot import drop_scratch
from canon_bridge.core.undo.watch import Watch


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
            If the model is canonical already, or another canonization came or went since the plan was made.
        ValueError
            If a BatchNorm is in training mode.
        """
        self._check()
        check_values(self.model)
        before = self._outputs()
        edits = Edits()
        try:
            guard = Guard(self.model)
            edits.on_undo(guard.restore)
            with keeping_graph(self.backend.differentiable):
                self._write(edits)
            if before is not None:
                self._compare(before)
            self._watch = Watch(self.model, self._merged_paths())
            self._edits = edits
        except BaseException:
            edits.undo()
            raise
        return self.model

    def undo(self) -> None:
        """Make the model itself again: same objects, storages, keys and outputs; a second call does nothing."""
        if self._edits is None:
            return
        watch, self._watch = self._watch, None  # not again, if the undo is interrupted and taken up later
        changed = watch.changed() if watch else []
        self._edits.undo()
        self._edits = None
        if changed:
            warnings.warn(
                f"{', '.join(changed)}: changed while the model was canonical, and the change is lost, because these "
                "parameters are merged. Train or convert the model outside the block, or use canonized_copy(model).",
                stacklevel=3,
            )

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
        # Other norms were searched through because they were the identity.
        passed = {entry.norm for entry in self.plan.refusals if entry.reason is IS_IDENTITY}
        ready = tuple(is_identity(norm) for path, norm in self.model.named_modules() if path in passed)
        return modules, flags, ready, writes_in_force(self.model)

    def _check(self) -> None:
        if self._edits is not None:
            raise RuntimeError("the model is canonical already: leave the block (or call undo()) before the next.")
        if not self.is_current():
            raise RuntimeError(
                "the model has other modules or flags than when this plan was made, or another canonization of it "
                "began or ended since, or a BatchNorm that was the identity is none any "
                "more; call canonize(model) anew, in the state that the model is in now."
            )
        paths = {path for path, _ in self.model.named_modules()}
        for path in [entry.norm for entry in self.plan.merges if entry.norm in paths]:
            check_norm(self.model.get_submodule(path), path)

    def _merged_paths(self) -> list[str]:
        chains = [merge.chain for merge in self.plan.merges]
        linears = dict.fromkeys(target for chain in chains for target in chain.targets)
        return [*linears, *self.plan.plain, *(chain.norm for chain in chains)]

    def _write(self, edits: Edits) -> None:
        model, plan = self.model, self.plan
        for rewrite in plan.rewrites:
            container = model.get_submodule(rewrite.path)
            for name, make in rewrite.children:
                child = self.backend.adapt(make())
                edits.set(container, "_modules", name, child.train(container.training))
            for name, tensor in rewrite.constants.items():
                edits.set(container, "__dict__", name, tensor)
            bind_forward(edits, container, rewrite.function)
        for path in plan.out_of_place:
            edits.set(model.get_submodule(path), "__dict__", "inplace", False)
        for path in plan.plain:
            make_plain(edits, model.get_submodule(path))
        for entry in plan.merges:
            self._merge(edits, entry.chain)
        # All of them are looked up before the first is replaced, for one may be a part of another.
        for norm in [model.get_submodule(leftover.norm) for leftover in plan.leftovers]:
            make_linear(edits, model, norm)
        for norm in [model.get_submodule(entry.norm) for entry in plan.merges]:
            if children_after(norm):
                replace_child(edits, model, norm, sequence_behind(norm))
        self._adapt(edits)

    def _merge(self, edits: Edits, chain: Chain) -> None:
        find = self.model.get_submodule
        merge(edits, find, chain, self.options.clipped == "absorb")
        if chain.ranks:
            expect_rank(edits, find(chain.norm), chain.ranks, f"{chain.norm} and {chain.targets[0]}")

    def _adapt(self, edits: Edits) -> None:
        modules = list(self.model.modules())
        if self.backend.differentiable:
            make_live(edits, modules)
        if self.backend.leaf_hook is not None:
            for module in modules:
                if not vars(module)["_modules"]:
                    edits.add_pre_hook(module, self.backend.leaf_hook)
        if self.backend.scratch:
            edits.on_undo(drop_scratch(modules, self.backend.scratch))

    def _outputs(self) -> list[Tensor] | None:
        if self.options.arguments is None:
            return None
        # Copies, for models that overwrite their input.
        arguments = copied(self.options.arguments)
        with torch.no_grad():
            return [leaf.clone() for leaf in tree_leaves(self.model(*arguments)) if isinstance(leaf, Tensor)]

    def _compare(self, before: list[Tensor]) -> None:
        after = tree_leaves(self._outputs())
        pairs = [(old, new) for old, new in zip(tree_leaves(before), after, strict=True) if old.numel()]
        self.function_error = max((_deviation(old, new) for old, new in pairs), default=0.0)
        double = all(old.dtype == torch.float64 for old, _ in pairs)
        if not self.function_error <= (1e-9 if double else 1e-3):
            warnings.warn(
                f"canonization changed the output of {self.plan.model} by {self.function_error:.1e} relative to its "
                "largest value: float32 loses precision where |running_mean| is much larger than the standard "
                "deviation; use model.double() for attribution.",
                stacklevel=4,
            )


def check_module(model: nn.Module) -> None:
    """Raise ``TypeError`` if the model is something else, or a wrapper that hides one."""
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module.")
    check_wrappers(model)
    check_values(model)


def _deviation(old: Tensor, new: Tensor) -> float:
    """Return the largest deviation relative to the largest value (or one); infinite where only one of them is NaN."""
    if not bool(torch.equal(old.isnan(), new.isnan())):
        return float("inf")
    scale = float(old.nan_to_num().abs().max())
    return float((new - old).nan_to_num().abs().max()) / (scale or 1.0)
