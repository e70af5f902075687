"""Measure what canonization does to one model: what was merged, what stays, whether the function and the model hold."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import canon_bridge
from canon_bridge.core.plan import kind_of
from tests.support import zoo
from tests.support.alive import witness
from tests.support.row import Row
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize_called

TOLERANCE = 1e-10
ROUNDS = 3

Canonize = Callable[..., AbstractContextManager[Any]]


def measure_by_name(name: str, prefers: tuple[str, ...], size: int | None = None) -> list[Row]:
    """Build a model of the zoo in float64 and measure it once for each ``prefer``; errors become rows."""
    try:
        model = zoo.build(name).double()
        inputs = zoo.inputs(name, model, size)
        called = randomize_called(model, inputs)
    except Exception as error:
        reason = f"the model itself does not run: {first_line(error)}"
        return [Row(name, prefer, status="not measured", reason=reason) for prefer in prefers]
    return [measure(model, inputs, name, prefer, called=called) for prefer in prefers]


def measure(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    name: str = "",
    prefer: str = "left",
    *,
    leftover: str = "linear",
    called: list[str] | None = None,
    canonize: Canonize = canon_bridge.canonize,
    rounds: int = ROUNDS,
) -> Row:
    """Measure one model, whose BatchNorms have random statistics already; exceptions become a row.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, float64.
    inputs : tuple of Tensor
        Its positional arguments.
    name, prefer, leftover : str
        The name for the row, and the keywords of ``canonize``.
    called : list of str, optional
        Paths of the batch norms that forward calls, where they are known.
    canonize : callable
        What makes the model canonical for the length of a block.
    rounds : int
        How often to time it; not at all with 0.
    """
    row = Row(name, prefer, list(inputs[0].shape), sum(p.numel() for p in model.parameters()))
    try:
        with torch.no_grad():
            called = witness(model, inputs).called if called is None else called
            before = _look_at_original(row, model, inputs, called)
            if before is not None:
                subject = _Subject(model, inputs, called, before, canonize)
                _look_around(row, subject, {"prefer": prefer, "leftover": leftover}, rounds)
    except Exception as error:
        row.status = "failed" if row.restored is not False else "failed, not restored"
        row.reason = first_line(error)
    gc.collect()
    return row


@dataclass(frozen=True, eq=False)
class _Subject:
    """What is measured: the model, its inputs, the batch norms that forward calls, its outputs; and by what."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    called: list[str]
    before: list[Tensor]
    canonize: Canonize


def _look_at_original(row: Row, model: nn.Module, inputs: tuple[Tensor, ...], called: list[str]) -> list[Tensor] | None:
    """Return the outputs of the original model, or None if nothing could be seen on them."""
    norms = [path for path, module in model.named_modules() if zoo.is_batch_norm(module)]
    row.batch_norms, row.uncalled = len(norms), len(norms) - len(called)
    before = run(model, inputs)
    if not all(bool(output.isfinite().all()) and float(output.abs().max()) > 0 for output in before):
        row.status, row.reason = "not measured", "an output of the original model is zero or not finite"
        return None
    row.input_change = relative_error(run(model, tuple(3 * torch.randn_like(x) for x in inputs)), before)
    row.eps_error = _error_without_eps(model, inputs, before)
    return before


def _look_around(row: Row, subject: _Subject, options: dict[str, Any], rounds: int) -> None:
    """Compare the model before, in and after the block; time it, and judge."""
    model, inputs = subject.model, subject.inputs
    forwards = [_seconds(lambda: run(model, inputs)) for _ in range(rounds)]
    snapshot = Snapshot(model)
    try:
        options = _look_with_or_without_values(row, subject, options)
        entries = [_entry_seconds(subject, options) for _ in range(rounds)]
    finally:
        row.differences = snapshot.differences()[:5]
        row.differences += [] if _same_output(subject) else ["the output"]
        row.restored = not row.differences
    row.entry = median(entries) / median(forwards) if rounds else None
    row.status, row.reason = _judge(row)


