"""Activation checkpoints run their function a second time in the backward pass; inside the block there are none.

Rules hook modules: one that runs twice would be seen twice. What is patched while a model is traced is put back.
"""

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from canon_bridge import OtherCourseError, TracingError, canonize, plan
from tests.support.errors import relative_error
from tests.support.pieces import BOTH, Written, alive, conv, image, norm, tiny_densenet
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize

REENTRANT = pytest.mark.parametrize("reentrant", [True, False])


@pytest.fixture(autouse=True)
def _nothing_stays_patched() -> Iterator[None]:
    before = dict(vars(torch.utils.checkpoint))
    yield
    now = vars(torch.utils.checkpoint)
    assert {*now, "__warningregistry__"} == {*before, "__warningregistry__"}
    assert all(now[name] is value for name, value in before.items())


def runs(model: nn.Module, x: Tensor) -> Counter[str]:
    """Return how often each module without children runs forward in a forward and a backward pass."""
    calls: Counter[str] = Counter()
    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: calls.update([path]))
        for path, module in model.named_modules()
        if not list(module.children())
    ]
    model(x.detach().clone().requires_grad_()).sum().backward()
    for handle in handles:
        handle.remove()
    return calls


def body() -> dict[str, nn.Module]:
    return {"norm": norm(), "relu": nn.ReLU(True), "a": conv(), "last": norm(), "b": conv()}


def inner(m: Any, x: Tensor) -> Tensor:
    return m.a(m.relu(m.norm(x)))


FORWARDS: dict[str, Callable[[bool], Callable[[Any, Tensor], Tensor]]] = {
    "a function": lambda reentrant: (
        lambda m, x: m.b(m.last(checkpoint(lambda y: inner(m, y), x, use_reentrant=reentrant)))
    ),
    "a module": lambda reentrant: lambda m, x: m.b(m.last(checkpoint(m.a, x, use_reentrant=reentrant))),
    "with a functional operation inside": lambda reentrant: (
        lambda m, x: m.b(m.last(checkpoint(lambda y: F.relu(m.a(y)) + y, x, use_reentrant=reentrant)))
    ),
    "several inputs": lambda reentrant: (
        lambda m, x: m.b(m.last(checkpoint(lambda y, z: inner(m, y) + z, x, x * 2, use_reentrant=reentrant)))
    ),
    "several outputs": lambda reentrant: (
        lambda m, x: m.b(m.last(sum(checkpoint(lambda y: (inner(m, y), y), x, use_reentrant=reentrant))))
    ),
    "one in another": lambda reentrant: (
        lambda m, x: checkpoint(
            lambda y: m.b(m.last(checkpoint(lambda z: inner(m, z), y, use_reentrant=reentrant))),
            x,
            use_reentrant=reentrant,
        )
    ),
    "without a state of random numbers": lambda reentrant: (
        lambda m, x: m.b(
            m.last(checkpoint(lambda y: inner(m, y), x, use_reentrant=reentrant, preserve_rng_state=False))
        )
    ),
    "where gradients are enabled": lambda reentrant: (
        lambda m, x: m.b(checkpoint(m.a, x, use_reentrant=reentrant) if torch.is_grad_enabled() else m.a(x))
    ),
    "where a gradient is wanted": lambda reentrant: (
        lambda m, x: m.b(m.last(checkpoint(m.a, x, use_reentrant=reentrant) if x.requires_grad else m.a(x)))
    ),
}


@REENTRANT
@pytest.mark.parametrize("prefer", BOTH)
@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("name", FORWARDS)
def test_in_the_block_each_module_runs_once(name: str, with_example: bool, prefer: str, reentrant: bool) -> None:
    # Torch warns of a checkpoint where nothing wants a gradient.
    model, x = randomize(Written(FORWARDS[name](reentrant), **body())), image().requires_grad_()
    before, expected = Snapshot(model), model(x)
    outside = runs(model, x)
    assert max(outside.values()) > 1
    model.zero_grad()
    with canonize(model, prefer=prefer, example_inputs=x if with_example else None):
        assert alive(model) == []
        inside = runs(model, x)
        assert set(inside.values()) == {1}, inside
        assert {path for path in outside if path != "last"} <= {*inside, "norm", "last"}
        for value in (x, x.detach()):
            assert relative_error(model(value), expected) < 1e-12
    model.zero_grad()
    assert runs(model, x) == outside
    model.zero_grad()
    before.check()


@REENTRANT
def test_a_sequence_in_segments(reentrant: bool) -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        return m.last(checkpoint_sequential(m.layers, 2, x, use_reentrant=reentrant))

    layers = nn.Sequential(conv(), norm(), nn.ReLU(True), conv(), norm(), nn.ReLU(True))
    model, x = randomize(Written(function, layers=layers, last=conv())), image().requires_grad_()
    before, expected = Snapshot(model), model(x)
    assert max(runs(model, x).values()) == 2
    model.zero_grad()
    for prefer in BOTH:
        with canonize(model, prefer=prefer):
            assert set(runs(model, x).values()) == {1}
            assert relative_error(model(x), expected) < 1e-12
        model.zero_grad()
        before.check()


