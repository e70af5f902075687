"""The page of operations in the docs is the table in the code."""

import re

import pytest

from benchmarks.operations import DOCUMENT, RULES, count_of_core, lines, release
from canon_bridge.core.operations import Kind

(MADE_WITH,) = re.findall(r"operators that torch (\d+\.\d+) tags as core", DOCUMENT.read_text())
# That every core operator of any torch has an entry or a reason is held by tests/core/test_operations.py.
pytestmark = pytest.mark.skipif(release() != MADE_WITH, reason=f"the page is of torch {MADE_WITH}")


def test_the_page_is_up_to_date() -> None:
    page = "\n".join(lines()).rstrip() + "\n"
    assert DOCUMENT.read_text() == page, "run python -m benchmarks.operations --write"


def test_it_says_how_many_core_operators_have_an_entry() -> None:
    known, covered = count_of_core()
    assert f"Of {known} operators that torch {release()} tags as core, {covered} have one" in DOCUMENT.read_text()
    assert covered > 150


def test_every_kind_has_a_rule() -> None:
    assert set(RULES) == set(Kind)
