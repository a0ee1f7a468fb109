"""The runtime of the test double: streams, threads, memory, failures. Run as a program: ROOT SCENARIO..."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from atb_double_driver import D2D, D2H, H2D, Device, DeviceTensor, Refused, refused
from atb_double_operations import main, random, triangle
from atb_double_rules import (
    ADD,
    DIM,
    ENCODER,
    I32,
    INTERNAL,
    INVALID_PARAM,
    MASKED,
    PREFIX,
    RANKS,
    ROPE,
    RT_FAIL,
    desc,
    operation,
    with_host,
)

DEVICE_EXCEPTION = 507015


def paged(
    device: Device, block: int = 16, d: int = 16, lens: Sequence[int] = (3, 5), **spoilt: Any
) -> tuple[int, list[DeviceTensor], DeviceTensor]:
    op = device.create("PagedAttention", headNum=2, qkScale=spoilt.get("scale", 0.5))
    cache = device.put(random(1, 4, block, 2, d))
    tables = device.put(np.array(spoilt.get("tables", [[0, 1], [2, 3]]), I32))
    query = device.put(random(2, 2, 2, d))
    return op, [query, cache, cache, tables, with_host(lens)], device.empty((2, 2, d), np.float16)


def clean(device: Device, op: int, ins: list[DeviceTensor], out: DeviceTensor) -> None:
    device.destroy(op)
    device.free(*{t.device for t in [*ins, out] if t.device})


def host_tensors(device: Device) -> None:
    op, ins, out = paged(device, lens=(3, 5))
    with refused(INVALID_PARAM, "contextLens has no hostData"):
        device.setup(op, [*ins[:4], desc(2, dtype=I32)], [out])
    device.setup(op, ins, [out])
    assert ins[4].host is not None
    ins[4].host[0] = 2
    with refused(INTERNAL, "host tensor changed"):
        device.execute(op, ins, [out])
    clean(device, op, ins, out)
    op = device.create("SelfAttention", **ENCODER)
    with refused(INVALID_PARAM, "seqLen has no hostData"):
        device.setup(op, [*[desc(3, 32)] * 3, desc(1, dtype=I32)], [desc(3, 32)])
    device.destroy(op)
    op = device.create("SelfAttention", **{**MASKED, "maskType": 1})
    with refused(DIM, "too small"):
        device.setup(op, [*[desc(100, 32)] * 3, desc(64, 64), with_host([100])], [desc(100, 32)])
    device.destroy(op)
    op = device.create("SelfAttention", **PREFIX)
    caches = [desc(4, 128, 2, 16)] * 2
    with refused(INVALID_PARAM, "multiple of 128"):
        device.setup(
            op,
            [desc(3, 2, 16), *caches, desc(1, 4, dtype=I32), desc(128, 128), with_host([3]), with_host([130])],
            [desc(3, 2, 16)],
        )
    device.destroy(op)


def tiling_fails_late(device: Device) -> None:
    """Setup returns 0; the log and Execute tell."""
    for block, d, word in ((24, 16, "multiple of 16"), (256, 128, "32768")):
        device.clear()
        op, ins, out = paged(device, block, d)
        device.setup(op, ins, [out])
        assert word in device.log(), device.log()
        with refused(RT_FAIL, "tiling"):
            device.execute(op, ins, [out])
        clean(device, op, ins, out)


def broken_stream(device: Device, op: int, ins: list[DeviceTensor], outs: list[DeviceTensor], word: str) -> None:
    """Runs on a stream of its own, which the device stops with an exception."""
    stream, old = device.new("aclrtCreateStream"), device.stream
    context = device.new_context(stream)
    device.clear()
    device.setup(op, ins, outs, context)
    device.execute(op, ins, outs, context=context)
    device.stream = stream
    with refused(DEVICE_EXCEPTION, word):
        device.synchronize()
    with refused(DEVICE_EXCEPTION):
        device.synchronize()  # For good.
    device.stream = old
    device.destroy(op)
    device.call("aclrtDestroyStream", stream)
    device.destroy_context(context)
    device.free(*{t.device for t in [*ins, *outs] if t.device and word != "host memory"})


def device_exceptions(device: Device) -> None:
    """What the library never notices."""
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tables": [[0, 1], [2, 9]], "lens": (3, 17)}, "block 9 of 4"),
        ({"tables": [[0, -1], [2, 3]], "lens": (17, 3)}, "block -1 of 4"),
        ({"lens": (3, 33)}, "room for 32"),
        ({"lens": (0, 3)}, "context length 0"),
        ({"scale": 0}, "qkScale is 0"),
        ({"tables": [[0, 1]]}, "1 rows for 2 sequences"),
    ]
    for fields, word in cases:
        op, ins, out = paged(device, **fields)
        broken_stream(device, op, ins, [out], word)
    table, rows = device.put(random(1, 4, 8)), device.put(np.array([1, 4], I32))
    broken_stream(device, device.create("Gather"), [table, rows], [device.empty((2, 8), np.float16)], "index 4")
    caches = [device.put(random(1, 2, 16, 2, 16)) for _ in range(2)]
    key = device.put(random(1, 1, 2, 16))
    write = [key, key, *caches]
    broken_stream(
        device, device.create("ReshapeAndCache"), [*write, device.put(np.array([32], I32))], caches, "slot 32"
    )


def more_device_exceptions(device: Device) -> None:
    cases: list[tuple[dict[str, Any], Any, str]] = [
        (ENCODER, [200], "seqLen sums to 200 for 300 tokens"),
        (ENCODER, [[300], [301]], "other kv lengths than query lengths"),
        ({**ENCODER, "qkScale": 0}, [300], "qkScale is 0"),
    ]
    for fields, lens, word in cases:
        q = [device.put(random(i, 300, 32)) for i in range(3)]
        out = device.empty((300, 32), np.float16)
        broken_stream(device, device.create("SelfAttention", **fields), [*q, with_host(lens)], [out], word)
    q = [device.put(random(i, 300, 32)) for i in range(3)]
    out = device.empty((300, 32), np.float16)
    op = device.create("SelfAttention", **{**ENCODER, "maskType": 1})
    mask = device.put(triangle(128, -1e4, np.float16))
    broken_stream(device, op, [*q, mask, with_host([300])], [out], "does not cover 300 tokens")
    rope = [device.put(random(i, *t.shape)) for i, t in enumerate(ROPE[:2])]
    table = [device.put(random(i, 2, 8)) for i in range(2)]
    outs = [device.empty(t.shape, np.float16) for t in ROPE[:2]]
    broken_stream(
        device, device.create("Rope", rotaryCoeff=2), [*rope, *table, device.put(np.ones(1, I32))], outs, "rows"
    )


def cache_must_be_in_place(device: Device) -> None:
    key = device.put(random(1, 1, 2, 16))
    caches = [device.put(random(i, 2, 16, 2, 16)) for i in range(4)]
    ins = [key, key, *caches[:2], device.put(np.array([3], I32))]
    broken_stream(device, device.create("ReshapeAndCache"), ins, caches[2:], "must be the buffer of input 2")


def addresses(device: Device) -> None:
    host = random(1, 2, 16)
    wrong = DeviceTensor(host.dtype, host.shape, host.ctypes.data)
    x, out = device.put(host), device.empty((2, 16), np.float16)
    op = device.create("Elewise", **ADD)
    broken_stream(device, op, [x, wrong], [out], "host memory")
    device.free(x.device or 0, out.device or 0)
    short, x, out = device.malloc(60), device.put(host), device.empty((2, 16), np.float16)
    op = device.create("Elewise", **ADD)
    broken_stream(device, op, [x, DeviceTensor(host.dtype, host.shape, short)], [out], "not (or no longer) allocated")


def tiling_ring(device: Device) -> None:
    x, out = device.put(random(1, 2, 16)), device.empty((2, 16), np.float16)
    with operation(device, "Elewise", **ADD) as first, operation(device, "Elewise", **ADD) as other:
        device.setup(first, [x, x], [out])
        for _ in range(127):
            device.setup(other, [x, x], [out])
        device.execute(first, [x, x], [out])
        device.setup(other, [x, x], [out])
        with refused(INTERNAL, "tiling block was overwritten"):
            device.execute(first, [x, x], [out])
    device.synchronize()
    device.free(x.device or 0, out.device or 0)


def in_thread(device: Device, call: Callable[[], object]) -> None:
    """Runs `call` on another thread that uses the device."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            device.call("aclrtSetDevice", 0)
            call()
        except Refused as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def setup_threads(device: Device) -> None:
    """Setup may move to another thread, but not back and forth."""
    x, out = device.put(random(1, 2, 16)), device.empty((2, 16), np.float16)
    context = device.new_context()
    with operation(device, "Elewise", **ADD) as op:
        device.setup(op, [x, x], [out], context)
        in_thread(device, lambda: device.setup(op, [x, x], [out], context))
        with refused(INTERNAL, "take turns"):
            device.setup(op, [x, x], [out], context)
    device.destroy_context(context)
    device.free(x.device or 0, out.device or 0)


