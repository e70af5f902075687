"""The house keeps its shape: the core needs torch alone and names no framework, and the frameworks do not meet.

All of it is read from the source with ``ast``; nothing of the package is imported.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "canon_bridge"
CORE = sorted((PACKAGE / "core").rglob("*.py"))
STANDARD = {*sys.stdlib_module_names, "annotationlib"}  # the latter from Python 3.14 on
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of every module that is imported anywhere in the file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively"
            assert node.module is not None
            yield node.module
            # `from canon_bridge.core import plan` imports a module, too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def depends(path: Path) -> set[Path]:
    return {file for module in imports(path) if (file := file_of(module)) and file != path}


MODULES = [path for path in CORE if path.name != "__init__.py"]


def test_there_is_something_to_walk() -> None:
    assert {"restore.py", "plan.py", "canonize.py"} <= {path.name for path in MODULES}
    assert PACKAGE / "core" / "restore.py" in depends(PACKAGE / "core" / "canonize.py")
    assert file_of("torch.nn") is None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_core_imports_torch_and_itself(path: Path) -> None:
    roots = {module.partition(".")[0] for module in imports(path)}
    assert roots <= {"torch", "canon_bridge", *STANDARD}
    for file in depends(path):
        is_asked_later = (path.name, file.name) == ("plan.py", "drawing.py")  # Plan.draw, when it is called
        assert is_asked_later or file.is_relative_to(PACKAGE / "core"), f"{name_of(path)} imports {name_of(file)}"


def test_the_package_itself_needs_torch_alone() -> None:
    for path in (PACKAGE / "__init__.py", PACKAGE / "core" / "__init__.py"):
        assert {module.partition(".")[0] for module in imports(path)} <= {"canon_bridge"}
        assert all(is_below_the_frameworks(file) for file in depends(path) if file != PACKAGE / "__init__.py")


def is_below_the_frameworks(file: Path) -> bool:
    return file.is_relative_to(PACKAGE / "core") or file.is_relative_to(PACKAGE / "auditing")


@pytest.mark.parametrize("path", sorted((PACKAGE / "auditing").glob("*.py")), ids=name_of)
def test_the_audit_imports_torch_the_core_and_itself(path: Path) -> None:
    roots = {module.partition(".")[0] for module in imports(path)}
    assert roots <= {"torch", "canon_bridge", *STANDARD} | ({"matplotlib"} if path.name == "chart.py" else set())
    assert all(map(is_below_the_frameworks, depends(path)))


@pytest.mark.parametrize(("adapter", "other"), [("zennit", "captum"), ("captum", "zennit")])
def test_the_frameworks_do_not_meet(adapter: str, other: str) -> None:
    files = sorted((PACKAGE / adapter).glob("*.py"))
    assert len(files) > 1
    allowed = {"torch", adapter, "canon_bridge", *sys.stdlib_module_names} - {other}
    for path in files:
        for module in imports(path):
            assert module.partition(".")[0] in allowed, f"{name_of(path)} imports {module}"
            assert not module.startswith(f"canon_bridge.{other}"), f"{name_of(path)} imports {module}"
        for file in depends(path):
            assert not file.is_relative_to(PACKAGE / other)


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_knows_no_architecture_by_name(path: Path) -> None:
    assert not re.findall(r"(?i)dense_?net|res_?net|vgg|inception|mobilenet", path.read_text())


def strings(path: Path) -> Iterator[str]:
    """Yield all texts in the code that are no docstrings, and the names that it uses."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented)]
    docstrings = {body[0].value for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            yield node.value
        yield from (getattr(node, field) for field in ("id", "attr", "arg", "name") if getattr(node, field, None))


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_names_no_framework(path: Path) -> None:
    named = [text for text in strings(path) if isinstance(text, str) and re.search(r"(?i)captum|zennit", text)]
    assert not named


def assigned(path: Path) -> Iterator[str]:
    """Yield the name of every attribute that is written, ``x.name = ...`` as well as ``setattr(x, "name", ...)``."""
    for node in ast.walk(ast.parse(path.read_text())):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            for part in ast.walk(target) if isinstance(target, ast.AST) else ():
                if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                    yield part.attr
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr":
            yield from (argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant))


def test_data_of_tensors_is_written_by_the_guard_alone() -> None:
    assert [path.name for path in FILES if "data" in assigned(path)] == ["guard.py"]


HOOKS = re.compile(r"register_(module_)?(forward_hook|full_backward|backward)\w*")


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_registers_no_forward_hook(path: Path) -> None:
    names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not [name for name in names if HOOKS.fullmatch(name)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_what_it_is_and_asserts_nothing_of_its_user_by_print(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    prints = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"]
    assert len(prints) <= (path.name == "attach.py")  # Captum's `verbose` asks for it
