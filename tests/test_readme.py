"""The README's examples run as they stand, and what it shows is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.zennit
def test_the_python_examples_run_one_after_the_other(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(block, namespace)
    assert "121 BatchNorms: 59 merged left, 62 merged right, 0 to explicit" in capsys.readouterr().out
    assert namespace["relevance"].shape == (1, 3, 224, 224)


def test_files_that_the_readme_names_are_there():
    for name in re.findall(r"\]\(((?!http)[^)]+)\)", README) + re.findall(r"examples/\w+\.py", README):
        assert (ROOT / name).is_file(), name


def test_public_names():
    import canon_bridge

    for name in canon_bridge.__all__:
        assert hasattr(canon_bridge, name)
    assert {"canonize", "plan", "canonized_copy"} <= set(canon_bridge.__all__)
