"""Blocks that do not end where they began: generators, coroutines, exit stacks, decorators, lost references."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager, closing, contextmanager

import pytest
import torch
from torch import Tensor, nn

from canon_bridge import canonize
from canon_bridge.core.restore import writes_in_force
from tests.inside.models import made
from tests.support.errors import alive, relative_error
from tests.support.pieces import BOTH
from tests.support.snapshot import Snapshot

NAMES = ("everything", "branches")


def outputs(model: nn.Module, inputs: list[Tensor], prefer: str) -> Iterator[Tensor]:
    with canonize(model, prefer=prefer):
        for x in inputs:
            yield model(x).detach()


class StopError(Exception):
    """What is thrown into a generator."""


@pytest.mark.parametrize("end", ["close", "garbage", "throw", "exhaust"])
@pytest.mark.parametrize("prefer", BOTH)
@pytest.mark.parametrize("name", NAMES)
def test_a_generator_that_is_suspended_in_the_block(name: str, prefer: str, end: str) -> None:
    model, x, expected = made(name)
    before, values = Snapshot(model), outputs(model, [x, x], prefer)
    before.check()  # it has not started
    assert relative_error(next(values), expected) < 1e-12
    assert writes_in_force(model)
    assert relative_error(model(x).detach(), expected) < 1e-12  # outside of it the model is canonical, too
    if end == "close":
        values.close()
    elif end == "garbage":
        del values
        gc.collect()
    elif end == "throw":
        with pytest.raises(StopError):
            values.throw(StopError())
    else:
        assert len(list(values)) == 1
    before.check()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("first_ends_first", [True, False])
@pytest.mark.parametrize("prefer", BOTH)
@pytest.mark.parametrize("name", NAMES)
def test_two_generators_of_one_model_take_turns(name: str, prefer: str, first_ends_first: bool) -> None:
    model, x, expected = made(name)
    before = Snapshot(model)
    first, second = outputs(model, [x] * 3, prefer), outputs(model, [x] * 3, "right")
    for values in (first, second, first, second):
        assert relative_error(next(values), expected) < 1e-12
    for values in (first, second) if first_ends_first else (second, first):
        values.close()
        assert relative_error(model(x).detach(), expected) < 1e-12
    before.check()


@pytest.mark.parametrize("prefer", BOTH)
def test_a_generator_goes_on_after_another_block_came_and_went(prefer: str) -> None:
    model, x, expected = made("everything")
    before = Snapshot(model)
    with closing(outputs(model, [x, x], prefer)) as values:
        next(values)
        for other in BOTH:
            with canonize(model, prefer=other):
                assert relative_error(model(x).detach(), expected) < 1e-12
        assert relative_error(next(values), expected) < 1e-12
    before.check()


def test_an_exit_stack_ends_blocks_of_several_models() -> None:
    models = [made(name) for name in NAMES] * 2
    before = [Snapshot(model) for model, *_ in models]
    with ExitStack() as stack:
        for model, x, expected in models:
            assert stack.enter_context(canonize(model)) is model
            assert relative_error(model(x).detach(), expected) < 1e-12
        later = stack.pop_all()
    assert all(alive(model) == [] for model, *_ in models)
    with pytest.raises(StopError), later:
        raise StopError
    for snapshot in before:
        snapshot.check()


@pytest.mark.parametrize("prefer", BOTH)
def test_a_context_manager_and_a_decorator_around_the_block(prefer: str) -> None:
    model, x, expected = made("branches")
    before = Snapshot(model)

    @contextmanager
    def explained() -> Iterator[nn.Module]:
        with canonize(model, prefer=prefer) as canonical:
            yield canonical

    @explained()
    def call() -> Tensor:
        assert alive(model) == []
        return model(x).detach()

    for _ in range(2):
        assert relative_error(call(), expected) < 1e-12
        before.check()
        with pytest.raises(StopError), explained():
            raise StopError
        before.check()


@pytest.mark.parametrize("prefer", BOTH)
def test_a_coroutine_that_waits_in_the_block(prefer: str) -> None:
    (model, x, expected), (other, y, right) = made("everything"), made("branches")
    before = [Snapshot(model), Snapshot(other)]

    @asynccontextmanager
    async def block(of: nn.Module) -> AsyncIterator[nn.Module]:
        with canonize(of, prefer=prefer) as canonical:
            yield canonical

    async def explain(of: nn.Module, example: Tensor, value: Tensor) -> None:
        async with block(of):
            for _ in range(3):
                await asyncio.sleep(0)
                assert relative_error(of(example).detach(), value) < 1e-12

    async def stream() -> AsyncIterator[Tensor]:
        with canonize(model, prefer=prefer):
            while True:
                yield model(x).detach()
                await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(explain(model, x, expected), explain(other, y, right), explain(model, x, expected))
        before[0].check()
        task = asyncio.create_task(explain(model, x, expected))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before[0].check()
        async with aclosing(stream()) as values:
            async for value in values:
                assert relative_error(value, expected) < 1e-12
                break

    asyncio.run(main())
    for snapshot in before:
        snapshot.check()


def test_a_block_that_is_entered_again_after_each_end() -> None:
    model, x, expected = made("everything")
    before, canonization = Snapshot(model), canonize(model)
    for error in (None, StopError, KeyboardInterrupt, GeneratorExit, None):
        try:
            with canonization:
                assert relative_error(model(x).detach(), expected) < 1e-12
                if error is not None:
                    raise error
        except (StopError, KeyboardInterrupt, GeneratorExit):
            assert error is not None
        before.check()
