"""One model in several threads, and what other threads see while a model is traced."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from canon_bridge import canonize, plan
from canon_bridge.core.restore import writes_in_force
from tests.support.errors import relative_error
from tests.support.pieces import Written, conv, image, norm
from tests.support.snapshot import Snapshot
from tests.support.statistics import randomize


def small() -> nn.Module:
    return randomize(
        nn.Sequential(nn.Sequential(conv(), norm(), nn.ReLU()), nn.Sequential(norm(), nn.ReLU(), conv())).double()
    )


def in_thread(function: Callable[[], object], name: str = "another") -> object:
    """Return what a function returns in a thread that has ended by then."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(function()), name=name)
    thread.start()
    thread.join(30)
    return results[0]


def entered(model: nn.Module) -> str:
    """Return the error that entering a model gives, or nothing."""
    try:
        with canonize(model):
            return ""
    except RuntimeError as error:
        return str(error)


@pytest.mark.parametrize("part", [lambda model: model, lambda model: model[0]])
def test_a_model_that_is_canonical_in_another_thread_is_refused(part: Callable[[nn.Module], nn.Module]) -> None:
    model = small()
    before = Snapshot(model)
    with canonize(model):
        inside = Snapshot(model)
        message = in_thread(lambda: entered(part(model)))
        assert f"canonical in another thread ({threading.current_thread().name})" in message
        assert "canonized_copy(model)" in message
        inside.check()
    before.check()
    assert in_thread(lambda: entered(model)) == ""
    before.check()


def test_the_parts_of_a_model_are_independent() -> None:
    model = small()
    before = Snapshot(model)
    with canonize(model[0]):
        assert in_thread(lambda: entered(model[1])) == ""
        assert in_thread(lambda: entered(model)) != ""
    before.check()


def test_a_block_may_be_left_in_another_thread_and_a_thread_that_has_ended_holds_nothing() -> None:
    model, x = small(), image()
    before, expected = Snapshot(model), model(x)
    canonization = canonize(model)
    canonization.apply()
    in_thread(canonization.undo)
    before.check()
    in_thread(canonization.apply)
    assert entered(model) == ""  # nested, as in one thread
    canonization.undo()
    before.check()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("shared", [True, False])
def test_of_threads_that_enter_at_once_one_is_let_in(shared: bool) -> None:
    model, x = small(), image()
    before, expected = Snapshot(model), model(x).detach()
    canonizations = [canonize(model, prefer=prefer) for prefer in ("left", "right", "left", "right")]
    if shared:
        canonizations = canonizations[:1] * 4
    start, inside, outcomes = threading.Barrier(4), [0], []

    def task(number: int) -> None:
        start.wait()
        for _ in range(25):
            try:
                with canonizations[number]:
                    inside[0] += 1
                    assert inside[0] == 1
                    outcomes.append(relative_error(model(x).detach(), expected) < 1e-12)
                    inside[0] -= 1
            except RuntimeError as error:
                outcomes.append(str(error))

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(task, number) for number in range(4)]:
            future.result()
    assert len(outcomes) == 100
    assert outcomes.count(True) >= 1
    refusals = [outcome for outcome in outcomes if outcome is not True]
    assert all("another thread" in text or "canonical already" in text or "anew" in text for text in refusals)
    before.check()
    assert not writes_in_force(model)
    assert torch.equal(model(x), expected)


class Waiting(nn.Module):
    """While it is traced, it waits until another thread has done something."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv(), norm(), act

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        self.act()
        return x.relu()


@pytest.mark.parametrize("example", [None, image()])
def test_tracing_is_not_seen_by_other_threads(example: Tensor | None) -> None:
    other, calls = small(), []
    other[0].register_forward_hook(lambda *_: calls.append("hook"))
    x = image()
    expected = other(x).detach()
    scale = nn.Parameter(torch.ones(()))
    for reentrant in (True, False):
        saving = Written(lambda m, x: checkpoint(m.a, x, use_reentrant=reentrant), a=conv())  # noqa: B023
        saving.train()

        def use() -> object:
            runs: list[object] = []
            handle = saving.a.register_forward_pre_hook(lambda *_: runs.append(1))  # noqa: B023
            saving(image() * scale).sum().backward()  # noqa: B023
            handle.remove()
            same = torch.equal(other(x), expected)
            return same, type(other[0][0].weight), len(runs), type(torch.zeros(2)), isinstance(x, Tensor)

        seen: list[object] = []
        model = randomize(Waiting(lambda: seen.append(in_thread(use))).double())  # noqa: B023
        assert len(plan(model, example_inputs=example).merges) == 1
        assert seen
        assert set(seen) == {(True, nn.Parameter, 2, Tensor, True)}  # a checkpoint runs its module twice
    assert calls
