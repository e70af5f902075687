"""The warnings of the package, by category, and where they point to.

Floor 0: imports nothing of the package.
"""

import sys
import warnings
from pathlib import Path
from typing import Final

_PACKAGE: Final = str(Path(__file__).resolve().parents[2])


class LostChangeWarning(UserWarning):
    """Warn of a change to a parameter inside the block that is lost, because the parameter is merged."""


class PrecisionWarning(UserWarning):
    """Warn of a merge that loses precision."""


def alert(message: str, category: type[Warning]) -> None:
    """Warn at the line of the caller that is not in this package."""
    level = 1
    while sys._getframe(level).f_code.co_filename.startswith(_PACKAGE) and sys._getframe(level).f_back is not None:
        level += 1
    warnings.warn(message, category, stacklevel=level + 1)