def contexts(device: Device) -> None:
    x, out = device.put(random(1, 2, 16)), device.empty((2, 16), np.float16)
    context = device.new_context()
    op = device.create("Elewise", **ADD)
    device.setup(op, [x, x], [out], context)
    device.clear()
    if device.has_launch_mode:
        assert device.driver.driver_set_launch_mode(ctypes.c_void_p(context), 1) == INVALID_PARAM
        assert "before the first Setup" in device.log()
    device.destroy_context(context)
    assert "destroy the 1 operations" in device.log()
    device.free(x.device or 0, out.device or 0)


def captured_launches(device: Device) -> None:
    if not device.has_launch_mode:
        return
    context = device.new_context()
    assert device.driver.driver_set_launch_mode(ctypes.c_void_p(context), 1) == 0
    x, out = device.put(random(1, 2, 16)), device.empty((2, 16), np.float16)
    with operation(device, "Elewise", **ADD) as op:
        device.setup(op, [x, x], [out], context)
        device.execute(op, [x, x], [out], context=context)
        device.setup(op, [x, x], [out], context)
        with refused(DIM, "captured"):
            device.setup(op, [desc(1, 16)] * 2, [desc(1, 16)], context)
        device.synchronize()
    assert "captured beside" not in device.log()
    with operation(device, "Elewise", **ADD) as op:
        device.setup(op, [x, x], [out], context)
        in_thread(device, lambda: device.execute(op, [x, x], [out], context=context))
        assert "captured beside the thread that calls Setup" in device.log()
        device.synchronize()
    device.destroy_context(context)
    device.free(x.device or 0, out.device or 0)


