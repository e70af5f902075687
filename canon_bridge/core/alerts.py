"""The warnings and errors of the package, by category, and where warnings point to."""

import contextlib
import os
import sys
import warnings
from pathlib import Path
from typing import Final

_PASSED_BY: Final = (str(Path(__file__).resolve().parents[1]) + os.sep, contextlib.__file__)


class LostChangeWarning(UserWarning):
    """Warn of a change to a parameter inside the block that is lost, because the parameter is merged."""


class PrecisionWarning(UserWarning):
    """Warn of a merge that loses precision."""


class UncoveredOperationWarning(UserWarning):
    """Warn of operations without a rule, when a map is made: in their place the map has a gradient."""


class FunctionChangedError(RuntimeError):
    """Raise when the canonical model computes another function; the message names the first change that does it."""


def alert(message: str, category: type[Warning]) -> None:
    """Warn at the line of the caller that is not in this package."""
    level = 1
    while sys._getframe(level).f_code.co_filename.startswith(_PASSED_BY) and sys._getframe(level).f_back is not None:
        level += 1
    warnings.warn(message, category, stacklevel=level + 1)
