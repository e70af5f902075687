"""Tables: columns as wide as their cells, wide tables in several lines, and HTML that shows what it is given."""

import pytest

from canon_bridge.core.tables import align, folded, format_table, html_table, shortened


def test_columns_are_as_wide_as_their_widest_cell_and_no_line_ends_with_a_space() -> None:
    lines = list(format_table(("norm", "n"), [("a", "100"), ("features.0", "")]))
    assert lines == ["norm        n", "----------  ---", "a           100", "features.0"]


def test_a_table_without_rows_has_its_header_and_a_rule() -> None:
    assert list(format_table(("norm", "n"), [])) == ["norm  n", "----  -"]


@pytest.mark.parametrize("separator", [" ", "-"])
def test_the_longest_cells_of_a_wide_table_go_on_below_and_break_at_spaces_alone(separator: str) -> None:
    long = separator.join("w" * 100)
    lines = list(format_table(("a", "b", "c"), [("left", long, "right"), ("x", "y", "z")]))
    assert " ".join(line[6:].removesuffix("right").strip() for line in lines[2:-1]) == long
    assert [line.startswith("left") for line in lines[2:-1]] == [True, *[False] * (len(lines) - 4)]
    assert lines[-1].split() == ["x", "y", "z"]
    assert (len(lines), len(lines[1])) == ((5, 170) if separator == " " else (4, 4 + 2 + len(long) + 2 + 5))


def test_the_first_columns_are_aligned_to_the_left_and_the_others_to_the_right() -> None:
    rows = [("a", "1", "x"), ("bcd", "200", "yz")]
    assert list(align(rows, left=1)) == ["a      1   x", "bcd  200  yz"]
    assert list(align(rows, left=0)) == ["  a    1   x", "bcd  200  yz"]
    assert list(align(rows)) == ["a    1    x", "bcd  200  yz"]
    with pytest.raises(ValueError, match="zip"):
        list(align([*rows, ("short",)]))


def test_a_long_list_is_its_beginning_and_how_many_more_there_are() -> None:
    assert [shortened("abc"[:n]) for n in range(4)] == ["", "a", "a, b", "a, b and 1 more"]
    assert shortened("abcde", most=1) == "a and 4 more"


def test_what_a_notebook_shows_is_escaped() -> None:
    assert "<script" not in html_table(("a",), [("<script>alert(1)</script>",)])
    assert folded("a < b", "<p>c</p>") == "<details><summary>a &lt; b</summary><p>c</p></details>"
    assert folded("a", "", is_open=True).startswith("<details open>")


def test_paths_may_break_and_sentences_break_at_their_spaces() -> None:
    table = html_table(("path", "n"), [("layer1.0/bn", "1"), ("is no path.", "22")], left=1)
    assert ">layer1.<wbr>0/<wbr>bn</td>" in table
    assert ">is no path.</td>" in table
    assert [part.partition('"')[0] for part in table.split("text-align:")[1:]] == [
        *["left", "right;white-space:nowrap"] * 3
    ]
    assert "nowrap" not in html_table(("path", "n"), [("a", "1")])
