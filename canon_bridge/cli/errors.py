"""Errors and warnings of the command line: one line each, on the standard error stream."""

import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from rich.console import Console
from typer import TyperException
from typer.core import TyperGroup

from canon_bridge import LostChangeWarning, PrecisionWarning, UncoveredOperationWarning

WARNINGS = (LostChangeWarning, PrecisionWarning, UncoveredOperationWarning)


class CommandError(Exception):
    """What the user gave cannot be used; the message says what to do."""


class OneLineErrors(TyperGroup):
    """The commands, with every error in one line; without arguments they show their help."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; the parameters are those of typer."""
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        try:
            status = super().main(arguments, prog_name, complete_var, False, windows_expand_args, **extra)
        except TyperException as error:  # wrong options and the like
            command = getattr(getattr(error, "ctx", None), "command_path", prog_name or "canon-bridge")
            message = in_one_line(error.format_message()).replace("Value error, ", "")
            status = fail(f"{message.removesuffix('.')}; see {command} --help", 2)
        except CommandError as error:
            status = fail(str(error), 2)
        if standalone_mode:
            sys.exit(status or 0)
        return status


def fail(message: str, status: int) -> int:
    """Write one line to the standard error stream, and return the exit status."""
    sys.stderr.write(f"canon-bridge: {in_one_line(message)}\n")
    return status


def in_one_line(text: object) -> str:
    """Return a text without line breaks."""
    return " ".join(str(text).split())


@contextmanager
def reported(console: Console, doing: str) -> Generator[None]:
    """Write the warnings of this package as notes, each once, and make errors of the libraries one line.

    Parameters
    ----------
    console : Console
        Where notes go.
    doing : str
        What cannot be done if there is an error.

    Raises
    ------
    CommandError
        For ``TypeError``, ``ValueError`` and ``RuntimeError``, which are what the package and torch raise for models
        and inputs that they cannot take.
    """
    seen: set[str] = set()

    def note(message: Warning | str, category: type[Warning], *_: Any) -> None:
        text = in_one_line(message)
        if issubclass(category, WARNINGS) and text not in seen:
            seen.add(text)
            console.print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        try:
            yield
        except (TypeError, ValueError, RuntimeError) as error:
            raise CommandError(f"{doing}: {in_one_line(error)}") from error


def needed(package: str, purpose: str) -> Any:
    """Import a package that only some commands need.

    Raises
    ------
    CommandError
        If it is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        root = package.partition(".")[0]
        if (error.name or "").partition(".")[0] != root:
            raise
        raise CommandError(f"{root} is not installed, and {purpose}: pip install {root}") from error
