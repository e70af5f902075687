"""The command line, ``canon-bridge`` and ``python -m canon_bridge``: plans, maps and audits of models by name.

The top floor: it may import everything else of the package, and nothing imports it. It needs the extra ``cli``.
"""

import sys

__all__ = ["main"]

NEEDED = {"typer", "rich", "PIL", "matplotlib", "numpy"}
"""The packages of the extra ``cli``, and what they bring."""


def main() -> None:
    """Run the command line with the arguments of the process, and exit."""
    try:
        from canon_bridge.cli.app import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in NEEDED:
            raise
        sys.exit(f"canon-bridge: the command line needs {package}: pip install 'canon-bridge[cli]'")
    app(prog_name="canon-bridge")