@pytest.mark.parametrize("prefer", BOTH)
def test_a_densenet_that_saves_memory(prefer: str) -> None:
    model, x = tiny_densenet(memory_efficient=True), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    before, expected = Snapshot(model), model(x)
    plain = tiny_densenet()
    assert max(runs(model, x).values()) == 2
    model.zero_grad()
    with canonize(model, prefer=prefer):
        inside = runs(model, x)
        assert set(inside.values()) == {1}
        with canonize(plain, prefer=prefer):
            assert inside.keys() == runs(plain, x).keys()
        assert relative_error(model(x.clone().requires_grad_()), expected) < 1e-12
    model.zero_grad()
    before.check()


def test_gradients_are_those_of_the_original() -> None:
    for reentrant in (True, False):
        model = randomize(Written(FORWARDS["a function"](reentrant), **body()))
        x = image().requires_grad_()
        (expected,) = torch.autograd.grad(model(x).sum(), x) if not reentrant else (_by_backward(model, x),)
        for prefer in BOTH:
            with canonize(model, prefer=prefer, clipped="pass"):
                assert relative_error(torch.autograd.grad(model(x).sum(), x)[0], expected) < 1e-12


def _by_backward(model: nn.Module, x: Tensor) -> Tensor:
    model(x).sum().backward()  # reentrant checkpoints do not work with torch.autograd.grad
    gradient = x.grad
    assert gradient is not None
    return gradient.clone()


def test_no_container_without_checkpoints_gets_a_new_forward() -> None:
    plain = nn.Sequential(conv(), norm(), nn.ReLU())
    model = randomize(Written(lambda m, x: m.plain(checkpoint(m.a, x, use_reentrant=False)), plain=plain, a=conv()))
    assert [rewrite.path for rewrite in plan(model).rewrites] == [""]


BROKEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "before the checkpoint": lambda m, x: checkpoint(m.a, x, use_reentrant=False) if x.sum() > 0 else x,
    "inside it": lambda m, x: checkpoint(lambda y: y if y.sum() > 0 else m.a(y), x, use_reentrant=False),
    "inside a reentrant one": lambda m, x: checkpoint(lambda y: y if y.sum() > 0 else m.a(y), x, use_reentrant=True),
    "behind it": lambda m, x: [checkpoint(m.a, x, use_reentrant=True)][x.sum() > 0],
    "an error of its own": lambda m, x: checkpoint(lambda y: 1 / 0, x, use_reentrant=False),
}


@pytest.mark.parametrize("where", BROKEN)
def test_nothing_stays_patched_when_tracing_fails(where: str) -> None:
    model = Written(BROKEN[where], a=conv())
    before = Snapshot(model)
    with pytest.raises(TracingError):
        plan(model)
    before.check()  # and the fixture looks at torch


def test_an_interrupt_while_tracing_leaves_nothing_patched() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    model = Written(function, a=conv())
    before = Snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        plan(model)
    before.check()


def test_the_names_that_are_patched_are_there() -> None:
    # A version of torch that renames them would make checkpoints run again, in silence.
    assert inspect.isclass(torch.utils.checkpoint.CheckpointFunction)
    assert any(name.startswith("_checkpoint_without_reentrant_generator") for name in vars(torch.utils.checkpoint))


def test_a_checkpoint_without_the_flag_warns_no_more_than_once_outside() -> None:
    model = randomize(Written(lambda m, x: m.b(checkpoint(m.a, x)), a=conv(), b=conv()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [rewrite.path for rewrite in plan(model).rewrites] == [""]


class Asking(nn.Module):
    """A forward that asks whether a gradient is wanted, and what it does then."""

    def __init__(self, wanted: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.norm, self.wanted = conv(), norm(), wanted

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.norm(self.a(x)))
        return self.wanted(self, features) if features.requires_grad else features


def _doubled(model: Any, features: Tensor) -> Tensor:
    return features * 2


def _kept(model: Any, features: Tensor) -> Tensor:
    features.register_hook(lambda gradient: None)
    features.retain_grad()
    return features


@pytest.mark.parametrize("with_values", [False, True])
@pytest.mark.parametrize("wanted", [_doubled, _kept, lambda model, features: features])
def test_what_a_forward_does_for_gradients_alone_is_never_left_out_in_silence(wanted: Any, with_values: bool) -> None:
    model, x = randomize(Asking(wanted).double()), image()
    options: dict[str, Any] = {"example_inputs": x} if with_values else {}
    with torch.no_grad():
        expected = model(x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with canonize(model, **options):
            with torch.no_grad():
                assert relative_error(model(x), expected) < 1e-12
            if wanted is _doubled:
                with pytest.raises(OtherCourseError, match="the model computes something else where a gradient is"):
                    model(x)
            else:
                assert relative_error(model(x), expected) < 1e-12
    assert [str(entry.message).partition(";")[0] for entry in caught] == (
        ["the forward of Asking registers hooks on tensors where a gradient is wanted"] if wanted is _kept else []
    )
    assert all(entry.filename == __file__ for entry in caught)
