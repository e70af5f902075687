"""The page of operations in the docs is the table in the code."""

from benchmarks.operations import DOCUMENT, count_of_core, lines


def test_the_page_is_up_to_date() -> None:
    page = "\n".join(lines()).rstrip() + "\n"
    assert DOCUMENT.read_text() == page, "run python -m benchmarks.operations --write"


def test_it_says_how_many_core_operators_have_an_entry() -> None:
    known, covered = count_of_core()
    assert f"Of {known} operators that torch tags as core, {covered} have one" in DOCUMENT.read_text()
    assert covered > 150
