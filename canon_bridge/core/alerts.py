"""The warnings and errors of the package, by category, and where warnings point to."""

import contextlib
import os
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Final

_OWN: Final = str(Path(__file__).resolve().parents[1]) + os.sep
# Where Python keeps its own modules, and packages that are installed.
_INSTALLED: Final = tuple(
    f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


class LostChangeWarning(UserWarning):
    """Warn of a change to a parameter inside the block that is lost, because the parameter is merged."""


class PrecisionWarning(UserWarning):
    """Warn of a merge that loses precision."""


class UncoveredOperationWarning(UserWarning):
    """Warn of operations without a rule, when a map is made: in their place the map has a gradient."""


class FunctionChangedError(RuntimeError):
    """Raise when the canonical model computes another function; the message names the first change that does it."""


def alert(message: str, category: type[Warning]) -> None:
    """Warn at the line of the caller that is not in this package, nor in an installed one if there is another."""
    frame, files = sys._getframe(1), list[str]()
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    others = [level for level, file in enumerate(files) if not file.startswith((_OWN, contextlib.__file__))]
    level = next((level for level in others if not files[level].startswith(_INSTALLED)), (*others, len(files) - 1)[0])
    warnings.warn(message, category, stacklevel=level + 2)
