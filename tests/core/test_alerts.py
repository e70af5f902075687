"""Warnings point at the line of the user, however deep in the package they begin, and have categories of their own."""

import _thread
import sysconfig
import threading
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import canon_bridge
from canon_bridge import FunctionChangedError, LostChangeWarning, PrecisionWarning, UncoveredOperationWarning
from canon_bridge.core.alerts import alert

PACKAGE = Path(canon_bridge.__file__).parent


def warn() -> None:
    alert("lost", LostChangeWarning)


def call(inner: Callable[[], None]) -> None:
    inner()


def moved(function: Any, file: object) -> Any:
    """Return a function that counts as written in another file."""
    return types.FunctionType(function.__code__.replace(co_filename=str(file)), globals())


def caught(function: Callable[[], object]) -> warnings.WarningMessage:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        function()
    (warning,) = found
    return warning


def test_a_warning_has_its_message_and_its_category_and_points_at_who_asked_for_it() -> None:
    warning = caught(warn)
    assert (str(warning.message), warning.category) == ("lost", LostChangeWarning)
    assert (warning.filename, warning.lineno) == (__file__, warn.__code__.co_firstlineno + 1)


def test_it_points_past_every_frame_of_the_package_and_no_further() -> None:
    inside, deeper = moved(call, PACKAGE / "a.py"), moved(call, PACKAGE / "core" / "trace" / "b.py")
    outside, further = moved(call, "/elsewhere/user.py"), moved(call, "/elsewhere/further.py")
    for chain in ((inside,), (deeper, inside), (inside, deeper, inside)):
        function = moved(warn, PACKAGE / "core" / "c.py")
        for step in (*chain, outside, inside, further):
            function = types.MethodType(step, function)
        warning = caught(function)
        assert (warning.filename, warning.lineno) == ("/elsewhere/user.py", call.__code__.co_firstlineno + 1)


def test_it_points_past_installed_packages_where_there_is_a_caller_of_them() -> None:
    installed = moved(call, Path(sysconfig.get_path("purelib")) / "zennit" / "core.py")
    function = types.MethodType(installed, moved(warn, PACKAGE / "zennit" / "model.py"))
    assert caught(types.MethodType(call, function)).filename == __file__


def test_a_folder_whose_name_begins_like_that_of_the_package_is_not_the_package() -> None:
    file = f"{PACKAGE}_experiments/user.py"
    function = types.MethodType(moved(call, file), moved(warn, PACKAGE / "a.py"))
    assert caught(function).filename == file


def test_a_stack_that_is_all_inside_the_package_ends_at_its_outermost_frame() -> None:
    done, file = threading.Event(), str(PACKAGE / "a.py")

    def start() -> None:
        _thread.start_new_thread(moved(until_done, file), (moved(warn, PACKAGE / "b.py"), done))
        assert done.wait(10)

    assert caught(start).filename == file


def until_done(inner: Callable[[], None], done: threading.Event) -> None:
    try:
        inner()
    finally:
        done.set()


def test_each_category_can_be_silenced_by_itself() -> None:
    kinds = (LostChangeWarning, PrecisionWarning, UncoveredOperationWarning)
    for kind in kinds:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", kind)
            for other in kinds:
                alert("", other)
        assert [warning.category for warning in found] == [other for other in kinds if other is not kind]
        assert issubclass(kind, UserWarning)
    assert issubclass(FunctionChangedError, RuntimeError)
