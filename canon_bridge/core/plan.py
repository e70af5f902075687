"""What would be done to a model and what not, and why.

Floor 8: imports ``chains`` and below. Conflicts between chains are resolved here, nothing is written to the model.
"""

import sys
from collections import Counter
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from canon_bridge.core.affine import check_norm, is_identity, is_norm
from canon_bridge.core.chains import Chain, ChainFinder, Obstacle
from canon_bridge.core.explicit import Operation, make_explicit
from canon_bridge.core.options import Options, Scope
from canon_bridge.core.rewrite import Rewrite
from canon_bridge.core.table import format_table
from canon_bridge.core.trace import trace


@dataclass(frozen=True)
class Merge:
    """A BatchNorm that becomes the identity: its affine map goes into the linear layers of the chain."""

    chain: Chain

    @property
    def norm(self) -> str:
        """Path of the BatchNorm."""
        return self.chain.norm


@dataclass(frozen=True)
class Leftover:
    """A BatchNorm that no linear layer can take, and that becomes an explicit per-channel linear layer."""

    norm: str
    reason: str


@dataclass(frozen=True)
class Refusal:
    """A BatchNorm (or an operation that should become a module) that is left as it is, and why."""

    norm: str
    reason: str


Entry = Merge | Leftover | Refusal


@dataclass(frozen=True, eq=False)
class Plan:
    """Every BatchNorm of a model, in the order of the data flow, and what becomes of it.

    Attributes
    ----------
    model : str
        Name of the model's class.
    options : Options
        The keywords that the plan was made with.
    entries : tuple of Merge, Leftover or Refusal
        One for each BatchNorm.
    rewrites : tuple of Rewrite
        The containers whose forward calls modules instead of functions, or one module for each call site.
    failures : tuple of (str, str)
        Containers that keep functional operations, and why.
    out_of_place : tuple of str
        Modules that work in place and are made not to.
    """

    model: str
    options: Options
    entries: tuple[Entry, ...]
    rewrites: tuple[Rewrite, ...]
    failures: tuple[tuple[str, str], ...]
    out_of_place: tuple[str, ...]

    @property
    def merges(self) -> tuple[Merge, ...]:
        """The BatchNorms that are merged, in order."""
        return tuple(entry for entry in self.entries if isinstance(entry, Merge))

    @property
    def leftovers(self) -> tuple[Leftover, ...]:
        """The BatchNorms that become explicit per-channel linear layers."""
        return tuple(entry for entry in self.entries if isinstance(entry, Leftover))

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """The BatchNorms that stay, with the reason."""
        return tuple(entry for entry in self.entries if isinstance(entry, Refusal))

    def __str__(self) -> str:
        options = self.options
        lines = [
            f"plan for {self.model} (prefer={options.prefer!r}, clipped={options.clipped!r}, "
            f"leftover={options.leftover!r})",
            "",
        ]
        if self.entries:
            header = ("BatchNorm", "direction", "merged into", "through")
            lines += [*format_table(header, [_row(entry) for entry in self.entries]), ""]
        for rewrite in (rewrite for rewrite in self.rewrites if rewrite.children):
            names = ", ".join(name for name, _ in rewrite.children)
            lines.append(f"explicit modules in {rewrite.path or 'the model itself'}: {names}")
        lines += [f"not explicit in {path or 'the model itself'}: {reason}" for path, reason in self.failures]
        return "\n".join([*lines, self.total()])

    def total(self) -> str:
        """Return the totals in one line."""
        directions = Counter(merge.chain.direction for merge in self.merges)
        modules = sum(len(rewrite.children) for rewrite in self.rewrites)
        return (
            f"total: {len(self.entries)} BatchNorms: {directions['left']} merged left, {directions['right']} merged "
            f"right, {len(self.leftovers)} to explicit linear layers, {len(self.refusals)} left as they are; "
            f"{modules} operations made modules"
        )


def _row(entry: Entry) -> tuple[str, str, str, str]:
    if isinstance(entry, Merge):
        chain = entry.chain
        return (
            chain.norm,
            chain.direction,
            ", ".join(target.linear for target in chain.targets),
            ", ".join(chain.through) or "-",
        )
    if isinstance(entry, Leftover):
        return entry.norm, "-", "a per-channel linear layer", entry.reason
    return entry.norm, "-", "nothing", entry.reason


def make_plan(model: nn.Module, options: Options, scope: Scope) -> Plan:
    """Decide what becomes of each BatchNorm of the model.

    The order of resolution: BatchNorms in the order of the data flow; for each, the preferred direction, then the
    other one, then what ``leftover`` says. A linear layer may take one BatchNorm on each side.

    Parameters
    ----------
    model : nn.Module
        The model, in evaluation mode; it is not changed.
    options : Options
        The keywords of ``canonize``.
    scope : Scope
        Which part of it to plan.

    Raises
    ------
    ValueError
        If a BatchNorm is in training mode or has no running statistics.
    TracingError
        If the data flow cannot be found.
    """
    check_types(model)
    norms = {path: module for path, module in model.named_modules() if is_norm(module)}
    for path, module in norms.items():
        check_norm(module, path or "the model")
    explicit = make_explicit(model, trace(model, options.arguments), scope.explicit)
    finder = ChainFinder(explicit)
    entries: dict[str, Entry] = {}
    for node, operation in explicit.operations.items():
        path = str(node.target)
        if node.op == "call_module" and path in norms and path not in entries:
            entries[path] = _resolve(finder, node, operation, options, scope)
    for path, module in model.named_modules():
        if path in norms and path not in entries:
            entries[path] = Refusal(path, "it is not called in forward")
        elif path not in norms and isinstance(module, _BatchNorm):
            entries[path] = Refusal(path, f"its forward may differ from a BatchNorm's ({type(module).__name__})")
    positions = explicit.positions()
    return Plan(
        type(model).__name__,
        options,
        tuple(sorted(entries.values(), key=lambda entry: positions.get(entry.norm, sys.maxsize))),
        explicit.rewrites,
        explicit.failures,
        finder.in_place_modules() if scope.explicit else (),
    )


def check_types(model: nn.Module) -> None:
    """Raise ``TypeError`` for modules whose parts cannot be changed: scripted and quantized ones."""
    for path, module in model.named_modules():
        kind = type(module).__module__
        if isinstance(module, torch.jit.ScriptModule):
            found = "a scripted module"
        elif "quantized" in kind and kind.startswith("torch."):
            found = f"a quantized module ({type(module).__name__})"
        else:
            continue
        raise TypeError(f"{path or 'the model'} is {found}, which cannot be changed; canonize the model it came from.")


def _resolve(finder: ChainFinder, node: fx.Node, norm: Operation, options: Options, scope: Scope) -> Entry:
    path = norm.path
    if is_identity(norm.module):
        return Refusal(path, "it is the identity already")
    if path in finder.read_elsewhere:
        return Refusal(path, "a forward reads its tensors by itself")
    other = "right" if options.prefer == "left" else "left"
    obstacles: list[str] = []
    for direction in (options.prefer, other):
        chain = finder.left(node) if direction == "left" else finder.right(node)
        if isinstance(chain, Obstacle):
            obstacles.append(f"{direction}: {chain.reason}")
        elif scope.kinds is None or chain.kind in scope.kinds:
            return Merge(chain)
    reason = "; ".join(obstacles) or "such a merge was not asked for"
    return Leftover(path, reason) if options.leftover == "linear" and scope.kinds is None else Refusal(path, reason)


__all__ = ["Chain", "Leftover", "Merge", "Obstacle", "Plan", "Refusal", "make_plan"]
