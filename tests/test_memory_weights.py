"""Weights and rotary tables in the caller's memory, at the border of the core."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from reference.tiny_models import TINY_SPECS, write_tiny_model

from llm_boost import _core
from llm_boost.errors import CheckpointError, ConfigError
from llm_boost.model_config import ModelConfig


@pytest.fixture
def config(tmp_path: Path) -> _core.ModelConfig:
    return ModelConfig.from_directory(write_tiny_model(tmp_path, TINY_SPECS["llama_mha"])).to_core(max_positions=8)


def test_memory_lives_as_long_as_the_table() -> None:
    class Bytes(np.ndarray):
        """An array that can be watched."""

    table = _core.WeightTable()
    array = np.zeros(8, np.uint8).view(Bytes)
    watch = weakref.ref(array)
    table.add("w", "float32", [2], [array])
    del array
    gc.collect()
    assert watch() is not None
    del table
    gc.collect()
    assert watch() is None


def test_memory_that_does_not_fit() -> None:
    table = _core.WeightTable()
    with pytest.raises(CheckpointError, match=r"'w' is float32 \[2, 2\], which is 16 bytes, but 15 are stored"):
        table.add("w", "float32", [2, 2], [np.zeros(8, np.uint8), np.zeros(7, np.uint8)])
    with pytest.raises(CheckpointError, match="'w': an array that is not contiguous"):
        table.add("w", "float32", [2, 2], [np.zeros(32, np.uint8)[::2]])


def test_rotary_tables(config: _core.ModelConfig) -> None:
    config.rope_cos, config.rope_sin = np.ones((8, 8), np.float32), np.zeros((8, 8), np.float32)
    assert _core.expected_weights(config)
    np.testing.assert_array_equal(config.rope_cos, np.ones(64, np.float32))
    config.rope_sin = np.zeros((8, 7), np.float32)
    with pytest.raises(ConfigError, match="rope tables have 64 and 56 elements, expected 8 positions x 8"):
        _core.expected_weights(config)
    config.rope_sin = np.full((8, 8), np.nan, np.float32)
    with pytest.raises(ConfigError, match="rope settings are not finite"):
        _core.expected_weights(config)