def prelaunch(device: Device) -> None:
    x, out = device.put(random(1, 2, 16)), device.empty((2, 16), np.float16)
    context = ctypes.c_void_p(device.context)
    with operation(device, "Elewise", **ADD) as op:
        device.setup(op, [x, x], [out])
        device.driver.driver_set_execute_type(context, 2)
        with refused(INVALID_PARAM, "PRELAUNCH"):
            device.execute(op, [x, x], [out])
        device.driver.driver_set_execute_type(context, 1)
        device.execute(op, [x, x], [out])
        assert np.isnan(device.get(out)).all()  # Fresh memory is poisoned; nothing ran.
        device.driver.driver_set_execute_type(context, 2)
        device.execute(op, [x, x], [out])
        device.driver.driver_set_execute_type(context, 0)
    np.testing.assert_array_equal(device.get(out), x.host + x.host)
    device.free(x.device or 0, out.device or 0)


def acl_calls(device: Device) -> None:
    with refused(100002, "at most once"):
        device.call("aclInit", None)
    with refused(107000, "no device 99"):
        device.call("aclrtSetDevice", 99)
    block, host = device.malloc(256), np.zeros(256, np.uint8)
    where = host.ctypes.data
    for to, source, kind in ((where, block, H2D), (block, where, D2H), (block, where, D2D)):
        with refused(107000, "do not fit kind"):
            device.copy(to, source, 256, kind)
    with refused(100000, "into 8"):
        device.copy(block, where, 16, H2D, room=8)
    with refused(107000, "overrun"):
        device.copy(block, where, 257, H2D, room=400)
    with refused(107000, "64-byte aligned"):
        device.copy(block, block + 32, 16, D2D)
    device.free(block)
    with refused(107000, "not a live device allocation"):
        device.free(block)
    with refused(207001):
        device.malloc(1 << 40)
    with refused(107000, "pinned"):
        device.call("aclrtFreeHost", where)
    failed: list[int] = []
    thread = threading.Thread(
        target=lambda: failed.append(device.acl.aclrtMalloc(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(8), 0))
    )
    thread.start()
    thread.join()
    assert failed == [107002], "a thread needs aclrtSetDevice"


