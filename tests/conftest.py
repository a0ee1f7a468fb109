"""Fixtures that several test files share."""

from __future__ import annotations

import os

# The reference decoder multiplies small matrices: more than one BLAS thread only gets in the way of the others.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# The build for tests has the test double of an Ascend device, which is not what "auto" shall find.
os.environ["LLM_BOOST_BACKEND"] = "cpu"

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import atb_process  # noqa: F401  # sets the environment of the double
import pytest
from reference.tiny_models import TINY_SPECS, write_tiny_model

from llm_boost import Model
from llm_boost.hub import resolve_model

# A shell without job control starts programs in the background with interrupts ignored, which all children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the directory of a tiny random model by the name of its spec."""
    root = tmp_path_factory.mktemp("tiny")

    def directory(name: str) -> Path:
        path = root / name
        return path if path.is_dir() else write_tiny_model(path, TINY_SPECS[name])

    return directory


@pytest.fixture
def brief_path(tmp_path: Path) -> Iterator[Path]:
    """`tmp_path` for gigabytes: pytest would keep them for three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="session")
def smollm2_directory() -> Path:
    """The demo model, which `make test` fetches."""
    return resolve_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def smollm2(smollm2_directory: Path) -> Iterator[Model]:
    """The demo model, loaded as users get it."""
    with Model.from_pretrained(smollm2_directory, max_model_len=2048, use_tqdm=False) as model:
        yield model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models are pulled to: an empty place."""
    monkeypatch.setenv("LLM_BOOST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
