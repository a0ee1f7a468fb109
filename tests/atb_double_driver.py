"""Drives the test double of an Ascend device through ctypes: its C driver, the ACL functions, and its controls."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]

ND, NZ = 2, 29
CODES = {
    np.dtype(np.float32): 0,
    np.dtype(np.float16): 1,
    np.dtype(np.int8): 2,
    np.dtype(np.int32): 3,
    np.dtype(np.int64): 9,
    np.dtype(ml_dtypes.bfloat16): 27,
}
TYPES = {code: dtype for dtype, code in CODES.items()}
H2D, D2H, D2D = 1, 2, 3


class Refused(Exception):  # noqa: N818
    """A call that did not return 0; `log` has the lines it wrote."""

    def __init__(self, call: str, code: int, log: str) -> None:
        super().__init__(f"{call} returned {code}: {log}")
        self.code = code
        self.log = log


@contextmanager
def refused(code: int, *words: str) -> Iterator[None]:
    """Expects the block to be refused with `code`, for a reason with these words."""
    caught: Refused | None = None
    try:
        yield
    except Refused as error:
        caught = error
    assert caught is not None, f"nothing was refused, expected {code} {words}"
    assert caught.code == code, f"expected {code}: {caught}"
    assert all(word in caught.log for word in words), f"expected {words}: {caught.log}"


class CTensor(ctypes.Structure):
    """A tensor as the C driver takes it."""

    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("rank", ctypes.c_uint64),
        ("dims", ctypes.c_int64 * 8),
        ("device", ctypes.c_void_p),
        ("host", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
    ]


class CNode(ctypes.Structure):
    """A node as the C driver takes it."""

    _fields_ = [
        ("operation", ctypes.c_void_p),
        ("num_ins", ctypes.c_uint64),
        ("num_outs", ctypes.c_uint64),
        ("ins", ctypes.c_uint32 * 16),
        ("outs", ctypes.c_uint32 * 4),
        ("heads", ctypes.c_int64 * 16),
    ]


@dataclass
class DeviceTensor:
    """A description with addresses; any field may be spoilt by a test."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    device: int | None = None
    host: Array | None = None
    format: int = ND
    bytes: int | None = None

    def as_c(self) -> CTensor:
        dims = (ctypes.c_int64 * 8)(*self.shape)
        host = None if self.host is None else self.host.ctypes.data
        size = int(np.prod(self.shape)) * self.dtype.itemsize if self.bytes is None else self.bytes
        return CTensor(CODES[self.dtype], self.format, len(self.shape), dims, self.device, host, size)


@dataclass
class Node:
    """A graph node: operation, input ids, output ids, and views of inputs (see driver.cpp)."""

    operation: int
    ins: Sequence[int]
    outs: Sequence[int]
    views: dict[int, int] | None = None

    def as_c(self) -> CNode:
        heads = [0] * 16
        for index, view in (self.views or {}).items():
            heads[index] = view
        return CNode(
            self.operation,
            len(self.ins),
            len(self.outs),
            (ctypes.c_uint32 * 16)(*self.ins),
            (ctypes.c_uint32 * 4)(*self.outs),
            (ctypes.c_int64 * 16)(*heads),
        )