def memory_info(device: Device) -> None:
    def free_bytes() -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        device.call("aclrtGetMemInfo", 1, ctypes.byref(free), ctypes.byref(total))
        assert total.value == 256 << 20
        return free.value

    before = free_bytes()
    first, second = device.malloc(1 << 20), device.malloc(100)
    assert second >= first + (1 << 20)
    assert first % 512 == second % 512 == 0
    assert free_bytes() <= before - (1 << 20) - 100
    device.free(first)
    assert device.malloc(1 << 19) == first
    device.free(first, second)
    assert free_bytes() == before


def injection(device: Device) -> None:
    for call in ("aclrtMalloc", "any"):
        device.fail(call, 2)
        block = device.malloc(64)
        with refused(507899, "INJECTED aclrtMalloc"):
            device.malloc(64)
        device.free(block)
    x, out = device.put(random(1, 2, 16)), device.empty((2, 16), np.float16)
    device.fail("CreateOperation")
    with refused(INTERNAL, "INJECTED CreateOperation"):
        device.create("Elewise", **ADD)
    with operation(device, "Elewise", **ADD) as op:
        device.fail("Setup")
        with refused(INTERNAL):
            device.setup(op, [x, x], [out])
        device.setup(op, [x, x], [out])
        device.fail("Execute")
        with refused(RT_FAIL):
            device.execute(op, [x, x], [out])
    op = device.create("Elewise", **ADD)
    device.fail("kernel")
    broken_stream(device, op, [x, x], [out], "INJECTED device exception in Elewise")
    assert device.errors() == 0  # An injected failure is no violation.


def counting(device: Device) -> None:
    before = device.calls("Setup"), device.live("operation"), device.live("event"), device.live("host_memory")
    op = device.create("Elewise", **ADD)
    event, host = device.new("aclrtCreateEvent"), device.new("aclrtMallocHost", ctypes.c_size_t(100))
    with suppress(Refused):
        device.setup(op, [], [])
    after = device.calls("Setup"), device.live("operation"), device.live("event"), device.live("host_memory")
    assert after == tuple(n + 1 for n in before)
    device.destroy(op)
    device.call("aclrtDestroyEvent", event)
    device.call("aclrtFreeHost", host)


def missing_synchronisation(device: Device) -> None:
    """Under the lazy schedule nothing runs before somebody waits, so that too early a look always shows."""
    x, out = device.put(random(1, 2, 16)), device.empty((2, 16), np.float16)
    values = np.zeros((2, 16), np.float16)
    assert x.host is not None
    with operation(device, "Elewise", **ADD) as op:
        device.setup(op, [x, x], [out])
        device.execute(op, [x, x], [out])
    device.copy(values.ctypes.data, out.device or 0, 64, D2H)
    assert not values.any()
    device.synchronize()
    np.testing.assert_array_equal(values, x.host + x.host)
    source = np.full(32, 7, np.float16)
    device.copy(out.device or 0, source.ctypes.data, 64, H2D)
    source[:] = 8  # Too early.
    assert (device.get(out) == 8).all()
    device.copy(out.device or 0, source.ctypes.data, 64, H2D)
    device.clear()
    device.free(x.device or 0)
    assert "queued work may use the memory" in device.log()
    device.synchronize()
    device.clear()
    device.free(out.device or 0)
    assert device.errors() == 0, device.log()


