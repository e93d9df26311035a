"""The README's commands are the ones that are run, and its code is real."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import mlflow_ckpt

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

TRAIN = "python -m pip install . && mlflow run . --env-manager local"
TEST = 'python -m pip install -e ".[test]" && python -m pytest'


@pytest.mark.parametrize("command", [TRAIN, TEST])
def test_the_two_commands_are_the_ones_that_ci_types(command: str) -> None:
    assert f"```\n{command}\n```" in README
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_python_blocks_parse_and_name_what_exists() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "mlflow_ckpt":
                assert {a.name for a in node.names} <= set(mlflow_ckpt.__all__)
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "ckpt":
                assert node.attr in mlflow_ckpt.__all__


def test_every_public_name_is_in_the_readme() -> None:
    missing = [n for n in mlflow_ckpt.__all__ if n not in README and n != "__version__"]
    assert missing == []


def test_the_packaged_version_heads_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"## \[(\d[^]]*)\]", changelog)[1] == mlflow_ckpt.__version__
