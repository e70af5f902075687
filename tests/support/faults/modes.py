"""The failure modes: each does something that goes wrong, and finds the model as it was or raises an error."""

from __future__ import annotations

import builtins
import gc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from canon_bridge import Canonization, canonize, plan
from canon_bridge.core import plans
from canon_bridge.core.restore import writes_in_force
from tests.support.faults.inject import INJECTORS, Counter, Fault, steps
from tests.support.snapshot import Snapshot

IN_BLOCK = (ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration)

# Where Python itself leaves a gap: an interrupt before the first line of what undoes is raised where nobody can catch
# it any more. The model then is itself again after another call of undo().
GAPS = (Canonization.__exit__, Canonization.undo)


@dataclass(frozen=True)
class Subject:
    """A model, its input, what it was, and what it computes."""

    model: nn.Module
    x: Tensor
    before: Snapshot
    expected: Tensor
    prefer: str

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, prefer: str) -> Subject:
        """Return the subject with what it is now."""
        expected = _output(model, x)
        return cls(model, x, Snapshot(model), expected, prefer)

    def canonization(self) -> Canonization:
        """Return a canonization of the model."""
        return canonize(self.model, prefer=self.prefer)

    def check(self, what: str, with_output: bool = True) -> None:
        """Raise unless the model is itself again, and nothing else is changed in the process."""
        differences = self.before.differences()
        assert not differences, f"{what}: {differences[:3]}"
        assert not writes_in_force(self.model), f"{what}: writes are left"
        assert _world() == _WORLD, f"{what}: torch is left patched or in another mode"
        if with_output:
            with torch.no_grad():
                assert torch.equal(_output(self.model, self.x), self.expected), f"{what}: another output"


def _output(model: nn.Module, x: Tensor) -> Tensor:
    # On a copy of what a forward may write on its model, so that looking at the output changes nothing.
    kept = [(vars(m), dict(vars(m))) for m in model.modules()]
    values = [(b, b.clone()) for b in model.buffers()]
    lists = [(v, list(v)) for _, attributes in kept for v in attributes.values() if isinstance(v, list)]
    result = model(x.clone()).detach()
    for now, former in kept:
        now.clear()
        now.update(former)
    for value, former in lists:
        value[:] = former
    for buffer, value in values:
        if not torch.equal(buffer, value):
            buffer.copy_(value)
    return result


def _world() -> tuple[object, ...]:
    patched = (torch.zeros, torch.tensor, builtins.isinstance, nn.Module.__call__, nn.Module.__getattr__)
    checkpoints = tuple(v for k, v in sorted(vars(checkpoint).items()) if "heckpoint" in k)
    modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
    modes += (gc.isenabled(),)
    return (*patched, vars(torch.autograd.Function)["apply"], *checkpoints, *modes)


_WORLD = _world()


def normal(subject: Subject) -> Iterator[str]:
    """Yield a case for the block, for a second one, with a backward pass, and nested."""
    canonization = subject.canonization()
    for _ in range(2):
        with canonization:
            assert subject.before.differences() or not canonization.plan.merges
            if _wants_gradients(subject.model):
                subject.model(subject.x.clone()).sum().backward()
                subject.model.zero_grad()
        subject.check("a block")
        yield "a block"
    with canonization, subject.canonization():
        subject.model(subject.x.clone())
    subject.check("nested blocks")
    yield "nested"


def _wants_gradients(model: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in model.parameters())


def hooks_left(subject: Subject) -> Iterator[str]:
    """Yield a case for hooks of the user on every module that are still there when the block has ended."""
    handles = []
    with subject.canonization():
        for module in subject.model.modules():
            handles.append(module.register_forward_hook(lambda *_: None))
            handles.append(module.register_forward_pre_hook(lambda *_: None, prepend=True))
            handles.append(module.register_state_dict_pre_hook(lambda *_: None))
        subject.model(subject.x.clone())
    assert subject.before.differences(), "the hooks are gone"
    with torch.no_grad():
        assert torch.equal(_output(subject.model, subject.x), subject.expected)
    for handle in handles:
        handle.remove()
    subject.check("hooks left attached")
    yield "hooks"


def in_block(subject: Subject) -> Iterator[str]:
    """Yield a case for each kind of exception in the block."""
    canonization = subject.canonization()
    for kind in IN_BLOCK:
        with suppress(kind), canonization:
            subject.model(subject.x.clone())
            raise kind
        subject.check(kind.__name__)
        yield kind.__name__


def planning(inject: str, subject: Subject, stride: int) -> Iterator[str]:
    """Yield a case for each step of tracing and planning, symbolically and with values."""
    for inputs in (None, subject.x):
        act = partial(_plan_anew, subject, inputs)
        for k in range(0, steps(inject, act), stride):
            counter = Counter(k)
            with suppress(Fault), INJECTORS[inject](counter):
                act()
            subject.check(f"planning, {counter.where}", with_output=False)
            yield counter.where
    subject.check("planning")


def _plan_anew(subject: Subject, inputs: Tensor | None) -> None:
    plans._KEPT.clear()
    plan(subject.model, prefer=subject.prefer, example_inputs=inputs)


def applying(inject: str, subject: Subject, stride: int) -> Iterator[str]:
    """Yield a case for each step of entering the block."""
    canonization = subject.canonization()
    for where in _at_each(subject, canonization, inject, stride, leaving=False):
        subject.check(f"applying, {where}", with_output=False)
        yield where
    with canonization:  # and it can be used after all that
        assert torch.allclose(_output(subject.model, subject.x), subject.expected)
    subject.check("applying")


def undoing(inject: str, subject: Subject, stride: int) -> Iterator[str]:
    """Yield a case for each step of leaving the block."""
    canonization = subject.canonization()
    for where in _at_each(subject, canonization, inject, stride, leaving=True):
        if inject == "line" and _is_gap(where):
            canonization.undo()
        subject.check(f"undoing, {where}", with_output=False)
        yield where
    subject.check("undoing")


def _at_each(subject: Subject, canonization: Canonization, inject: str, stride: int, leaving: bool) -> Iterator[str]:
    """Enter or leave the block with a fault at every so-manieth step, and yield where it was raised."""
    with canonization:  # what is looked up once and for all has no lines the second time
        pass
    subject.check("a block")
    counter = Counter()
    _move(canonization, inject, counter, leaving)
    canonization.undo()
    subject.check("counting")
    for k in range(0, counter.count, stride):
        one = Counter(k)
        with suppress(Fault):
            _move(canonization, inject, one, leaving)
            raise AssertionError(f"no fault at step {k} of {counter.count}")
        yield one.where


def _move(canonization: Canonization, inject: str, counter: Counter, leaving: bool) -> None:
    if leaving:
        canonization.apply()
    with INJECTORS[inject](counter):
        canonization.__exit__(None, None, None) if leaving else canonization.apply()


def _is_gap(where: str) -> bool:
    place, _, function = where.partition(" in ")
    first = {name.__name__: _first_line(name) for name in GAPS}
    return place == f"canonize.py:{first.get(function)}"


def _first_line(function: Callable[..., object]) -> int:
    """Return the number of the first line of a function that is run."""
    lines = sorted({line for *_, line in function.__code__.co_lines() if line is not None})
    return lines[1]  # behind the line of its ``def``