def _same_output(subject: _Subject) -> bool:
    try:
        now = run(subject.model, subject.inputs)
    except Exception:  # what is left of the model does not even run
        return False
    return len(now) == len(subject.before) and all(map(torch.equal, now, subject.before))


def _look_with_or_without_values(row: Row, subject: _Subject, options: dict[str, Any]) -> dict[str, Any]:
    """Look into the block; where tracing fails, or the block asks for it, once more with ``example_inputs``."""
    try:
        row.traced = "symbolically"
        _look_into_block(row, subject, options)
    except (canon_bridge.TracingError, ValueError) as error:
        if "example_inputs" not in str(error):
            raise
        row.traced, row.without_values = "with values", first_line(error)
        options = {**options, "example_inputs": subject.inputs}
        _look_into_block(row, subject, options)
    return options


def _look_into_block(row: Row, subject: _Subject, options: dict[str, Any]) -> None:
    model, inputs = subject.model, subject.inputs
    block = subject.canonize(model, **options)
    _count(row, block, subject.called)
    with block:
        row.error = relative_error(run(model, inputs), subject.before)
        seen = witness(model, inputs, subject.called)
    row.alive, row.functional, row.bypassed = seen.count, seen.functional, len(seen.bypassed)
    row.alive_paths = [*seen.alive, *seen.bypassed]


def _entry_seconds(subject: _Subject, options: dict[str, Any]) -> float:
    start = time.perf_counter()
    with subject.canonize(subject.model, **options):
        return time.perf_counter() - start


def _count(row: Row, block: Any, called: list[str]) -> None:
    """Read the plan; batch norms that forward never calls do not count as left over."""
    plan = getattr(block, "plan", None)
    if plan is None:
        return
    directions = Counter(merge.chain.direction for merge in plan.merges)
    row.left, row.right = directions["left"], directions["right"]
    row.leftover = sum(entry.norm in called for entry in plan.leftovers)
    entries = [entry for entry in (*plan.leftovers, *plan.refusals) if entry.norm in called]
    row.reasons = dict(Counter(kind_of(entry.reason) for entry in entries).most_common())


def _judge(row: Row) -> tuple[str, str]:
    """Return the status and the reason of a model that could be canonized."""
    assert row.error is not None
    found = {
        "wrong": not row.error <= TOLERANCE,
        "not restored": not row.restored,
        "alive": bool(row.alive),
        "leftover": bool(row.leftover),
    }
    reasons = [f"{count}x {reason}" for reason, count in row.reasons.items()]
    if row.differences:
        reasons.insert(0, "not restored: " + ", ".join(row.differences))
    if row.functional:
        reasons.append(f"{row.functional}x functional batch norm")
    if row.bypassed:
        reasons.append(f"{row.bypassed}x not called any more, nor what is in its place")
    if row.without_values:
        reasons.append(f"without example_inputs: {row.without_values}")
    return ", ".join(status for status, holds in found.items() if holds) or "ok", "; ".join(reasons)


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return all output tensors of the model on copies of the inputs."""
    output = model(*(x.clone() for x in inputs))
    is_object = hasattr(output, "__dict__") and not isinstance(output, dict | Tensor)
    leaves = tree_leaves(vars(output) if is_object else output)
    return [leaf.clone() for leaf in leaves if isinstance(leaf, Tensor)]


def relative_error(now: list[Tensor], reference: list[Tensor]) -> float:
    """Return the largest deviation relative to the largest value, the worst of all outputs; infinite where NaN is."""
    errors = [
        float((a - b).abs().max() / b.abs().max()) if a.shape == b.shape and bool(a.isfinite().all()) else float("inf")
        for a, b in zip(now, reference, strict=True)
    ]
    return max(errors)


def _error_without_eps(model: nn.Module, inputs: tuple[Tensor, ...], before: list[Tensor]) -> float:
    norms = [(module, module.eps) for module in model.modules() if zoo.is_batch_norm(module)]
    try:
        for norm, _ in norms:
            norm.eps = 0.0
        return relative_error(run(model, inputs), before)
    finally:
        for norm, eps in norms:
            norm.eps = eps


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an exception's message."""
    return f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}"
