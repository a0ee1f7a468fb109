"""Examples in docstrings and in the README run as they are written."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import llm_boost
from llm_boost import Model

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
MODULES = [
    module.name
    for module in pkgutil.walk_packages(llm_boost.__path__, "llm_boost.")
    if module.name.rpartition(".")[2] not in {"__main__", "_template_worker"}
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
    assert module.__doc__, f"{name} has no docstring"


def test_readme_example(smollm2_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 12
    variables: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), variables)  # our own README
    model = variables["model"]
    assert isinstance(model, Model)
    model.close()
    assert len(capsys.readouterr().out.split()) > 100


def test_readme_mentions_every_command() -> None:
    from llm_boost.cli import _COMMANDS

    for command in _COMMANDS:
        assert f"llm-boost {command}" in README
