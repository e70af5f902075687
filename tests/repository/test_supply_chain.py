"""Nothing comes from outside unasked: no connection, no foreign pickle, no code from text, no half-written cache."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("canon_bridge", "examples", "benchmarks", "tests")
WRITTEN = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

# Where a rule below does not hold, and why that is no danger.
WHOLE_OBJECTS = {"tests/core/test_canonize_copy.py": "loads from memory what the same test has saved"}
CODE_FROM_TEXT = {
    "canon_bridge/core/written.py": "compiles the forward that was written from a graph",
    "tests/operations/test_traps.py": "makes a function of its own text, as if it were a library's",
    "tests/operations/test_uncovered.py": "makes functions of its own text, as if they were a library's",
    "tests/repository/test_pages.py": "runs the examples of our own README and pages",
}

OFFLINE = """
import importlib, pkgutil, socket, sys, urllib.request
attempts = []
REFUSED = ("socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.sendto", "socket.sendmsg",
           "urllib.Request", "http.client.connect", "ftplib.connect", "subprocess.Popen", "os.system", "os.posix_spawn")
SEARCH = ("ldconfig", "gcc", "cc", "ld", "objdump")  # by which ctypes looks for libraries
def refuse(event, arguments):
    if event.startswith(REFUSED) and str(arguments[0]).rpartition("/")[2] not in SEARCH:
        attempts.append((event, str(arguments)))
        raise PermissionError(f"{event}{arguments}")
sys.addaudithook(refuse)
"""
MODEL = """
import torch
from torch import nn
import canon_bridge
names = [module.name for module in pkgutil.walk_packages(canon_bridge.__path__, "canon_bridge.")]
for name in names:
    importlib.import_module(name)
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus
from canon_bridge import audit, canonized_copy, plan
from canon_bridge.captum import LRP, presets
from canon_bridge.zennit import ModelCanonizer
layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
model, x = nn.Sequential(*layers).eval(), torch.randn(1, 3, 8, 8)
str(plan(model)), canonized_copy(model)
LRP(model, preset=presets.epsilon_plus()).attribute(x, target=1)
composite = EpsilonPlus(canonizers=[ModelCanonizer()])
with Gradient(model, composite) as attributor:
    attributor(x, torch.eye(2)[[1]])
str(audit(model, x, 1, composite))
print(len(names), attempts)
"""
OUTWARD = {
    "socket": "socket.create_connection(('127.0.0.1', 9), timeout=1)",
    "name": "socket.getaddrinfo('example.org', 80)",
    "urllib": "urllib.request.urlopen('https://example.org', timeout=1)",
    "torch.hub": "import torch; torch.hub.load_state_dict_from_url('https://example.org/w.pth', model_dir=sys.argv[1])",
    "process": "import subprocess; subprocess.run(['true'])",
}


def run_offline(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", OFFLINE + code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_importing_everything_and_attributing_opens_no_connection() -> None:
    done = run_offline(MODEL)
    assert done.returncode == 0, done.stderr
    number, _, attempts = done.stdout.strip().partition(" ")
    assert int(number) > 60
    assert attempts == "[]", attempts


@pytest.mark.parametrize("outward", OUTWARD.values(), ids=OUTWARD)
def test_a_connection_would_be_seen(outward: str, tmp_path: Path) -> None:
    done = run_offline(outward, str(tmp_path))
    assert done.returncode != 0
    assert "PermissionError" in done.stderr


def calls(path: Path, tree: ast.AST | None = None) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call in a file with the dotted name of what is called, as it is written."""
    for node in ast.walk(tree or ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def loads_objects(path: Path) -> list[int]:
    """Return the lines at which a file could load whole objects, and with them foreign code."""
    lines = [
        node.lineno
        for name, node in calls(path)
        if name.endswith("torch.load")
        and [ast.unparse(word.value) for word in node.keywords if word.arg == "weights_only"] != ["True"]
    ]
    for name, node in calls(path):
        last = name.rpartition(".")[2]
        if re.search(r"(pickle|marshal|shelve|joblib|dill)\.", name) and last in ("load", "loads", "open", "Unpickler"):
            copies = name == "pickle.loads" and ast.unparse(node.args[0]).startswith("pickle.dumps(")
            lines += [] if copies else [node.lineno]
        if last in ("load", "load_npz") and any(word.arg == "allow_pickle" for word in node.keywords):
            lines.append(node.lineno)
    return lines


def compiles_text(path: Path) -> list[int]:
    return [node.lineno for name, node in calls(path) if name in ("eval", "exec", "compile", "__import__")]


def writes_files(path: Path) -> list[int]:
    """Return the lines at which a file is written otherwise than through ``write_whole``.

    Appending is no such thing: a lock file stays empty, and a log gets a line in one write.
    """
    tree = ast.parse(path.read_text())
    whole = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "write_whole"
        for part in ast.walk(node)
    }
    writers = r".*\.(write_text|write_bytes|savefig|imsave|save_file|to_csv|savez?|savez_compressed|dump|savetxt)"
    lines: list[int] = []
    for name, node in calls(path, tree):
        modes = [ast.unparse(value) for value in (*node.args, *(word.value for word in node.keywords))]
        opens = name.rpartition(".")[2] in ("open", "fdopen") and any(
            re.fullmatch(r"'[abrt]*[wx+].*'", m) for m in modes
        )
        if id(node) not in whole and (opens or re.fullmatch(writers, name)):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", [p for p in WRITTEN if name_of(p) not in WHOLE_OBJECTS], ids=name_of)
