"""What a run of the tests under a sanitizer does differently: `make asan` and `make tsan` set LLM_BOOST_SANITIZER."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

SANITIZED = "LLM_BOOST_SANITIZER" in os.environ


def reduced(usual: T, sanitized: T) -> T:
    """How much a test does, or how long it waits: under a sanitizer everything takes ten times as long."""
    return sanitized if SANITIZED else usual


def environment_without_sanitizer() -> dict[str, str]:
    """For programs that are not ours: the sanitizer's runtime, which every program inherits, must not be loaded."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
