"""Rules that the test double enforces. Run as a program: ROOT SCENARIO..., prints what failed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from atb_double_driver import Device, DeviceTensor, Node, refused
from atb_double_operations import BF16, main, random

INVALID_PARAM, INVALID_GRAPH, INTERNAL, RT_FAIL = 1, 2, 3, 4
IN_NUM, DIM, SIZE, INI_MATCH, DIM_NUM = 5, 8, 9, 13, 16


def desc(*shape: int, dtype: Any = np.float16, fmt: int = 2) -> DeviceTensor:
    return DeviceTensor(np.dtype(dtype), shape, format=fmt)


def with_host(values: Sequence[int]) -> DeviceTensor:
    array = np.array(values, np.int32)
    return DeviceTensor(array.dtype, array.shape, host=array)


@contextmanager
def operation(device: Device, kind: str, **fields: Any) -> Iterator[int]:
    op = device.create(kind, **fields)
    yield op
    device.destroy(op)


ADD, CAST, SWIGLU = {"elewiseType": 8}, {"elewiseType": 1}, {"activationType": 6}
ENCODER = {"headNum": 2, "calcType": 3}
RANKS = {"rankSize": 2, "backend": "lccl"}

# Operation, fields, and a word of the reason for which CreateOperation refuses them.
BAD_PARAMETERS: list[tuple[str, dict[str, Any], str]] = [
    *[
        (kind, {**fields, "rsv": 1}, "rsv")
        for kind, fields in {
            "Gather": {},
            "RmsNorm": {"layerType": 1},
            "Linear": {},
            "Split": {},
            "Concat": {},
            "Transpose": {"perm": (0,)},
            "Elewise": ADD,
            "Activation": SWIGLU,
            "Rope": {},
            "SelfAttention": ENCODER,
            "PagedAttention": {"headNum": 1},
            "ReshapeAndCache": {},
            "AllReduce": RANKS,
            "AllGather": RANKS,
            "Sort": {"num": (1,)},
        }.items()
    ],
    ("Gather", {"axis": -1}, "axis"),
    ("Gather", {"batchDims": 1}, "batchDims"),
    ("RmsNorm", {}, "layerType"),
    ("RmsNorm", {"layerType": 1, "epsilon": 0}, "epsilon"),
    ("RmsNorm", {"layerType": 1, "postEpsilon": 0}, "epsilon"),
    ("Linear", {"enAccum": 1}, "enAccum"),
    ("Split", {"splitNum": 4}, "splitNum"),
    ("Split", {"splitNum": 3, "splitSizes": (1, 2)}, "splitSizes"),
    ("Split", {"splitDim": -1, "splitSizes": (1, 2)}, "splitSizes"),
    ("Elewise", CAST, "outTensorType"),
    ("Activation", {**SWIGLU, "dim": 0}, "dim"),
    ("SelfAttention", {"calcType": 3}, "headNum"),
    ("SelfAttention", {**ENCODER, "headNum": 3, "kvHeadNum": 2}, "kvHeadNum"),
    ("SelfAttention", {**ENCODER, "isTriuMask": 1}, "isTriuMask"),
    ("SelfAttention", {"headNum": 2, "calcType": 4, "isTriuMask": 1, "maskType": 3}, "HIGH_PRECISION"),
    ("SelfAttention", {"headNum": 2, "calcType": 4, "kernelType": 1, "isTriuMask": 1, "maskType": 1}, "mask"),
    ("PagedAttention", {}, "headNum"),
    ("PagedAttention", {"headNum": 4, "kvHeadNum": 3}, "kvHeadNum"),
    ("PagedAttention", {"headNum": 4, "calcType": 1}, "maskType"),
    ("AllReduce", {**RANKS, "rank": 2}, "rank 2"),
    ("AllReduce", {**RANKS, "rankSize": 9}, "9 on 8 devices"),
    ("AllReduce", {**RANKS, "backend": "nccl"}, "nccl"),
    ("AllReduce", {**RANKS, "allReduceType": "prod"}, "prod"),
    ("AllReduce", {**RANKS, "allReduceType": "mean"}, "mean"),
    ("AllReduce", {**RANKS, "commMode": 5}, "commMode"),
    ("AllReduce", {**RANKS, "commDomain": "tp"}, "commDomain"),
    ("AllReduce", {**RANKS, "rankTableFile": "/no/such/file"}, "rankTableFile"),
    ("AllReduce", {**RANKS, "commDomain": "1" * 129}, "128 characters"),
    ("AllGather", {**RANKS, "backend": "nccl"}, "nccl"),
    ("LinearParallel", {"rankSize": 2, "backend": "nccl"}, "nccl"),
    ("SelfAttention", {"headNum": 2}, "PA_ENCODER"),
    ("LinearParallel", {"rankSize": 3, "backend": "lcoc"}, "power of two"),
]


def parameters(device: Device) -> None:
    for kind, fields, word in BAD_PARAMETERS:
        device.clear()
        with refused(INVALID_PARAM, word):
            device.create(kind, **fields)


I32, I64, F32 = np.int32, np.int64, np.float32
HEADS = {"headNum": 2, "qkScale": 0.5}
CACHE = desc(4, 16, 2, 16)
MASKED = {**ENCODER, "maskType": 3, "isTriuMask": 1}
PREFIX = {"headNum": 2, "calcType": 4, "kernelType": 1, "isTriuMask": 1, "maskType": 3}
ROPE = [desc(3, 32), desc(3, 16), desc(3, 8), desc(3, 8), desc(1, dtype=I32)]

# Operation, fields, inputs, the code with which InferShape refuses them.
BAD_INPUTS: list[tuple[str, dict[str, Any], list[DeviceTensor], int]] = [
    ("Gather", {}, [desc(4, 4)], IN_NUM),
    ("Gather", {}, [desc(4, 4), desc(2)], INI_MATCH),
    ("Gather", {}, [desc(4, 0), desc(2, dtype=I32)], SIZE),
    ("Gather", {}, [desc(), desc(2, dtype=I32)], DIM),
    ("Gather", {}, [desc(4, 4, 4), desc(1, 1, 1, 1, 1, 1, 1, dtype=I32)], DIM),
    ("Gather", {"axis": 2}, [desc(4, 4), desc(2, dtype=I32)], DIM),
    ("RmsNorm", {"layerType": 1}, [desc(2, 32), desc(32, dtype=BF16)], INI_MATCH),
    ("RmsNorm", {"layerType": 1}, [desc(2, 32, fmt=-1), desc(32)], INI_MATCH),
    ("RmsNorm", {"layerType": 1}, [desc(2, 32), desc(16)], DIM),
    ("RmsNorm", {"layerType": 1}, [desc(2, 24), desc(24)], DIM),
    ("RmsNorm", {"layerType": 2}, [desc(2, 32), desc(32)], IN_NUM),
    ("RmsNorm", {"layerType": 2, "preBias": 1}, [desc(2, 32), desc(16), desc(2, 32), desc(32)], DIM),
    ("RmsNorm", {"layerType": 2}, [desc(2, 32), desc(1, 32), desc(32)], DIM),
    ("RmsNorm", {"layerType": 2, "preBias": 1}, [desc(2, 32), desc(2, 32), desc(32)], IN_NUM),
    ("Linear", {}, [desc(2, 8), desc(4, 8)], IN_NUM),
    ("Linear", {"hasBias": 0}, [desc(2, 8), desc(4, 9)], DIM),
    ("Linear", {"hasBias": 0}, [desc(8), desc(4, 8)], DIM_NUM),
    ("Linear", {"hasBias": 0}, [desc(2, 8), desc(8)], DIM_NUM),
    ("Linear", {"hasBias": 0}, [desc(2, 3, 8), desc(3, 4, 8)], DIM),
    ("Linear", {}, [desc(2, 8), desc(4, 8), desc(5)], DIM),
    ("Linear", {}, [desc(2, 8), desc(4, 8), desc(4, dtype=BF16)], INI_MATCH),
    ("Linear", {}, [desc(2, 8, dtype=F32), desc(4, 8, dtype=F32), desc(4, dtype=F32)], INI_MATCH),
    ("Split", {"splitNum": 3}, [desc(2, 8, dtype=I64)], INI_MATCH),
    ("Split", {"splitDim": 1, "splitNum": 3}, [desc(2, 8)], DIM),
    ("Split", {"splitDim": 2}, [desc(2, 8)], DIM),
    ("Split", {"splitDim": 1, "splitSizes": (8, 0)}, [desc(2, 8)], DIM),
    ("Split", {"splitDim": 1, "splitSizes": (4, 5)}, [desc(2, 8)], DIM),
    ("Concat", {}, [desc(2, 8), desc(2, 9)], DIM),
    ("Transpose", {"perm": (0, 0)}, [desc(2, 8)], DIM),
    ("Transpose", {"perm": (1, 0)}, [desc(2, 8, dtype=F32)], INI_MATCH),
    ("Elewise", {"elewiseType": 9}, [desc(2, 8, dtype=F32)] * 2, INI_MATCH),
    ("Elewise", {**CAST, "outTensorType": 27}, [desc(2, 8)], INI_MATCH),
    ("Elewise", ADD, [desc(2, 8), desc(2, 7)], DIM),
    ("Activation", SWIGLU, [desc(2, 7)], DIM),
    ("Activation", {"activationType": 4}, [desc(2, 8, dtype=F32)], INI_MATCH),
    ("Rope", {"rotaryCoeff": 2}, [desc(3, 4, 8), desc(3, 2, 8), *ROPE[2:]], DIM_NUM),
    ("Rope", {"rotaryCoeff": 2}, [desc(3, 33), *ROPE[1:]], DIM),
    ("Rope", {"rotaryCoeff": 3}, ROPE, INVALID_PARAM),
    ("Rope", {"rotaryCoeff": 2}, [*(desc(3, 32, dtype=BF16) for _ in range(2)), *ROPE[2:]], INI_MATCH),
    ("SelfAttention", ENCODER, [desc(3, 2, 16), desc(3, 32), desc(3, 32), desc(1, dtype=I32)], SIZE),
    ("SelfAttention", ENCODER, [desc(3, 32), desc(3, 16), desc(3, 16), desc(1, dtype=I32)], DIM),
    ("SelfAttention", ENCODER, [*[desc(3, 32)] * 3, desc(1, 1, 1, dtype=I32)], SIZE),
    ("SelfAttention", MASKED, [*[desc(3, 32)] * 3, desc(64, 64), desc(1, dtype=I32)], DIM),
    ("SelfAttention", MASKED, [*[desc(3, 32)] * 3, desc(128, 128, dtype=F32), desc(1, dtype=I32)], INI_MATCH),
    (
        "SelfAttention",
        PREFIX,
        [desc(3, 2, 16), CACHE, CACHE, desc(1, 4, dtype=I32), desc(128, 128), *[desc(1, dtype=I32)] * 2],
        DIM,
    ),
    ("PagedAttention", HEADS, [desc(1, 32), CACHE, CACHE, desc(1, 4, dtype=I32), desc(1, dtype=I32)], DIM_NUM),
    ("PagedAttention", HEADS, [desc(1, 2, 8), CACHE, CACHE, desc(1, 4, dtype=I32), desc(1, dtype=I32)], DIM),
    ("PagedAttention", HEADS, [desc(1, 2, 16), CACHE, CACHE, desc(1, 4, dtype=I64), desc(1, dtype=I32)], INI_MATCH),
    ("ReshapeAndCache", {}, [desc(3, 32), desc(3, 32), CACHE, CACHE, desc(3, dtype=I32)], DIM_NUM),
    ("ReshapeAndCache", {}, [desc(3, 2, 8), desc(3, 2, 8), CACHE, CACHE, desc(3, dtype=I32)], DIM),
    ("ReshapeAndCache", {}, [desc(3, 2, 16), desc(3, 2, 16), CACHE, CACHE, desc(4, dtype=I32)], DIM),
]


def inputs(device: Device) -> None:
    for kind, fields, ins, code in BAD_INPUTS:
        device.clear()
        with operation(device, kind, **fields) as op, refused(code, kind):
            device.infer(op, ins, 3)


def outputs_of_single_operations(device: Device) -> None:
    x, y = device.put(random(1, 2, 8)), device.put(random(2, 2, 8))
    with operation(device, "Elewise", **ADD) as op:
        with refused(INI_MATCH):
            device.setup(op, [x, y], [desc(2, 8, dtype=BF16)])
        with refused(DIM, "output 0"):
            device.setup(op, [x, y], [desc(2, 7)])
        with refused(IN_NUM):
            device.setup(op, [x, y], [])
        with refused(INVALID_PARAM, "without a context"):
            device.setup(op, [x, y], [x], context=None)
    with operation(device, "ReshapeAndCache") as op:
        rows, cache = desc(3, 2, 16), desc(4, 16, 2, 16)
        with refused(DIM):
            device.setup(op, [rows, rows, cache, cache, desc(3, dtype=I32)], [cache, desc(2, 16, 2, 16)])
    device.free(x.device or 0, y.device or 0)


def tensors_and_streams(device: Device) -> None:
    """Empty tensors at Setup, a context without a stream, an empty pack."""
    x, out = device.put(random(1, 2, 32)), device.empty((2, 32), np.float16)
    context = ctypes.c_void_p()
    assert device.driver.driver_create_context(ctypes.byref(context)) == 0
    without = int(context.value or 0)
    with operation(device, "Elewise", **ADD) as op:
        with refused(SIZE, "empty"):
            device.setup(op, [desc(2, 0), x], [out])
        with refused(DIM, "no rank"):
            device.setup(op, [x, x], [desc()])
        device.setup(op, [x, x], [out], without)
        with refused(INVALID_PARAM, "no stream"):
            device.execute(op, [x, x], [out], context=without)
        device.setup(op, [x, x], [out])
        with refused(INVALID_PARAM, "empty pack"):
            device.execute(op, [], [])
    assert device.driver.driver_set_stream(context, ctypes.c_void_p(without)) == INVALID_PARAM
    device.destroy_context(without)
    device.free(x.device or 0, out.device or 0)


def execute(device: Device) -> None:
    x, y, out = (device.put(random(i, 2, 32)) for i in range(3))
    op = device.create("Elewise", **ADD)
    with refused(INVALID_PARAM, "before a successful Setup"):
        device.execute(op, [x, y], [out])
    device.setup(op, [x, y], [out])
    device.execute(op, [x, y], [out])
    with refused(INVALID_PARAM, "without a context"):
        device.execute(op, [x, y], [out], context=None)
    with refused(INVALID_PARAM, "dataSize"):
        device.execute(op, [DeviceTensor(x.dtype, x.shape, x.device, bytes=130), y], [out])
    with refused(INVALID_PARAM, "no address"):
        device.execute(op, [DeviceTensor(x.dtype, x.shape), y], [out])
    with refused(INVALID_PARAM, "numbers"):
        device.execute(op, [x], [out])
    other = device.new_context()
    with refused(INVALID_PARAM, "another context"):
        device.execute(op, [x, y], [out], context=other)
    with refused(IN_NUM):
        device.setup(op, [x], [out])
    with refused(INVALID_PARAM, "before a successful Setup"):
        device.execute(op, [x, y], [out])
    device.destroy_context(other)
    device.destroy(op)
    device.synchronize()
    device.free(*[t.device or 0 for t in (x, y, out)])


def workspace(device: Device) -> None:
    x = device.put(random(1, 3, 32))
    nodes = [Node(device.create("Elewise", **ADD), [0, 0], [2]), Node(device.create("Elewise", **ADD), [2, 0], [1])]
    graph = device.graph((1, 1, 1), nodes)
    out = device.empty((3, 32), np.float16)
    size = device.setup(graph, [x], [out])
    assert size == 512  # One intermediate of 192 bytes.
    room = device.malloc(size)
    with refused(INVALID_PARAM, "workspace of 512 bytes"):
        device.execute(graph, [x], [out], room, 511)
    with refused(INVALID_PARAM, "workspace is null"):
        device.execute(graph, [x], [out], None, 512)
    device.execute(graph, [x], [out], room, size)
    device.synchronize()
    np.testing.assert_array_equal(device.get(out), (x.host + x.host) + x.host)
    device.destroy(graph)
    device.free(room, x.device or 0, out.device or 0)


def bad_graphs(device: Device) -> None:
    add, split = device.create("Elewise", **ADD), device.create("Split", splitDim=1)
    bad = [
        ((2, 1, 0), [Node(add, [0, 3], [2])], "graph", "no value"),
        ((2, 1, 1), [Node(add, [0, 3], [2]), Node(split, [0], [3, 2])], "graph", "no value"),
        ((2, 1, 0), [Node(add, [0, 1], [3])], "graph", "out of range"),
        ((2, 2, 0), [Node(add, [0, 1], [2])], "graph", "never written"),
        ((2, 1, 0), [Node(add, [0], [2])], "graph", "takes 2 inputs"),
        ((2, 1, 0), [Node(split, [0], [2])], "graph", "2 outputs"),
        ((2, 1, 1), [Node(add, [0, 1], [3]), Node(add, [3, 1], [2])], "graph", "another node"),
        ((2, 1, 0), [Node(0, [0, 1], [2])], "graph", "null"),
        ((2, 1, 0), [], "graph", "nodes"),
        ((2, 1, 257), [Node(add, [0, 1], [2])], "graph", "256"),
        ((257, 1, 0), [Node(add, [0, 1], [257])], "graph", "256"),
        ((2, 1, 0), [Node(add, [0, 1], [2])], "graph 1", "names"),
        ((2, 1, 0), [Node(add, [0, 1], [2])], "g" * 129, "names"),
    ]
    for counts, nodes, name, word in bad:
        device.clear()
        with refused(INVALID_GRAPH, word):
            device.graph(counts, nodes, name)
    many = [device.create("Elewise", **ADD) for _ in range(1025)]
    with refused(INVALID_GRAPH, "1 to 1024 nodes"):
        device.graph((2, 1, 0), [Node(each, [0, 1], [2]) for each in many])
    for each in many:
        device.destroy(each)
    graph = device.graph((2, 1, 0), [Node(add, [0, 1], [2])])  # The caller still owned it.
    with refused(INVALID_PARAM, "belongs to a graph"):
        device.destroy(add)
    with refused(INVALID_GRAPH, "another node"):
        device.graph((2, 1, 0), [Node(add, [0, 1], [2])])
    device.destroy(graph)
    device.destroy(split)
    assert device.live("operation") == 0


def allowed_graphs(device: Device) -> None:
    """Unused inputs and internals, reading an output, writing in place, writing an input."""
    ids = (([0, 0], [2]), ([2, 2], [2]), ([2, 0], [0]))
    nodes = [Node(device.create("Elewise", **ADD), ins, outs) for ins, outs in ids]
    x, unused = device.put(random(1, 2, 16)), device.put(random(2, 2, 16))
    graph = device.graph((2, 1, 1), nodes)
    out = device.empty((2, 16), np.float16)
    (four,) = device.run(graph, [x, unused], [out])
    np.testing.assert_array_equal(four, (x.host + x.host) + (x.host + x.host))
    np.testing.assert_array_equal(device.get(x), four + x.host)
    device.destroy(graph)
    device.free(*[t.device or 0 for t in (x, unused, out)])
    assert device.errors() == 0, device.log()


def views_in_graphs(device: Device) -> None:
    key, cache = random(1, 3, 32), np.zeros((2, 16, 2, 16), np.float16)
    node = Node(device.create("ReshapeAndCache"), [0, 0, 1, 2, 3], [1, 2], {0: 2, 1: 2})
    copy = Node(device.create("Elewise", **ADD), [0, 0], [4])
    graph = device.graph((4, 1, 0), [node, copy])
    ins = [device.put(key), device.put(cache), device.put(cache), device.put(np.array([3, 4, 5], I32))]
    out = device.empty((3, 32), np.float16)
    device.run(graph, ins, [out])
    np.testing.assert_array_equal(device.get(ins[1])[0, 3:6].reshape(3, 32), key)
    device.destroy(graph)
    split = device.create("Split", splitDim=1)
    bad = device.graph((1, 2, 0), [Node(split, [0], [1, 2], {0: -2})])
    with refused(18, "reshape"):
        device.setup(bad, [ins[0]], [desc(3, 16), desc(3, 16)])
    device.destroy(bad)
    device.free(*[t.device or 0 for t in [*ins, out]])


def silent_in_graphs(device: Device) -> None:
    """What ATB checks only outside graphs, and the double everywhere."""
    rows, cache = device.put(random(1, 3, 2, 16)), device.put(random(2, 2, 16, 2, 16))
    slots = device.put(np.array([0, 1, 2], I32))
    nodes = [
        Node(device.create("ReshapeAndCache"), [0, 0, 1, 1, 2], [4, 5]),
        Node(device.create("Elewise", **ADD), [4, 5], [3]),
    ]
    graph = device.graph((3, 1, 2), nodes)
    device.setup(graph, [rows, cache, slots], [desc(2, 16, 2, 16)])
    assert "must be the buffer of input 2" in device.log()
    device.clear()
    device.setup(graph, [rows, cache, slots], [desc(2, 16, 2, 8)])
    assert "the nodes write f16[2, 16, 2, 16]" in device.log()
    device.clear()
    device.setup(graph, [rows, cache, slots], [desc(2, 16, 2, 16, dtype=BF16)])
    assert "is described as bf16" in device.log()
    device.destroy(graph)
    device.clear()
    key = device.put(random(1, 3, 32))
    write = Node(device.create("ReshapeAndCache"), [0, 0, 1, 1, 2], [4, 5], {0: 3, 1: 2})  # 32 is no multiple of 3
    graph = device.graph((3, 1, 2), [write, Node(device.create("Elewise", **ADD), [4, 5], [3])])
    with refused(DIM):
        device.setup(graph, [key, cache, slots], [desc(2, 16, 2, 16)])
    assert "a reshape function turned" in device.log()
    device.destroy(graph)
    device.clear()
    small, large = device.put(random(1, 16)), device.put(random(1, 3, 16))
    nodes = [
        Node(device.create("Elewise", **ADD), [0, 1], [1]),  # broadcasts, and so writes more than is there
        Node(device.create("Elewise", **ADD), [0, 0], [2]),
    ]
    graph = device.graph((2, 1, 0), nodes)
    device.setup(graph, [large, small], [desc(3, 16)])
    assert "into input f16[16]" in device.log()
    device.destroy(graph)
    device.free(*[t.device or 0 for t in (rows, cache, slots, key, small, large)])


DEFAULT: list[Callable[[Device], None]] = [
    parameters,
    inputs,
    outputs_of_single_operations,
    tensors_and_streams,
    execute,
    workspace,
    bad_graphs,
    allowed_graphs,
    views_in_graphs,
    silent_in_graphs,
]

if __name__ == "__main__":
    main(DEFAULT)