class Device:
    """The one device of this process, with a stream and a context."""

    def __init__(self, root: Path) -> None:
        os.environ["ASCEND_HOME_PATH"] = str(root / "ascend-toolkit/latest")
        self.acl = ctypes.CDLL(str(root / "ascend-toolkit/latest/lib64/libascendcl.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(root / "nnal/atb/latest/atb/cxx_abi_1/lib/libatb.so"), ctypes.RTLD_GLOBAL)
        self.driver = ctypes.CDLL(str(root / "libatb_double_driver.so"))
        self.has_launch_mode = self.driver.driver_release() >= 820
        self.has_causal_mask = self.driver.driver_release() >= 820
        for name in ("error_count", "calls", "live", "log"):
            getattr(self.acl, f"atb_double_{name}").restype = ctypes.c_uint64
        self.call("aclInit", None)
        self.call("aclrtSetDevice", 0)
        self.stream = self.new("aclrtCreateStream")
        self.context = self.new_context()

    def new_context(self, stream: int | None = None) -> int:
        context = ctypes.c_void_p()
        self.check("driver_create_context", self.driver.driver_create_context(ctypes.byref(context)))
        chosen = self.stream if stream is None else stream
        self.check("SetExecuteStream", self.driver.driver_set_stream(context, ctypes.c_void_p(chosen)))
        return int(context.value or 0)

    def destroy_context(self, context: int) -> None:
        self.check("DestroyContext", self.driver.driver_destroy_context(ctypes.c_void_p(context)))

    def close(self) -> None:
        """Gives back what this object made; the rest is a leak."""
        self.destroy_context(self.context)
        self.call("aclrtDestroyStream", self.stream)

    # -- ACL ---------------------------------------------------------------------------------------------------------

    def check(self, call: str, code: int) -> None:
        if code != 0:
            raise Refused(call, code, self.log())

    def call(self, name: str, *arguments: Any) -> None:
        converted = [ctypes.c_void_p(a) if isinstance(a, int) and a > 0xFFFFFF else a for a in arguments]
        self.check(name, getattr(self.acl, name)(*converted))

    def new(self, name: str, *arguments: Any) -> int:
        pointer = ctypes.c_void_p()
        self.check(name, getattr(self.acl, name)(ctypes.byref(pointer), *arguments))
        return int(pointer.value or 0)

    def malloc(self, size: int) -> int:
        return self.new("aclrtMalloc", ctypes.c_size_t(size), 0)

    def free(self, *addresses: int) -> None:
        for address in addresses:
            self.call("aclrtFree", address)

    def copy(self, to: int, source: int, size: int, kind: int, room: int | None = None) -> None:
        self.check(
            "aclrtMemcpyAsync",
            self.acl.aclrtMemcpyAsync(
                ctypes.c_void_p(to),
                ctypes.c_size_t(size if room is None else room),
                ctypes.c_void_p(source),
                ctypes.c_size_t(size),
                kind,
                ctypes.c_void_p(self.stream),
            ),
        )

    def synchronize(self) -> None:
        self.call("aclrtSynchronizeStream", self.stream)

    def put(self, values: Array, fmt: int = ND) -> DeviceTensor:
        """A tensor with these values in device memory, and in host memory too."""
        values = np.ascontiguousarray(values)
        tensor = DeviceTensor(values.dtype, values.shape, self.malloc(values.nbytes), values, fmt)
        self.copy(tensor.device or 0, values.ctypes.data, values.nbytes, H2D)
        self.synchronize()
        return tensor

    def empty(self, shape: tuple[int, ...], dtype: Any, fmt: int = ND) -> DeviceTensor:
        dtype = np.dtype(dtype)
        return DeviceTensor(dtype, shape, self.malloc(int(np.prod(shape)) * dtype.itemsize), None, fmt)

    def get(self, tensor: DeviceTensor) -> Array:
        values = np.empty(tensor.shape, tensor.dtype)
        self.copy(values.ctypes.data, tensor.device or 0, values.nbytes, D2H)
        self.synchronize()
        return values

    # -- ATB ---------------------------------------------------------------------------------------------------------

    def create(self, kind: str, **fields: Any) -> int:
        def text(value: Any) -> str:
            return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

        operation = ctypes.c_void_p()
        line = " ".join(f"{name}={text(value)}" for name, value in fields.items())
        status = self.driver.driver_create(kind.encode(), line.encode(), ctypes.byref(operation))
        assert status != -1, f"{kind} has no such field: {line}"
        self.check("CreateOperation", status)
        return int(operation.value or 0)

    def graph(self, counts: tuple[int, int, int], nodes: Sequence[Node], name: str = "graph") -> int:
        operation = ctypes.c_void_p()
        array = (CNode * len(nodes))(*[node.as_c() for node in nodes])
        status = self.driver.driver_graph(
            name.encode(), (ctypes.c_uint32 * 3)(*counts), array, ctypes.c_uint64(len(nodes)), ctypes.byref(operation)
        )
        self.check("CreateOperation", status)
        return int(operation.value or 0)

    def destroy(self, operation: int) -> None:
        self.check("DestroyOperation", self.driver.driver_destroy(ctypes.c_void_p(operation)))

    def infer(self, operation: int, ins: Sequence[DeviceTensor], count: int = 1) -> list[DeviceTensor]:
        outs = (CTensor * max(count, 1))()
        status = self.driver.driver_infer(ctypes.c_void_p(operation), *self._array(ins), outs)
        self.check("InferShape", status)
        return [DeviceTensor(TYPES[o.dtype], tuple(o.dims[: o.rank]), format=o.format) for o in list(outs)[:count]]

    def setup(
        self, op: int, ins: Sequence[DeviceTensor], outs: Sequence[DeviceTensor], context: int | None = -1
    ) -> int:
        workspace = ctypes.c_uint64()
        chosen = self.context if context == -1 else context
        status = self.driver.driver_setup(
            ctypes.c_void_p(op),
            *self._array(ins),
            *self._array(outs),
            ctypes.byref(workspace),
            ctypes.c_void_p(chosen),
        )
        self.check("Setup", status)
        return workspace.value

    def execute(
        self,
        op: int,
        ins: Sequence[DeviceTensor],
        outs: Sequence[DeviceTensor],
        workspace: int | None = None,
        size: int = 0,
        context: int | None = -1,
    ) -> None:
        chosen = self.context if context == -1 else context
        status = self.driver.driver_execute(
            ctypes.c_void_p(op),
            *self._array(ins),
            *self._array(outs),
            ctypes.c_void_p(workspace),
            ctypes.c_uint64(size),
            ctypes.c_void_p(chosen),
        )
        self.check("Execute", status)

    def run(self, op: int, ins: Sequence[DeviceTensor], outs: Sequence[DeviceTensor]) -> list[Array]:
        """Setup, Execute, synchronise, and the outputs; frees the workspace."""
        size = self.setup(op, ins, outs)
        workspace = self.malloc(size) if size else None
        try:
            self.execute(op, ins, outs, workspace, size)
            self.synchronize()
            return [self.get(out) for out in outs]
        finally:
            if workspace:
                self.free(workspace)

    @staticmethod
    def _array(tensors: Sequence[DeviceTensor]) -> tuple[Any, ctypes.c_uint64]:
        return (CTensor * max(len(tensors), 1))(*[t.as_c() for t in tensors]), ctypes.c_uint64(len(tensors))

    # -- Controls ----------------------------------------------------------------------------------------------------

    def log(self) -> str:
        size = int(self.acl.atb_double_log(None, ctypes.c_size_t(0)))
        text = ctypes.create_string_buffer(size + 1)
        self.acl.atb_double_log(text, ctypes.c_size_t(size + 1))
        return text.value.decode()

    def clear(self) -> None:
        self.acl.atb_double_clear_log()

    def errors(self) -> int:
        return int(self.acl.atb_double_error_count())

    def live(self, kind: str) -> int:
        return int(self.acl.atb_double_live(kind.encode()))

    def calls(self, call: str) -> int:
        return int(self.acl.atb_double_calls(call.encode()))

    def fail(self, call: str, nth: int = 1) -> None:
        self.acl.atb_double_fail(call.encode(), ctypes.c_uint64(nth))