def test_files_are_loaded_as_weights_only(path: Path) -> None:
    assert not loads_objects(path)


@pytest.mark.parametrize("path", [p for p in WRITTEN if name_of(p) not in CODE_FROM_TEXT], ids=name_of)
def test_no_code_is_made_from_text(path: Path) -> None:
    assert not compiles_text(path)


def test_a_job_that_may_be_killed_writes_whole_files() -> None:
    assert not writes_files(ROOT / "examples" / "distributed_attribution.py")


def test_exceptions_are_still_needed() -> None:
    assert all(loads_objects(ROOT / name) for name in WHOLE_OBJECTS)
    assert all(compiles_text(ROOT / name) for name in CODE_FROM_TEXT)


@pytest.mark.parametrize(
    ("judge", "wrong"),
    [
        *(
            (loads_objects, code)
            for code in ("torch.load(p)", "torch.load(p, weights_only=False)", "pickle.load(file)")
        ),
        *((loads_objects, code) for code in ("pickle.loads(text)", "joblib.load(p)", "np.load(p, allow_pickle=True)")),
        *((compiles_text, code) for code in ("eval(text)", "exec(text)")),
        *((writes_files, code) for code in ("torch.save(weights, path)", "open(path, 'w')", "path.open(mode='wb')")),
        *((writes_files, code) for code in ("np.save(path, x)", "path.write_text(text)", "json.dump(x, file)")),
    ],
)
def test_each_rule_rejects_what_it_is_there_for(judge, wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(wrong)
    assert judge(file) == [1]
    file.write_text("model.eval(); torch.load(p, weights_only=True); pickle.loads(pickle.dumps(x)); open(path, 'rb')")
    assert judge(file) == []


def test_tools_are_pinned() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    tools = [tool for tool in (*extras["test"], *extras["dev"]) if not tool.startswith("canon-bridge")]
    assert {re.split(r"[=\[]", tool)[0] for tool in tools} == {
        *(
            "pytest",
            "pytest-xdist",
            "pytest-cov",
            "hypothesis",
            "einops",
            "coverage",
            "ruff",
            "pyright",
            "pip-audit",
            "import-linter",
            "nox",
            "build",
            "twine",
        ),
    }
    assert all(re.fullmatch(r"[\w.-]+(\[\w+\])?==[\d.]+", tool) for tool in tools)


def test_an_unreachable_service_is_no_finding_and_a_finding_is_no_unreachable_service() -> None:
    spec = importlib.util.spec_from_file_location("audit_of_packages", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    clean, unknown = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found on PyPI"}
    flawed = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}

    def status(*packages: object) -> int | None:
        return audit.judge(json.dumps({"dependencies": packages}), "")[0]

    assert status(clean, unknown) == 0
    assert status(clean, unknown, flawed) == 1
    assert status(unknown) is None
    assert audit.judge("", "requests.exceptions.ConnectionError: no route")[0] is None
    assert audit.judge("", "pip-audit: error: unrecognized arguments: --nonsense")[0] == 2
    assert audit.judge("", "")[0] == 2
