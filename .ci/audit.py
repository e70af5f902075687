"""Ask for known vulnerabilities of the packages in this environment; tell a finding from a service that is not there.

The exit status is 1 for a finding and 2 if the audit itself is broken. Where no service answers it is 0, with a line
that says so: a machine without that network can still check all the rest.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

SERVICES = ("pypi", "osv")
_COMMAND = ("-m", "pip_audit", "--local", "--skip-editable", "--format=json", "--progress-spinner=off", "--timeout=10")
_UNREACHABLE = re.compile(
    r"\w*(Connection|Timeout|HTTP|SSL|Service|Proxy)Error\b.*|.*Could not connect.*", re.IGNORECASE
)


def judge(output: str, errors: str) -> tuple[int | None, str]:
    """Return the exit status and what to print for one run of pip-audit; None for a status that no service gave.

    Parameters
    ----------
    output, errors : str
        What it wrote to its two streams.
    """
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reasons = [match[0].strip() for match in _UNREACHABLE.finditer(errors)]
        if reasons:
            return None, reasons[-1]
        return 2, f"pip-audit is broken: {errors.strip() or output.strip() or 'it wrote nothing'}"
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, fixed in {flaw['fix_versions'] or 'no version'}"
        for package in packages
        for flaw in package.get("vulns", ())
    ]
    audited = [package for package in packages if "vulns" in package]
    if found:
        return 1, "\n".join(found)
    if not audited:
        return None, f"it knows none of {len(packages)} packages"
    unknown = sorted(package["name"] for package in packages if "vulns" not in package)
    return 0, f"no known vulnerability in {len(audited)} packages" + (
        f"; not known: {', '.join(unknown)}" * bool(unknown)
    )


def main(services: Sequence[str] = SERVICES) -> int:
    """Ask one service after the other until one answers."""
    for service in services:
        done = subprocess.run([sys.executable, *_COMMAND, f"-s{service}"], capture_output=True, text=True)
        status, text = judge(done.stdout, done.stderr)
        if status is not None:
            print(f"pip-audit ({service}): {text}")
            return status
        print(f"pip-audit ({service}) NOT AUDITED, the service gives no answer here: {text[:200]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
