"""Conversion of stored elements between types: what numpy and ml_dtypes give, bit for bit."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from reference.numpy_decoder import Array

from llm_boost import _core

NUMPY = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
PAIRS = list(itertools.permutations(NUMPY, 2))


def convert(values: Array, dtype: str) -> tuple[int, Array]:
    target = np.empty(values.size * np.dtype(NUMPY[dtype]).itemsize, np.uint8)
    overflow = _core.convert_elements(values.view(np.uint8), values.dtype.name, target, dtype)
    return overflow, target.view(NUMPY[dtype])


def every_value(dtype: str) -> Array:
    """All numbers of a 16-bit type; of float32 those around each float16 and bfloat16, and around their midpoints."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    if dtype != "float32":
        return bits.astype(np.uint16).view(NUMPY[dtype])
    steps = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return ((bits[:, None] << 16) | steps).ravel().view(np.float32)


@pytest.mark.parametrize(("stored", "wanted"), PAIRS)
def test_every_value(stored: str, wanted: str) -> None:
    values = every_value(stored)
    wide = values.astype(np.float32)
    held = (np.abs(wide) < 65520) | ~np.isfinite(wide) if wanted == "float16" else np.ones(wide.shape, bool)
    values, wide = values[held], wide[held]
    overflow, found = convert(values, wanted)
    assert overflow == -1
    with np.errstate(over="ignore", invalid="ignore"):
        expected = wide.astype(NUMPY[wanted])
    numbers = ~np.isnan(wide)
    assert found[numbers].tobytes() == expected[numbers].tobytes()
    assert np.isnan(found[~numbers].astype(np.float32)).all()
    assert (np.signbit(found) == np.signbit(expected)).all()


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize("position", [0, 1, 2047, 2048, 4999])
def test_the_first_overflow_is_found(stored: str, position: int) -> None:
    values = np.full(5000, -np.inf, NUMPY[stored])
    values[position:] = -65536
    values[0::7] = np.nan
    values[position] = 65536
    assert convert(values, "float16")[0] == position
    values[np.isfinite(values.astype(np.float32))] = 1
    assert convert(values, "float16")[0] == -1


@pytest.mark.parametrize(("stored", "wanted"), PAIRS)
def test_every_count(stored: str, wanted: str) -> None:
    values = np.arange(40).astype(NUMPY[stored])
    for count in range(40):
        np.testing.assert_array_equal(convert(values[:count], wanted)[1], values[:count].astype(NUMPY[wanted]))
