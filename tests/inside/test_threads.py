"""Several threads at once, each with a model of its own, next to threads that run models as they are."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import canon_bridge.captum
from canon_bridge import canonize
from tests.inside.models import made
from tests.support.errors import relative_error
from tests.support.snapshot import Snapshot

ROUNDS = 4


def together(tasks: list[Callable[[], None]]) -> None:
    """Run all tasks at the same time, each in a thread of its own, and raise what any of them raises."""
    start = threading.Barrier(len(tasks))

    def run(task: Callable[[], None]) -> None:
        start.wait()
        task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        for future in [pool.submit(run, task) for task in tasks]:
            future.result()


def gradient_times_input(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).square().sum(), leaf)
    return gradient * leaf.detach()


def canonized(name: str, prefer: str) -> tuple[Callable[[], None], Snapshot]:
    """Return a task that canonizes a model of its own again and again, and what the model was before."""
    model, x, expected = made(name)
    right = gradient_times_input(model, x)
    before = Snapshot(model)

    def task() -> None:
        for _ in range(ROUNDS):
            with canonize(model, prefer=prefer, clipped="pass"):
                assert relative_error(model(x).detach(), expected) < 1e-12
                assert relative_error(gradient_times_input(model, x), right) < 1e-9
            assert torch.equal(model(x).detach(), expected)

    return task, before


def as_it_is(name: str) -> Callable[[], None]:
    """Return a task that runs a model without canonization, and makes new ones."""
    model, x, expected = made(name)

    def task() -> None:
        for _ in range(4 * ROUNDS):
            assert torch.equal(model(x).detach(), expected)
            assert torch.zeros(2, 3).shape == torch.ones(2, 3).shape
            made(name)

    return task


@pytest.mark.parametrize("prefer", ["left", "right"])
def test_a_model_for_each_thread_next_to_threads_without_canonization(prefer: str) -> None:
    work = [canonized(name, prefer) for name in ("branches", "everything", "pre-activation", "branches")]
    others = [as_it_is(name) for name in ("branches", "everything", "densenet")]
    together([*(task for task, _ in work), *others])
    for _, before in work:
        before.check()


def test_attribution_with_captum_in_several_threads() -> None:
    results: dict[int, Tensor] = {}
    models = [made("branches") for _ in range(4)]
    expected = [canon_bridge.captum.LRP(model).attribute(x, target=1) for model, x, _ in models]

    def task(number: int) -> None:
        model, x, _ = models[number]
        for _ in range(ROUNDS):
            results[number] = canon_bridge.captum.LRP(model).attribute(x, target=1)

    together([lambda number=number: task(number) for number in range(4)])
    for number, right in enumerate(expected):
        assert torch.equal(results[number], right)


def test_one_model_on_two_threads_one_after_the_other() -> None:
    model, x, expected = made("everything")
    before, canonization = Snapshot(model), canonize(model)

    def task() -> None:
        with canonization:
            assert relative_error(model(x).detach(), expected) < 1e-12

    for _ in range(2):
        together([task])
        before.check()
        task()


def test_a_canonical_model_may_be_called_from_other_threads() -> None:
    model, x, expected = made("everything")
    before = Snapshot(model)

    def task() -> None:
        for _ in range(ROUNDS):
            assert relative_error(model(x).detach(), expected) < 1e-12

    with canonize(model, prefer="right"):
        together([task] * 4)
    before.check()
