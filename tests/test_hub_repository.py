"""Fetching models from the Hugging Face hub: only what is needed, and what a failure leaves is taken up again."""

from __future__ import annotations

import os
import sys
import types
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from pulled_models import pulled

from llm_boost import hub
from llm_boost.errors import ConfigError, DownloadError


class FakeHub(types.ModuleType):
    """Stands in for huggingface_hub; `repository` is what it has."""

    def __init__(self, repository: dict[str, str]) -> None:
        super().__init__("huggingface_hub")
        self.repository = repository
        self.error: Exception | None = None
        self.bars_shown = True

    def snapshot_download(
        self, repo_id: str, *, local_dir: Path, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> None:
        self.bars_shown_then = self.bars_shown
        self.found = sorted(path.name for path in local_dir.glob("*"))
        local_dir.mkdir(exist_ok=True, parents=True)
        (local_dir / ".cache" / "huggingface").mkdir(exist_ok=True, parents=True)
        for name, text in self.repository.items():
            allowed, ignored = (any(fnmatch(name, p) for p in ps) for ps in (allow_patterns, ignore_patterns))
            if allowed and not ignored:
                (local_dir / name).write_text(text)
            if self.error:
                raise self.error


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    wanted = ["config.json", "model.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja"]
    unwanted = ["pytorch_model.bin", "consolidated.pth", "modeling.py", "a/params.json", "b/m.safetensors"]
    module = FakeHub(dict.fromkeys(wanted + unwanted, ""))
    utils: Any = types.ModuleType("huggingface_hub.utils")
    utils.are_progress_bars_disabled = lambda: not module.bars_shown
    utils.disable_progress_bars = lambda: setattr(module, "bars_shown", False)
    utils.enable_progress_bars = lambda: setattr(module, "bars_shown", True)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)
    return module


def test_only_what_a_model_needs(fake_hub: FakeHub, home: Path) -> None:
    target = hub.pull("some-Org/A.model_2")
    assert target == home / "models" / "some-Org--A.model_2"
    assert sorted(os.listdir(target)) == [
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.model",
    ]
    assert pulled(home) == [target.name]
    assert hub.resolve_model("some-Org/A.model_2") == target
    assert fake_hub.bars_shown_then


def test_without_progress(fake_hub: FakeHub, home: Path) -> None:
    hub.pull("org/name", progress=False)
    assert (fake_hub.bars_shown_then, fake_hub.bars_shown) == (False, True)


def test_a_failed_download_is_taken_up_again(fake_hub: FakeHub, home: Path) -> None:
    fake_hub.error = TimeoutError("read timed out")
    with pytest.raises(DownloadError, match=r"cannot download 'org/name' from .*: read timed out"):
        hub.pull("org/name")
    with pytest.raises(ConfigError, match="no model pulled of that name"):
        hub.resolve_model("org/name")
    fake_hub.error = None
    hub.pull("org/name")
    assert fake_hub.found == [".cache", "config.json"]
    assert pulled(home) == ["org--name"]


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_not_a_model_that_can_be_loaded(fake_hub: FakeHub, home: Path, missing: str) -> None:
    del fake_hub.repository[missing]
    with pytest.raises(DownloadError, match=r"no config\.json or no \*\.safetensors"):
        hub.pull("org/name")
    assert pulled(home) == []


@pytest.mark.parametrize("progress", [False, True])
def test_the_real_library(home: Path, monkeypatch: pytest.MonkeyPatch, progress: bool) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="cannot download 'org/name' from the Hugging Face hub: "):
        hub.pull("org/name", progress=progress)


def test_without_the_library(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r"run 'pip install llm_boost\[hub\]'"):
        hub.pull("org/name")