def pinned_memory_freed_too_early(device: Device) -> None:
    stream, old = device.new("aclrtCreateStream"), device.stream
    block, host = device.malloc(64), device.new("aclrtMallocHost", ctypes.c_size_t(64))
    device.stream = stream
    device.copy(block, host, 64, H2D)
    device.call("aclrtFreeHost", host)
    with refused(DEVICE_EXCEPTION, "freed before the copy ran"):
        device.synchronize()
    device.stream = old
    device.call("aclrtDestroyStream", stream)
    device.free(block)


def events(device: Device) -> None:
    """A stream waits for what another one recorded."""
    other, main_stream = device.new("aclrtCreateStream"), device.stream
    event = device.new("aclrtCreateEvent")
    host, block = np.arange(32, dtype=np.uint8), device.malloc(64)
    size = 32 << 20
    room = device.malloc(2 * size)
    for _ in range(4):  # Long enough for a stream that does not wait to come too early.
        device.copy(room + size, room, size, D2D)
    device.copy(block, host.ctypes.data, 32, H2D)
    device.call("aclrtRecordEvent", event, main_stream)
    device.call("aclrtStreamWaitEvent", other, event)
    found = np.zeros(32, np.uint8)
    device.stream = other
    device.copy(found.ctypes.data, block, 32, D2H)
    device.synchronize()
    np.testing.assert_array_equal(found, host)
    device.stream = main_stream
    device.call("aclrtSynchronizeEvent", event)
    device.call("aclrtDestroyEvent", event)
    device.call("aclrtDestroyStream", other)
    device.free(block, room)


def captured_stream(device: Device) -> None:
    """A captured copy runs each time it is played, and not before."""
    block, host = device.malloc(64), np.full(64, 1, np.uint8)
    device.call("aclmdlRICaptureBegin", device.stream, 0)
    device.copy(block, host.ctypes.data, 64, H2D)
    with refused(107027, "captured"):
        device.synchronize()
    capture = ctypes.c_void_p()
    device.call("aclmdlRICaptureEnd", device.stream, ctypes.byref(capture))
    tensor = DeviceTensor(np.dtype(np.int8), (64,), block)
    assert (device.get(tensor) == -1).all()
    for value in (2, 3):
        host[:] = value
        device.call("aclmdlRIExecuteAsync", capture, device.stream)
        assert (device.get(tensor) == value).all()
    device.call("aclmdlRIDestroy", capture)
    device.free(block)


def nothing_runs(device: Device) -> None:
    """The zero-cost mode checks, but has neither memory nor kernels, nor the other ranks."""
    x = [DeviceTensor(np.dtype(np.float16), (4, 4096), device.malloc(32 << 30)) for _ in range(1)]
    with operation(device, "Elewise", **ADD) as op:
        device.setup(op, [x[0], x[0]], [x[0]])
        device.execute(op, [x[0], x[0]], [x[0]])
        with refused(INVALID_PARAM, "dataSize"):
            device.execute(op, [x[0], DeviceTensor(x[0].dtype, x[0].shape, x[0].device, bytes=1)], [x[0]])
        with refused(DIM):
            device.setup(op, [x[0], x[0]], [desc(4, 4095)])
    with operation(device, "AllReduce", rank=1, **RANKS) as op:
        device.setup(op, x, x)
        device.execute(op, x, x)
    device.synchronize()
    device.free(x[0].device or 0)


def leak(device: Device) -> None:
    device.malloc(64)


def clean_exit(device: Device) -> None:
    device.free(device.malloc(64))


def touch_device_memory(device: Device) -> None:
    ctypes.memset(device.malloc(64), 0, 1)


DEFAULT: list[Callable[[Device], None]] = [
    host_tensors,
    tiling_fails_late,
    device_exceptions,
    more_device_exceptions,
    cache_must_be_in_place,
    addresses,
    tiling_ring,
    setup_threads,
    captured_launches,
    prelaunch,
    acl_calls,
    memory_info,
    injection,
    counting,
    events,
    captured_stream,
    contexts,
]
LAZY: list[Callable[[Device], None]] = [missing_synchronisation, pinned_memory_freed_too_early, events]
NULL: list[Callable[[Device], None]] = [nothing_runs]

if __name__ == "__main__":
    main([*DEFAULT, *LAZY, *NULL, leak, clean_exit, touch_device_memory])
