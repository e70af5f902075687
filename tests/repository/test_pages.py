"""Every Python block of the README and of the pages in docs/ runs as it stands, and prints what the page says.

The blocks of a page are one script, ``my_script.py``, run from top to bottom in an empty folder. A ``text`` block right
behind a Python block is what that prints, warnings and the last line of an error among it; ``...`` at the end of a line
stands for the rest of the line, and on a line of its own for any lines. A block that warns or raises without saying so
fails. A page that starts with "Needs `pip install NAME`" is skipped where NAME is not installed.
"""

import contextlib
import io
import linecache
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "my_script.py"
# The others run in the slow mark, which `.ci/run` takes for this file, where what they need is installed.
QUICK = {"README.md", "docs/start/zennit.md", "docs/start/captum.md"}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NEEDS = re.compile(r"^Needs `pip install .*", re.MULTILINE)
REGISTERS = re.compile(r"\bregister_(?!forward|backward|full|buffer|parameter)\w+\(|torch\.library|fx\.wrap")


@dataclass(frozen=True)
class Block:
    """A Python block, and what the page says it prints, if it says anything."""

    code: str
    expected: str | None


def blocks_of(text: str) -> list[Block]:
    """Return the Python blocks of a page, in order."""
    fences = [*FENCE.finditer(text), None]
    found: list[Block] = []
    for fence, following in pairwise(fences):
        if fence is not None and fence[1] == "python":
            is_output = following is not None and following[1] == "text"
            is_output = is_output and not text[fence.end() : following.start()].strip()
            found.append(Block(fence[2], following[2] if is_output else None))
    return found


def missing_packages(text: str) -> list[str]:
    """Return what a page needs and is not installed."""
    commands = [command for line in NEEDS.findall(text) for command in re.findall(r"`pip install ([^`]+)`", line)]
    words = [word for command in commands for word in command.split() if not word.startswith("-")]
    return [word for word in words if not is_installed(re.split(r"[\[<>=~!]", word.strip("'\""))[0])]


def is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def pattern_of(expected: str) -> str:
    """Return a regular expression for the output, in which trailing spaces do not count."""
    lines = [line.rstrip() for line in expected.strip("\n").splitlines()]
    any_lines, rest_of_line = r"(?:.*\n)*?", r".*\n"
    return "".join(
        any_lines
        if line == "..."
        else re.escape(line.removesuffix("...")) + (rest_of_line if line.endswith("...") else r"\n")
        for line in lines
    )


def is_as_expected(printed: str, expected: str) -> bool:
    lines = [line.rstrip() for line in printed.strip("\n").splitlines()]
    return re.fullmatch(pattern_of(expected), "".join(f"{line}\n" for line in lines)) is not None


@contextlib.contextmanager
def terminal() -> Iterator[tuple[io.StringIO, list[str]]]:
    """Collect what a reader sees: what is printed, warnings, and the last line of an error."""
    screen, alarms = io.StringIO(), list[str]()

    def report(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        alarms.append(f"{category.__name__}: {message}")
        screen.write(f"{alarms[-1]}\n")

    with contextlib.redirect_stdout(screen), warnings.catch_warnings():
        warnings.simplefilter("always")
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)  # as Python does for code that is not one's own
        # Captum warns so at every call, about its own inner workings (pyproject.toml says the same to pytest).
        warnings.filterwarnings(
            "ignore", r"Setting (backward hooks on ReLU|forward, backward hooks)|Input Tensor \d+ did"
        )
        warnings.showwarning = report
        yield screen, alarms


def run(text: str) -> None:
    """Run the blocks of a page, one after the other.

    Raises
    ------
    AssertionError
        If a block prints something else than the page says, or warns or raises without a word of it on the page.
    """
    blocks = blocks_of(text)
    source = "\n".join(block.code for block in blocks)
    linecache.cache[SCRIPT] = (len(source), None, source.splitlines(keepends=True), SCRIPT)
    namespace: dict[str, object] = {"__name__": "my_script"}
    line = 0
    for block in blocks:
        code = compile("\n" * line + block.code, SCRIPT, "exec")
        line += block.code.count("\n") + 1
        with terminal() as (screen, alarms):
            try:
                exec(code, namespace)
            except Exception as error:
                if block.expected is None:
                    raise
                alarms.append(f"{type(error).__name__}: {error}")
                screen.write(f"{alarms[-1]}\n")
        printed = screen.getvalue()
        if block.expected is not None:
            assert is_as_expected(printed, block.expected), (
                f"{block.code}\nprints\n\n{printed}\nnot\n\n{block.expected}"
            )
        else:
            assert not alarms, f"{block.code}\nshows\n\n{printed}"


def pages() -> list[Any]:
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    names = [str(path.relative_to(ROOT)) for path in paths if "_build" not in path.parts]
    with_blocks = [name for name in names if blocks_of((ROOT / name).read_text())]
    return [pytest.param(name, id=name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in with_blocks]


@pytest.mark.zennit
@pytest.mark.parametrize("name", pages())
def test_what_a_page_shows_is_what_happens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / name).read_text()
    if missing := missing_packages(text):
        pytest.skip(f"needs {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    if not REGISTERS.search(text):
        run(text)
        return
    # What is registered stays, so in a process of its own.
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.repository import test_pages as pages; "
    code += f"pages.run((pages.ROOT / {name!r}).read_text())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def page(code: str, output: str | None = None, between: str = "\n") -> str:
    text = f"# Title\n\nWords.\n\n```python\n{code}\n```\n"
    return text if output is None else f"{text}{between}```text\n{output}\n```\n"


@pytest.mark.parametrize(
    "right",
    [
        page("print(1)"),
        page("print(1)\nprint(2)", "1\n2"),
        page("print(1)\nprint(2)", "1\n..."),
        page("print(1)\nprint(2)\nprint(3)", "...\n3"),
        page("print('one two')", "one..."),
        page("print(1)", "2", between="\nSomething else:\n\n"),
        page("import warnings\nwarnings.warn('beware')", "UserWarning: beware"),
        page("raise ValueError('wrong')", "ValueError: wrong"),
        page("a = 1") + page("print(a)", "1"),
        page("raise KeyError").replace("```python", "```text"),
    ],
)
def test_a_page_that_is_right_passes(right: str) -> None:
    run(right)


@pytest.mark.parametrize(
    "wrong",
    [
        page("assert False"),
        page("print(1)", "2"),
        page("print(1)\nprint(2)", "1"),
        page("print(1)", "1\n2"),
        page("print(1.5)", "1"),
        page("print('a.c')", "abc"),
        page("print('one two')", "two..."),
        page("import warnings\nwarnings.warn('beware')"),
        page("import warnings\nwarnings.warn('beware')", "UserWarning: be careful"),
        page("raise ValueError('wrong')", "ValueError: right"),
        page("pass", "ValueError: wrong"),
        page("def f():\n    a = 1\nprint(a)"),
    ],
)
def test_a_page_that_is_wrong_fails(wrong: str) -> None:
    with pytest.raises((AssertionError, NameError)):
        run(wrong)


def test_a_page_says_what_it_needs() -> None:
    assert missing_packages(
        "# Title\n\nNeeds `pip install 'torch>=2' pytest` and `pip install --no-deps no-such-package`."
    ) == ["no-such-package"]
    assert missing_packages("Whoever needs `pip install no-such-package` reads another page.") == []


def test_readme_and_pages_are_found() -> None:
    names = [parameter.id for parameter in pages()]
    assert names[0] == "README.md"
    assert set(names) > QUICK
