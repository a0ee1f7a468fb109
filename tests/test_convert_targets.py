"""What a conversion makes appears complete or not at all, and replaces nothing but what a conversion made."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from mindspore_files import tensor, value, write_ckpt
from test_convert_weight import QUIET, Tiny, run

from llm_boost import CheckpointError
from llm_boost._output import new_directory
from llm_boost.checkpoint.files import is_read_with
from llm_boost.convert_weight import Options, convert_to_hugging_face, convert_to_mindspore

WHOLE = {f"model.layers.0.attention.{name}.weight": np.ones((8, 8), np.float32) for name in ("wq", "wk", "wv")}


class TestTargets:
    """The target appears complete or not at all."""

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_failure_leaves_what_was_there(
        self, tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, reverse: bool
    ) -> None:
        convert = convert_to_hugging_face if reverse else convert_to_mindspore
        options = Options(progress=False, force=True)
        source, target = tiny_model("llama_mha"), tmp_path / ("m" if reverse else "m.ckpt")
        convert(source, target, options)
        weights = target / "model.safetensors" if reverse else target
        before = weights.read_bytes()

        def fail(_: int) -> None:
            raise error

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt):
            convert(source, target, options)
        assert weights.read_bytes() == before
        assert os.listdir(tmp_path) == [target.name]

    def test_a_killed_process_leaves_no_target(self, tiny_model: Tiny, tmp_path: Path) -> None:
        script = (
            "import os, signal, sys; from llm_boost import convert_weight\n"
            "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
            "convert_weight.main(sys.argv[1:])"
        )
        target = tmp_path / "m.ckpt"
        subprocess.run([sys.executable, "-c", script, tiny_model("llama_mha"), target], check=False)
        assert not target.exists()
        assert run(tiny_model("llama_mha"), target) == 0

    def test_existing_targets(self, tiny_model: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        target = tmp_path / "m.ckpt"
        target.write_text("precious")
        assert run(tiny_model("llama_mha"), target) == 2
        assert "m.ckpt: exists already; choose another name, or --force to replace it" in capsys.readouterr().err
        assert target.read_text() == "precious"
        assert run(tiny_model("llama_mha"), target, "--force") == 0
        assert run(target, target, "--force", "--config_path", tiny_model("llama_mha")) == 2
        assert "m.ckpt: is what is converted" in capsys.readouterr().err
        assert run(tiny_model("llama_mha"), tmp_path / "x", "--reversed") == 0
        assert run(tiny_model("llama_mha"), tmp_path / "x", "--reversed") == 2
        assert run(tiny_model("llama_mha"), tmp_path, "--reversed", "--force") == 2
        assert "is not what a conversion made (no config.json), and so not replaced" in capsys.readouterr().err

    def test_a_full_disk_is_noticed_before(
        self, tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
        monkeypatch.setattr(os, "fsync", None)  # nothing gets so far
        assert run(tiny_model("llama_mha"), tmp_path / "m.ckpt") == 2
        assert run(tiny_model("llama_mha"), tmp_path / "m", "--reversed") == 2
        source = tmp_path / "in" / "rank_0" / "checkpoint_0.ckpt"
        write_ckpt(source, WHOLE)
        assert run("--pre_ckpt_path", tmp_path / "in", "--mindspore_ckpt_path", tmp_path / "x", "-qkv_concat") == 2
        message = f"llm-boost convert: {tmp_path}: 0.* MB are to be written, but the disk has 0.0 MB left"
        assert [*map(re.compile(message).fullmatch, capsys.readouterr().err.splitlines())].count(None) == 0
        assert os.listdir(tmp_path) == ["in"]

    def test_permissions_and_names(self, tiny_model: Tiny, tmp_path: Path) -> None:
        mask = os.umask(0o022)
        try:
            made = convert_to_mindspore(tiny_model("llama_mha"), tmp_path / "new" / "llama", QUIET)
        finally:
            os.umask(mask)
        assert made == tmp_path / "new" / "llama.ckpt"
        assert made.stat().st_mode & 0o777 == 0o644

    def test_force_replaces_files_alone(
        self, tiny_model: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        os.mkfifo(tmp_path / "pipe.ckpt")
        assert run(tiny_model("llama_mha"), tmp_path / "pipe.ckpt", "--force") == 2
        assert "pipe.ckpt: is not a file, and so not replaced" in capsys.readouterr().err
        (tmp_path / "link.ckpt").symlink_to("nowhere")
        assert run(tiny_model("llama_mha"), tmp_path / "link.ckpt", "--force") == 0
        assert (tmp_path / "link.ckpt").is_file()

    def test_an_empty_directory_may_be_the_target(self, tiny_model: Tiny, tmp_path: Path) -> None:
        assert run(tiny_model("llama_mha"), tmp_path, "--reversed") == 0
        assert (tmp_path / "config.json").is_file()

    @pytest.mark.parametrize("second", [b"", value("a", tensor())])
    def test_all_ranks_or_none(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], second: bytes) -> None:
        first, last = (tmp_path / "in" / f"rank_{rank}" / f"checkpoint_{rank}.ckpt" for rank in range(2))
        last.parent.mkdir(parents=True)
        last.write_bytes(second)
        write_ckpt(first, WHOLE)
        words = ("--pre_ckpt_path", tmp_path / "in", "-qkv_concat", "True", "--mindspore_ckpt_path", tmp_path / "out")
        assert run(*words) == 2
        assert f"rank_1{'/checkpoint_1.ckpt: holds no tensor' if not second else ': '}" in capsys.readouterr().err
        assert os.listdir(tmp_path) == ["in"]
        write_ckpt(last, WHOLE)
        assert run(*words) == 0
        before = sorted(tmp_path.rglob("*"))
        assert run(*words) == 2
        assert run(*words, "--force") == 0
        assert sorted(tmp_path.rglob("*")) == before
        (tmp_path / "out" / "rank_0" / "checkpoint_0.ckpt").unlink()
        assert run(*words, "--force") == 2
        assert "is not what a conversion made (no rank_0/checkpoint_0.ckpt)" in capsys.readouterr().err

    def test_what_was_there_comes_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """When the last step fails, after the old directory was moved aside."""
        target = tmp_path / "m"
        target.mkdir()
        (target / "config.json").write_text("old")
        rename = Path.rename

        def fail(path: Path, to: Path) -> Path:
            if ".partial-" in path.name:
                raise KeyboardInterrupt
            return rename(path, to)

        monkeypatch.setattr(Path, "rename", fail)
        with pytest.raises(KeyboardInterrupt), new_directory(target, source=tmp_path / "x", force=True) as partial:
            (partial / "config.json").write_text("new")
        assert (target / "config.json").read_text() == "old"
        assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize(
    ("present", "name", "expected"),
    [
        ("model.safetensors", "x.ckpt", False),
        ("model.safetensors", "x.safetensors", False),
        ("model.safetensors.index.json a.safetensors", "x.safetensors", False),
        ("model.safetensors.index.json a.safetensors", "model.safetensors", True),
        ("param_name_map.json a.safetensors", "x.safetensors", False),
        ("a.safetensors", "x.safetensors", True),
        ("a.safetensors", "x.ckpt", False),
        ("a.ckpt", "x.ckpt", True),
        ("a.ckpt", "x.safetensors", True),
        ("rank_0 rank_1", "x.ckpt", True),
        ("rank_0 rank_1", "x.safetensors", True),
    ],
)
def test_what_is_read_with_a_directory(tmp_path: Path, present: str, name: str, expected: bool) -> None:
    for other in present.split():
        (tmp_path / other).touch()
    assert is_read_with(tmp_path, name) is expected


def test_an_error_of_the_machine_is_one_line(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", "disk")

    monkeypatch.setattr(os, "listdir", fail)
    monkeypatch.setattr(os.path, "lexists", fail)
    assert run(tiny_model("llama_mha"), tmp_path / "x.ckpt") == 2
    assert capsys.readouterr().err == "llm-boost convert: disk: Input/output error\n"
