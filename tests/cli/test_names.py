"""Names in little space, and file names that differ."""

from pathlib import Path

import pytest

from canon_bridge.cli.names import braced, file_names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        (["a.1.b"], ["a.1.b"]),
        (["a.1.b", "a.2.b", "a.3.b"], ["a.{1..3}.b"]),
        (["a.1.b", "a.2.b", "a.4.b", "c"], ["a.{1..2,4}.b", "c"]),
        (["a.1.b", "a.2.c"], ["a.1.b", "a.2.c"]),
        (["a.1.1", "a.2.2"], ["a.1.1", "a.2.2"]),
        (["a.1.1", "a.2.1", "a.2.2"], ["a.{1..2}.1", "a.2.2"]),
        (["a", "a"], ["a", "a"]),
        (["a9", "a10", "a11"], ["a{9..11}"]),
        (["a.1", "b.1"], ["a.1", "b.1"]),
    ],
)
def test_braced(names, expected):
    assert braced(names) == expected


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["x.png", "y.png"], ["x", "y"]),
        (["a/x.png", "b/x.png", "a/y.png"], ["a_x", "b_x", "y"]),
        (["a/c/x.png", "b/c/x.png"], ["a_c_x", "b_c_x"]),
        (["x.png", "x.jpg"], ["x_png", "x_jpg"]),
        (["a/x.png", "b/X.png"], ["a_x", "b_X"]),
    ],
)
def test_file_names(paths, expected):
    assert [name.rpartition("cwd_")[2] for name in file_names([Path("/r/cwd") / path for path in paths])] == expected


def test_file_names_always_differ():
    paths = list(map(Path, ["a/x.png", "a/x.png", "a/x.jpg", "a_x.png", "b/a_x.png", "b/a/x.png"]))
    for many in (paths, paths[::-1], paths[:2]):
        names = file_names(many)
        assert len({name.lower() for name in names}) == len(many)
        assert all(Path(name).name == name for name in names)  # in the folder of the results
