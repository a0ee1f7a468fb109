"""Collectives of the test double between two processes. Run as a program: ROOT SCENARIO RANK, prints what failed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from atb_double_driver import Device, refused
from atb_double_operations import check, close, random, wide

SIZE = 2


def all_reduce(device: Device, rank: int) -> None:
    """The sum is made in float and rounded once; in place is allowed."""
    for backend in ("lccl", "hccl"):
        fields = {"rank": rank, "rankSize": SIZE, "backend": backend}
        for dtype in (np.float16, ml_dtypes.bfloat16, np.float32):
            parts = [wide(random(r, 3, 16, dtype=dtype)) for r in range(SIZE)]
            mine = parts[rank].astype(dtype)
            check(device, "AllReduce", [mine], [parts[0] + parts[1]], **fields)
            check(device, "AllReduce", [mine], [np.maximum(*parts)], allReduceType="max", **fields)
        x = device.put(mine)
        op = device.create("AllReduce", **fields)
        close(device.run(op, [x], [x])[0], parts[0] + parts[1])
        device.destroy(op)
        device.free(x.device or 0)


def all_gather(device: Device, rank: int) -> None:
    parts = [wide(random(r, 3, 16)) for r in range(SIZE)]
    for backend in ("lccl", "hccl"):
        mine = parts[rank].astype(np.float16)
        check(device, "AllGather", [mine], [np.stack(parts)], rank=rank, rankSize=SIZE, backend=backend)


def broadcast(device: Device, rank: int) -> None:
    x = device.put(random(rank, 3, 16))
    op = device.create("Broadcast", rank=rank, rankSize=SIZE, rankRoot=1, backend="hccl")
    device.run(op, [x], [])
    np.testing.assert_array_equal(device.get(x), random(1, 3, 16))
    device.destroy(op)
    device.free(x.device or 0)


def linear_parallel(device: Device, rank: int) -> None:
    x, w, bias = random(1, 3, 32), random(2, 8, 32), random(3, 8)
    half = slice(rank * 16, rank * 16 + 16)
    ins = [np.ascontiguousarray(x[:, half]), np.ascontiguousarray(w[:, half])]
    y, terms = wide(x) @ wide(w).T, np.abs(wide(x)) @ np.abs(wide(w)).T
    for backend in ("lcoc", "lccl"):
        fields = {"rank": rank, "rankSize": SIZE, "backend": backend}
        check(device, "LinearParallel", ins, [y], terms, **fields)
        check(device, "LinearParallel", [*ins, bias], [y + wide(bias)], terms + 4, hasResidual=1, **fields)


def ranks_that_differ(device: Device, rank: int) -> None:
    """One rank reduces where the other gathers: both streams stop, and rank 0 says why."""
    x = device.put(random(1, 2, 16))
    kind = "AllReduce" if rank == 0 else "AllGather"
    op = device.create(kind, rank=rank, rankSize=SIZE, backend="lccl")
    out = device.empty((2, 2, 16) if rank else (2, 16), np.float16)
    reason = [] if rank else ["rank 1 does AllGather of 64, rank 0 does AllReduce sum of 32"]
    with refused(507015, *reason):
        device.run(op, [x], [out])


def a_rank_that_ends(device: Device, rank: int) -> None:
    """The other rank is not left waiting."""
    x = device.put(random(1, 2, 16))
    op = device.create("AllReduce", rank=rank, rankSize=SIZE, backend="lccl")
    device.setup(op, [x], [x])
    if rank == 0:
        device.execute(op, [x], [x])
        with refused(507015, "rank 1 is gone"):
            device.synchronize()


PAIRS: list[Callable[[Device, int], None]] = [
    all_reduce,
    all_gather,
    broadcast,
    linear_parallel,
    ranks_that_differ,
    a_rank_that_ends,
]


def main() -> None:
    device = Device(Path(sys.argv[1]))
    name = sys.argv[2]
    {scenario.__name__: scenario for scenario in PAIRS}[name](device, int(sys.argv[3]))
    sys.stdout.write(json.dumps({name: ""}))


if __name__ == "__main__":
    main()
