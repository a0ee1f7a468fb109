"""Single kernels over NumPy arrays, of every level that this machine or its emulator has.

The kernels run in a program of their own, `llm_boost_kernel_server`: natively, and for AArch64 under qemu where the
build found a cross compiler.
"""

from __future__ import annotations

import atexit
import shutil
import struct
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llm_boost
from llm_boost import _core

BIN = Path(llm_boost.__file__).parent / "bin"
AARCH64_BIN = BIN / "aarch64"
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
EMULATED = EMULATOR is not None and AARCH64_BIN.exists()
needs_emulator = pytest.mark.skipif(
    not EMULATED and "neon" not in _core.isa_levels(),
    reason="needs g++-aarch64-linux-gnu and qemu-user-static when the tests are built and run",
)
LEVELS = [*_core.isa_levels(), *([] if "neon" in _core.isa_levels() else [pytest.param("neon", marks=needs_emulator)])]

# In the order in which the program reads them.
ATTENTION_ARGUMENTS = (
    *("q", "keys", "values", "cos", "sin", "block_table", "block_size", "num_blocks"),
    *("scale", "dtype", "operand", "write_order", "garbage"),
)


@cache
def _server(*, emulated: bool) -> subprocess.Popen[bytes]:
    command = [str(EMULATOR), str(AARCH64_BIN / "llm_boost_kernel_server")]
    if not emulated:
        command = [str(BIN / "llm_boost_kernel_server")]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(server.communicate)  # closes its input, which ends it
    return server


def _encode(value: object) -> bytes:
    if isinstance(value, str):
        return struct.pack("<q", len(value)) + value.encode()
    if isinstance(value, int):
        return struct.pack("<q", value)
    if isinstance(value, float):
        return struct.pack("<f", value)
    array = np.zeros(0, np.float32) if value is None else np.ascontiguousarray(value)
    if array.dtype.kind == "i":
        return struct.pack("<q", array.size) + array.astype("<i4").tobytes()
    return struct.pack(f"<{1 + array.ndim}q", array.ndim, *array.shape) + array.astype("<f4").tobytes()


def _call(function: str, isa: str, *arguments: object) -> np.ndarray:
    server = _server(emulated=isa not in _core.isa_levels())
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(b"".join(_encode(value) for value in (function, isa, *arguments)))
    server.stdin.flush()

    def read(dtype: str, count: int) -> np.ndarray:
        data = server.stdout.read(count * np.dtype(dtype).itemsize)
        assert len(data) == count * np.dtype(dtype).itemsize, f"{function} ended with code {server.wait()}"
        return np.frombuffer(data, dtype)

    shape = read("<i8", int(read("<i8", 1)[0]))
    return read("<f4", int(np.prod(shape))).reshape(shape)


@cache
def has_bf16_dot(isa: str) -> bool:
    return bool(_call("has_bf16_dot", isa))


def linear(
    isa: str,
    x: np.ndarray,
    weight: np.ndarray,
    dtype: str,
    operand: str,
    *,
    epilogue: str = "store",
    bias: np.ndarray | None = None,
    initial: np.ndarray | None = None,
    panels_per_call: int = 1 << 20,
    misalignment: int = 0,
) -> np.ndarray:
    return _call("linear", isa, x, weight, dtype, operand, epilogue, bias, initial, panels_per_call, misalignment)


def decoded_rows(isa: str, weight: np.ndarray) -> np.ndarray:
    return _call("decoded_rows", isa, weight)


def rms_norm(
    isa: str, x: np.ndarray, weight: np.ndarray, epsilon: float, operand: str, misalignment: int = 0
) -> np.ndarray:
    return _call("rms_norm", isa, x, weight, epsilon, operand, misalignment)


def attention(isa: str, **arguments: Any) -> np.ndarray:
    assert tuple(arguments) == ATTENTION_ARGUMENTS
    return _call("attention", isa, *arguments.values())


def max_value(isa: str, x: np.ndarray) -> float:
    return float(_call("max_value", isa, x))


def sum_exp(isa: str, x: np.ndarray, maximum: float, factor: float) -> float:
    return float(_call("sum_exp", isa, x, maximum, factor))


def exp_weights(isa: str, x: np.ndarray, maximum: float, factor: float) -> np.ndarray:
    return _call("exp_weights", isa, x, maximum, factor)


def sum_at_least(isa: str, x: np.ndarray, threshold: float) -> float:
    return float(_call("sum_at_least", isa, x, threshold))


def collect_between(isa: str, x: np.ndarray, low: float, high: float) -> list[int]:
    return _call("collect_between", isa, x, low, high).astype(np.int64).tolist()


def round_trip(isa: str, dtype: str, x: np.ndarray) -> np.ndarray:
    return _call("round_trip", isa, dtype, x)
