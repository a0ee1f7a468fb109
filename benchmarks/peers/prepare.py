"""Sets up peers and models under one directory; what is there already stays."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from catalog import LLAMA_CPP_PYTHON, ModelSpec, Peer
from random_model import write_random_model

from llm_boost.hub import resolve_model

WORKERS = Path(__file__).parent / "workers"


class SetupError(Exception):
    """A step of the setup failed; its log says why."""


def _run(log: Path, command: Sequence[str | Path], **environment: str) -> None:
    with log.open("ab") as file:
        file.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        file.flush()
        done = subprocess.run(
            [*map(str, command)], stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    if done.returncode != 0:
        raise SetupError(f"{command[0]} failed with code {done.returncode}; see {log}")


@contextmanager
def _finished(path: Path) -> Iterator[bool]:
    """Whether `path`'s step was finished before; it is marked as finished when the block ends without an error."""
    mark = path.with_name(path.name + ".done")
    yield mark.exists()
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def python_of(home: Path, peer: Peer) -> Path:
    """The interpreter of a peer's environment."""
    return home / (peer.venv or peer.name) / "venv" / "bin" / "python"


def library_of(home: Path, peer: Peer) -> Path:
    """Where the llama.cpp that was built for a peer is."""
    return home / peer.name / "build" / "bin"


def prepare_peer(home: Path, peer: Peer) -> None:
    """Makes a peer's virtual environment, with a llama.cpp built for this machine where it needs one.

    Raises:
        SetupError: A package cannot be installed or built.
    """
    folder = home / peer.name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "setup.log"
    python = python_of(home, peer)
    with _finished(python.parents[1]) as done:
        if not done:
            _run(log, [sys.executable, "-m", "venv", python.parents[1]])
            # A llama.cpp is built beside it: the package brings its Python part alone.
            flags = "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF"
            _run(log, [python, "-m", "pip", "install", *peer.build_packages, *peer.packages], CMAKE_ARGS=flags)
            if peer.unwanted:
                _run(log, [python, "-m", "pip", "uninstall", "--yes", *peer.unwanted])
    if peer.llama_cpp_flags:
        with _finished(folder / "build") as done:
            if not done:
                _build_llama_cpp(home, peer, python, log)


def _build_llama_cpp(home: Path, peer: Peer, python: Path, log: Path) -> None:
    source = llama_cpp_source(home, python, log)
    build = library_of(home, peer).parent
    tools = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    flags = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DLLAMA_BUILD_COMMON=OFF"]
    _run(log, ["cmake", "-S", source, "-B", build, *flags, *peer.llama_cpp_flags], PATH=tools)
    _run(log, ["cmake", "--build", build, "--target", "llama"], PATH=tools)


def llama_cpp_source(home: Path, python: Path, log: Path) -> Path:
    """llama.cpp as the source package of llama-cpp-python carries it."""
    folder = home / "source"
    with _finished(folder) as done:
        if not done:
            download = [python, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", folder]
            _run(log, [*download, LLAMA_CPP_PYTHON])
            with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as tar:
                tar.extractall(folder, filter="data")
    return next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))


def prepare_model(home: Path, spec: ModelSpec) -> Path:
    """The Hugging Face directory of a model, written with random weights where it has no real ones."""
    if spec.pulled:
        return resolve_model(spec.pulled)
    directory = home / "models" / spec.name
    with _finished(directory) as done:
        if not done:
            write_random_model(directory, spec.config)
    return directory


def convert_model(home: Path, peers: Sequence[Peer], spec: ModelSpec, directory: Path, model_format: str) -> Path:
    """`directory` in the format that a peer reads, converted by that peer's own tools.

    Raises:
        SetupError: The conversion failed.
    """
    if model_format == "hf":
        return directory
    target = home / "models" / f"{spec.name}.{model_format}"
    log = home / "models" / f"{spec.name}.{model_format}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    by_name = {peer.name: peer for peer in peers}
    with _finished(target) as done:
        if done:
            return target
        if model_format == "openvino":
            python = python_of(home, by_name["openvino-genai"])
            export = [python.parent / "optimum-cli", "export", "openvino", "--model", directory]
            _run(log, [*export, "--task", "text-generation-with-past", "--weight-format", "fp16", target])
        else:  # the converter needs torch and transformers
            prepare_peer(home, by_name["transformers"])
            python = python_of(home, by_name["transformers"])
            source = llama_cpp_source(home, python, log)
            convert = [python, WORKERS / "convert_to_gguf.py", directory, "--outtype", "bf16", "--outfile", target]
            _run(log, [python, "-m", "pip", "install", "sentencepiece"])
            _run(log, convert, PYTHONPATH=str(source), LLAMA_VOCABULARY="" if spec.pulled else "none")
    return target
