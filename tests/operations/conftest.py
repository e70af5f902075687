"""Each network stands at one of its positions by default, in turn; at all of them in the slow mark."""

import re
import zlib

import pytest

_POSITION = re.compile(r"\[?(.*?) (?:behind|in front of) (relu|norm|conv)")
_POSITIONS = ("relu", "norm", "conv")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark a network as slow at the positions that are not its turn."""
    there: dict[str, set[str]] = {}
    found: list[tuple[pytest.Item, str, str]] = []
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")
        match = _POSITION.match(name) if isinstance(name, str) else None
        if match and "operations" in item.path.parts:
            there.setdefault(match[1], set()).add(match[2])
            found.append((item, match[1], match[2]))
    for item, network, position in found:
        positions = [p for p in _POSITIONS if p in there[network]]
        if position != positions[zlib.crc32(network.encode()) % len(positions)]:
            item.add_marker(pytest.mark.slow)
