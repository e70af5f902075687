"""Wrong variants of the mathematics, and what the tests that mirror the package say of each.

A variant is a function that gets the right one and its arguments. It takes the place of the right one everywhere, in
tables, partials and subclasses, too, because not the function is replaced but its code.
"""

import importlib
import inspect
import io
import multiprocessing
import os
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
_ARGUMENTS = ("-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not slow and not whole")
_IN_PLACE: list[Callable[..., Any]] = []


class NeverReachedError(RuntimeError):
    """The tests did not call the wrong function, so that they tell nothing of it."""


@dataclass(frozen=True)
class Variant:
    """What is right, and what stands in its place.

    Attributes
    ----------
    right : function
        A function of the package, or that of a method or property.
    wrong : function
        ``wrong(right, *args, **kwargs)``.
    """

    right: FunctionType
    wrong: Callable[..., Any]

    @property
    def name(self) -> str:
        """The place of the right function, and the name of the wrong one."""
        return f"{self.right.__module__.partition('.')[2]}.{self.right.__qualname__}: {self.wrong.__name__}"

    @property
    def tests(self) -> list[Path]:
        """The test files that mirror the module of the right function."""
        *rooms, module = self.right.__module__.split(".")[1:]
        return sorted(TESTS.joinpath(*rooms).glob(f"test_{module}*.py"))


def wrong(right: Any) -> Callable[[Callable[..., Any]], Variant]:
    """Make a wrong variant of a function, a method of any kind or a property."""
    function: Any = inspect.unwrap(getattr(right, "fget", None) or getattr(right, "__func__", right))
    return lambda variant: Variant(function, variant)


def variants_in(module: ModuleType) -> list[Variant]:
    """Return all wrong variants of a module."""
    return [value for value in vars(module).values() if isinstance(value, Variant)]


@contextmanager
def in_place(variant: Variant) -> Generator[set[Variant]]:
    """Put a variant in place for the length of a block, and yield a set in which it is once it was called."""
    place, called = variant.right, set[Variant]()
    right = FunctionType(place.__code__, place.__globals__, place.__name__, place.__defaults__, place.__closure__)
    right.__kwdefaults__ = place.__kwdefaults__

    def instead(*args: Any, **kwargs: Any) -> Any:
        called.add(variant)
        return variant.wrong(right, *args, **kwargs)

    _IN_PLACE.append(instead)
    place.__code__ = _call_what_is_in_place.__code__
    try:
        yield called
    finally:
        place.__code__ = right.__code__
        _IN_PLACE.remove(instead)


def _call_what_is_in_place(*args: Any, **kwargs: Any) -> Any:
    from tests.support.wrong import _IN_PLACE  # this code runs with the names of another module

    return _IN_PLACE[-1](*args, **kwargs)


def meet(variant: Variant) -> tuple[int, str]:
    """Run the tests that mirror the right function with the wrong one in place, in a process of their own.

    Returns
    -------
    status, output : int, str
        The exit status of pytest, 1 where a test has failed, and what it has printed.

    Raises
    ------
    NeverReachedError
        No test called the wrong function.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "tests.support.variants"])
    with ProcessPoolExecutor(1, context) as pool:
        status, output, is_reached = pool.submit(_run, variant.wrong.__module__, variant.wrong.__name__).result()
    if not is_reached:
        raise NeverReachedError(f"{variant.name} was not called:\n{output}")
    return status, output


def _run(module: str, name: str) -> tuple[int, str, bool]:
    variant: Variant = getattr(importlib.import_module(module), name)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output), in_place(variant) as called:
        status = pytest.main([f"--rootdir={TESTS.parent}", *_ARGUMENTS, *map(str, variant.tests)])
    return int(status), output.getvalue(), bool(called)
