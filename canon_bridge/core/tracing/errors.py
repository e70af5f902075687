"""The exceptions of the package that are more specific than ``ValueError`` and ``TypeError``.

Floor 0: imports nothing.
"""


class TracingError(RuntimeError):
    """Raise when the data flow of a model cannot be found; the message names the module and the cause."""
