"""A canonical model in several threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from canon_bridge import canonize
from tests.conftest import Snapshot, relative_error
from tests.inside.models import made

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


def test_one_model_on_two_threads_one_after_the_other() -> None:
    model, x, expected = made("everything")
    before, canonization = Snapshot.of(model), canonize(model)

    def task() -> None:
        with canonization:
            assert relative_error(model(x).detach(), expected) < 1e-12

    for _ in range(2):
        together([task])
        before.check()
        task()


def test_a_canonical_model_may_be_called_from_other_threads() -> None:
    model, x, expected = made("everything")
    before = Snapshot.of(model)

    def task() -> None:
        for _ in range(ROUNDS):
            assert relative_error(model(x).detach(), expected) < 1e-12

    with canonize(model, prefer="right"):
        together([task] * 4)
    before.check()
