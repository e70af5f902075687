"""What the README and the page on reliability name is there; that their examples run, test_pages.py sees to."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_files_that_the_readme_names_are_there():
    for name in re.findall(r"\]\(((?!http)[^)]+)\)", README) + re.findall(r"examples/\w+\.py", README):
        assert (ROOT / name).is_file(), name


def test_public_names():
    import canon_bridge

    for name in canon_bridge.__all__:
        assert hasattr(canon_bridge, name)
    assert {"canonize", "plan", "canonized_copy"} <= set(canon_bridge.__all__)


def test_files_and_tests_that_the_page_on_reliability_names_are_there():
    page = (ROOT / "docs" / "reliability.md").read_text()
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"\btest_\w+\.py", page))
    assert len(named) > 20
    assert named <= {path.name for path in paths}
    functions = {name for path in paths for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    tests = set(re.findall(r"::(test_\w+)", page))
    assert len(tests) > 20
    assert tests <= functions
    for link in re.findall(r"\]\(((?!http|#)[^)]+)\)", page):
        assert (ROOT / "docs" / link).exists(), link
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= headings
