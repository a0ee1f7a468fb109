"""Operations of the test double against NumPy in float64. Run as a program: ROOT SCENARIO..., prints what failed."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from atb_double_driver import NZ, Array, Device, DeviceTensor, refused

BF16 = ml_dtypes.bfloat16
# Half the spacing of a type's values, relative to the value: what rounding to it may cost.
HALF_STEP = {np.dtype(np.float16): 2.0**-11, np.dtype(BF16): 2.0**-8, np.dtype(np.float32): 2.0**-24}
FLOATS = (np.float16, BF16)


def random(seed: int, *shape: int, dtype: Any = np.float16, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def wide(values: Array) -> Array:
    return values.astype(np.float64)


def close(found: Array, expected: Array, terms: Array | float = 1.0) -> None:
    """Within the output's rounding, and the rounding of float sums whose terms add up to `terms` in magnitude."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    bound = HALF_STEP[found.dtype] * np.abs(expected) * 1.01 + 1e-5 * np.abs(terms) + 2.0**-25
    worst = np.abs(wide(found) - expected) - bound
    assert np.all(worst <= 0), (
        f"off by {worst.max()} beyond the bound at {np.unravel_index(worst.argmax(), worst.shape)}"
    )


def check(
    device: Device,
    kind: str,
    ins: Sequence[Array | DeviceTensor],
    expected: Sequence[Array],
    terms: Any = 1.0,
    **fields: Any,
) -> None:
    """Infers, runs and compares; every input that is an array goes to the device."""
    op = device.create(kind, **fields)
    tensors = [x if isinstance(x, DeviceTensor) else device.put(x) for x in ins]
    outs = [device.empty(o.shape, o.dtype, o.format) for o in device.infer(op, tensors, len(expected))]
    for found, wanted in zip(device.run(op, tensors, outs), expected, strict=True):
        if found.dtype in HALF_STEP:
            close(found, wanted, terms)
        else:
            np.testing.assert_array_equal(found, wanted)
    device.destroy(op)
    device.free(*[t.device for t in [*tensors, *outs] if t.device])


def gather(device: Device) -> None:
    for dtype in (np.float16, BF16, np.float32, np.int64):
        table = (np.arange(60).reshape(10, 6) - 7).astype(dtype)
        for index_type in (np.int32, np.int64):
            rows = np.array([9, 0, 3, 3], index_type)
            check(device, "Gather", [table, rows], [wide(table)[rows]], axis=0)
        check(device, "Gather", [table, np.array([[5, 0]], np.int32)], [wide(table)[:, [[5, 0]]]], axis=1)


def rms_norm(device: Device) -> None:
    for dtype in FLOATS:
        x, gamma = random(1, 3, 64, dtype=dtype), random(2, 64, dtype=dtype)
        residual = random(3, 3, 64, dtype=dtype)

        def norm(values: Array, gamma: Array = gamma) -> Array:
            return values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-3) * wide(gamma)

        check(device, "RmsNorm", [x, gamma], [norm(wide(x))], layerType=1, epsilon=1e-3)
        total = wide(x) + wide(residual)
        check(device, "RmsNorm", [x, residual, gamma], [norm(total), total], layerType=2, preEpsilon=1e-3)
        check(device, "RmsNorm", [x, residual, gamma], [norm(total)], layerType=3, postEpsilon=1e-3)


def linear(device: Device) -> None:
    for dtype in FLOATS:
        for m, k, n in ((1, 1, 1), (3, 40, 17), (5, 7, 33)):
            x, w = random(m, m, k, dtype=dtype), random(n, n, k, dtype=dtype)
            y, terms = wide(x) @ wide(w).T, np.abs(wide(x)) @ np.abs(wide(w)).T
            check(device, "Linear", [x, w], [y], terms, hasBias=0)
            check(device, "Linear", [x, np.ascontiguousarray(w.T)], [y], terms, hasBias=0, transposeB=0)
            for bias_type in (dtype, np.float32):
                bias = random(9, n, dtype=bias_type)
                check(device, "Linear", [x, w, bias], [y + wide(bias)], terms + 4, hasBias=1)


def linear_with_nz_weight(device: Device) -> None:
    x, w = random(1, 3, 48), random(2, 32, 48)
    y, terms = wide(x) @ wide(w).T, np.abs(wide(x)) @ np.abs(wide(w)).T
    op = device.create("Transdata", transdataType=2)
    weight = device.put(w)
    (shape,) = device.infer(op, [weight])
    assert (shape.shape, shape.format) == ((1, 3, 32, 16), NZ)
    packed = device.empty(shape.shape, w.dtype, NZ)
    (stored,) = device.run(op, [weight], [packed])
    np.testing.assert_array_equal(stored[0], w.reshape(32, 3, 16).transpose(1, 0, 2))
    check(device, "Linear", [x, packed], [y], terms, hasBias=0)
    device.destroy(op)
    back = device.create("Transdata", transdataType=1, outCrops=(32, 48))
    nz = device.put(stored, NZ)
    out = device.empty((1, 32, 48), w.dtype)
    np.testing.assert_array_equal(device.run(back, [nz], [out])[0][0], w)
    device.destroy(back)
    device.free(*[t.device or 0 for t in (weight, nz, out)])


def shapes(device: Device) -> None:
    x = random(1, 3, 12)
    check(device, "Split", [x], np.split(wide(x), 3, 1), splitDim=1, splitNum=3)
    check(device, "Split", [x], np.split(wide(x), [8, 10], 1), splitDim=1, splitNum=3, splitSizes=(8, 2, 2))
    check(device, "Split", [x], np.split(wide(x), 2, 1), splitDim=-1, splitNum=2)
    check(device, "Concat", [x, x], [np.concatenate([wide(x)] * 2, 1)], concatDim=1)
    y = random(2, 2, 3, 4)
    check(device, "Transpose", [y], [wide(y).transpose(1, 0, 2)], perm=(1, 0, 2))
    check(device, "Slice", [y], [wide(y)[:, 1:3, -2:]], offsets=(0, 1, -2), size=(-1, 2, 2))


def elementwise(device: Device) -> None:
    for dtype in FLOATS:
        x, y = random(1, 3, 8, dtype=dtype), random(2, 8, dtype=dtype)
        check(device, "Elewise", [x, y], [wide(x) + wide(y)], 8, elewiseType=8)
        check(device, "Elewise", [x, y], [wide(x) * wide(y)], 8, elewiseType=9)
        check(device, "Elewise", [x], [wide(x) * 2.5], elewiseType=2, varAttr=2.5)
        check(device, "Elewise", [x], [wide(x)], elewiseType=1, outTensorType=0)
        half = wide(x)
        gate, up = half[:, :4], half[:, 4:]
        check(device, "Activation", [x], [gate / (1 + np.exp(-gate)) * up], 4, activationType=6)
        check(device, "Activation", [x], [half / (1 + np.exp(-half))], activationType=4)


def rope(device: Device) -> None:
    tokens, q_heads, k_heads, head = 3, 4, 2, 8
    angles = np.random.default_rng(3).uniform(0, 6, (tokens, head // 2))
    for dtype, table in ((np.float16, np.float16), (np.float16, np.float32), (BF16, BF16)):
        q, k = random(1, tokens, q_heads * head, dtype=dtype), random(2, tokens, k_heads * head, dtype=dtype)
        cos = np.cos(np.tile(angles, 2)).astype(table)
        sin = np.sin(np.tile(angles, 2)).astype(table)

        def turn(x: Array, cos: Array = cos, sin: Array = sin) -> Array:
            heads = wide(x).reshape(tokens, -1, head)
            swapped = np.concatenate([-heads[..., head // 2 :], heads[..., : head // 2]], -1)
            return (heads * wide(cos)[:, None] + swapped * wide(sin)[:, None]).reshape(x.shape)

        lengths = np.array([2, 1], np.int32)
        check(device, "Rope", [q, k, cos, sin, lengths], [turn(q), turn(k)], 8, rotaryCoeff=2)


def reference_attention(q: Array, k: Array, v: Array, scale: float, past: int = 0) -> Array:
    """Causal; q [rows, H, D], k and v [length, K, D]; row 0 stands at position `past`."""
    q, k, v = wide(q), wide(k), wide(v)
    group = q.shape[1] // k.shape[1]
    scores = np.einsum("ihd,jhd->hij", q, np.repeat(k, group, 1)) * scale
    allowed = np.arange(k.shape[0])[None, :] <= past + np.arange(q.shape[0])[:, None]
    scores = np.where(allowed, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hij,jhd->ihd", weights / weights.sum(-1, keepdims=True), np.repeat(v, group, 1))


def triangle(size: int, value: float, dtype: Any) -> Array:
    return np.where(np.triu(np.ones((size, size), bool), 1), value, 0.0).astype(dtype)


def encoder_attention(device: Device) -> None:
    lengths = np.array([5, 130, 1], np.int32)
    total, h, kv, d = int(lengths.sum()), 4, 2, 16
    for dtype, kernel, value in ((np.float16, 0, -np.inf), (np.float16, 0, -1e4), (np.float16, 1, 1), (BF16, 0, 1)):
        q, k, v = (random(i, total, heads, d, dtype=dtype) for i, heads in enumerate((h, kv, kv)))
        ends = np.cumsum(lengths)
        parts = [slice(end - n, end) for end, n in zip(ends, lengths, strict=True)]
        expected = np.concatenate([reference_attention(q[p], k[p], v[p], 0.3) for p in parts])
        fields = {"headNum": h, "kvHeadNum": kv, "qkScale": 0.3, "calcType": 3, "kernelType": kernel}
        for mask_type, triangular, size in ((1, 1, 128), (3, 1, 128), (1, 0, 130), (1, 1, 140)):
            mask = triangle(size, value, dtype)
            check(
                device,
                "SelfAttention",
                [q, k, v, mask, lengths],
                [expected],
                4,
                **fields,
                maskType=mask_type,
                isTriuMask=triangular,
            )
        flat = [x.reshape(total, -1) for x in (q, k, v)]
        mask = triangle(128, value, dtype)
        check(
            device,
            "SelfAttention",
            [*flat, mask, lengths],
            [expected.reshape(total, -1)],
            4,
            **fields,
            maskType=3,
            isTriuMask=1,
        )


def wrong_mask_values_show(device: Device) -> None:
    lengths = np.array([6], np.int32)
    fields = {"headNum": 1, "calcType": 3, "maskType": 3, "isTriuMask": 1, "qkScale": 0.3}
    for dtype, value in ((BF16, -np.inf), (np.float16, 1.0)):
        q = random(1, 6, 1, 16, dtype=dtype)
        expected = reference_attention(q, q, q, 0.3)
        try:
            check(device, "SelfAttention", [q, q, q, triangle(128, value, dtype), lengths], [expected], 4, **fields)
        except AssertionError:
            continue
        raise AssertionError(f"a mask of {value} passed with {dtype}")


def half_scores_overflow(device: Device) -> None:
    """The fp16 kernel keeps raw scores in half; HIGH_PRECISION does not."""
    q = np.full((2, 1, 16), 100, np.float16)
    expected = reference_attention(q, q, q, 1e-3)
    fields = {"headNum": 1, "calcType": 3, "maskType": 3, "isTriuMask": 1, "qkScale": 1e-3}
    lengths = np.array([2], np.int32)
    check(
        device, "SelfAttention", [q, q, q, triangle(128, 1, np.float16), lengths], [expected], 4, kernelType=1, **fields
    )
    try:
        check(device, "SelfAttention", [q, q, q, triangle(128, -np.inf, np.float16), lengths], [expected], 4, **fields)
    except AssertionError:
        return
    raise AssertionError("scores of 160000 fit into half")


class PagedCase:
    """Two sequences in a paged cache, with blocks out of order."""

    def __init__(self, dtype: Any, block: int, lengths: Sequence[int], rows: Sequence[int], d: int = 16) -> None:
        self.h, self.kv, self.d, self.block = 4, 2, d, block
        self.lengths, self.rows = np.array(lengths, np.int32), np.array(rows, np.int32)
        blocks_each = -(-max(lengths) // block)
        self.num_blocks = 2 * blocks_each + 1
        order = np.random.default_rng(0).permutation(self.num_blocks)
        self.tables = np.array(order[: 2 * blocks_each].reshape(2, blocks_each), np.int32)
        self.q = random(1, sum(rows), self.h, d, dtype=dtype)
        self.k, self.v = (np.full((self.num_blocks, block, self.kv, d), np.nan, dtype) for _ in range(2))
        parts, first = [], 0
        for s, (length, count) in enumerate(zip(lengths, rows, strict=True)):
            keys, values = (
                random(10 + s, length, self.kv, d, dtype=dtype),
                random(20 + s, length, self.kv, d, dtype=dtype),
            )
            for position in range(length):
                at = self.tables[s, position // block], position % block
                self.k[at], self.v[at] = keys[position], values[position]
            parts.append(reference_attention(self.q[first : first + count], keys, values, 0.3, length - count))
            first += count
        self.expected = np.concatenate(parts)
        self.fields = {"headNum": self.h, "kvHeadNum": self.kv, "qkScale": 0.3}

    def nz(self, cache: Array) -> Array:
        rows = cache.reshape(self.num_blocks, self.block, -1, 16)
        return np.ascontiguousarray(rows.transpose(0, 2, 1, 3))


def paged_attention(device: Device) -> None:
    for dtype in FLOATS:
        case = PagedCase(dtype, 16, (37, 5), (1, 1))
        ins = [case.q, case.k, case.v, case.tables, case.lengths]
        check(device, "PagedAttention", ins, [case.expected], 4, **case.fields)
        spec = PagedCase(dtype, 16, (37, 5), (7, 5))
        for mask_type in (1, 3):
            square = triangle(40, -1e4, dtype)
            rows = [square[n - c : n] for n, c in zip(spec.lengths, spec.rows, strict=True)]
            mask = square if mask_type == 1 else np.concatenate(rows)
            ins = [spec.q, spec.k, spec.v, spec.tables, spec.lengths, mask, spec.rows]
            check(device, "PagedAttention", ins, [spec.expected], 4, **spec.fields, calcType=1, maskType=mask_type)


def prefix_attention(device: Device) -> None:
    for dtype in FLOATS:
        case = PagedCase(dtype, 128, (128 + 9, 256 + 3), (9, 3))
        mask = triangle(128, 1, dtype)
        ins = [case.q, case.k, case.v, case.tables, mask, case.rows, case.lengths]
        fields = {**case.fields, "calcType": 4, "kernelType": 1, "isTriuMask": 1}
        check(device, "SelfAttention", ins, [case.expected], 4, **fields, maskType=3)
        if device.has_causal_mask:
            check(device, "SelfAttention", [*ins[:4], *ins[5:]], [case.expected], 4, **fields, maskType=9)


def cache_write(device: Device) -> None:
    key, value = random(1, 3, 2, 16), random(2, 3, 2, 16)
    slots = np.array([17, 0, 30], np.int32)
    for nz in (False, True):
        caches = [
            device.put(random(3 + i, 2, 16, 2, 16) if not nz else random(3 + i, 2, 2, 16, 16), NZ if nz else 2)
            for i in range(2)
        ]
        before = [device.get(c) for c in caches]
        op = device.create("ReshapeAndCache", kvCacheCfg=2 if nz else 0)
        ins = [device.put(key), device.put(value), *caches, device.put(slots)]
        for found, old, rows in zip(device.run(op, ins, caches), before, (key, value), strict=True):
            expected = old.copy()
            for token, slot in enumerate(slots):
                if nz:
                    expected[slot // 16, :, slot % 16] = rows[token].reshape(2, 16)
                else:
                    expected[slot // 16, slot % 16] = rows[token]
            np.testing.assert_array_equal(found, expected)
        device.destroy(op)
        device.free(*[t.device or 0 for t in ins])


def sampling(device: Device) -> None:
    x = random(1, 3, 9, dtype=np.float32)
    order = np.argsort(-x, axis=-1, kind="stable")[:, :2]
    check(device, "Sort", [x], [np.take_along_axis(wide(x), order, -1), order.astype(np.int32)], num=(2,))
    e = np.exp(wide(x) - wide(x).max(-1, keepdims=True))
    check(device, "Softmax", [x], [e / e.sum(-1, keepdims=True)], axes=(-1,))


def half_rounding(device: Device) -> None:
    """Casting float to half and bf16 rounds like NumPy, at every exponent, at ties, and beyond the largest."""
    bits = np.arange(0, 1 << 16, 7, dtype=np.uint32)
    values = np.concatenate([(bits << 16).view(np.float32), ((bits << 16) + 0x8000).view(np.float32)])
    values = np.concatenate([values, np.float32([65519.9, 65520, 65504, 2.0**-25, 2.0**-24 * 1.5, 2.0**-14])])
    values = values[np.isfinite(values)]
    op_types = ((np.float16, 1), (BF16, 27))
    for dtype, code in op_types:
        op = device.create("Elewise", elewiseType=1, outTensorType=code)
        x, out = device.put(values), device.empty(values.shape, dtype)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(
                device.run(op, [x], [out])[0].view(np.uint16), values.astype(dtype).view(np.uint16)
            )
        device.destroy(op)
        device.free(x.device or 0, out.device or 0)


def chip_without_bf16(device: Device) -> None:
    x = DeviceTensor(np.dtype(BF16), (2, 16))
    op = device.create("RmsNorm", layerType=1)
    with refused(13):
        device.infer(op, [x, DeviceTensor(np.dtype(BF16), (16,))])
    device.destroy(op)


def chip_paged_attention(device: Device) -> None:
    case = PagedCase(np.float16, 16, (37, 5), (1, 1))
    caches = [device.put(case.nz(c), NZ) for c in (case.k, case.v)]
    check(device, "PagedAttention", [case.q, *caches, case.tables, case.lengths], [case.expected], 4, **case.fields)


DEFAULT: list[Callable[[Device], None]] = [
    gather,
    rms_norm,
    linear,
    linear_with_nz_weight,
    shapes,
    elementwise,
    rope,
    encoder_attention,
    wrong_mask_values_show,
    half_scores_overflow,
    paged_attention,
    prefix_attention,
    cache_write,
    sampling,
    half_rounding,
]
CHIP_310P: list[Callable[[Device], None]] = [chip_without_bf16, chip_paged_attention]


def main(scenarios: Sequence[Callable[[Device], None]]) -> None:
    """Runs the scenarios named on the command line, and prints a JSON object: name to traceback, or to nothing."""
    device = Device(Path(sys.argv[1]))
    found = {}
    by_name = {scenario.__name__: scenario for scenario in scenarios}
    for name in sys.argv[2:]:
        device.clear()
        try:
            by_name[name](device)
            found[name] = ""
        except Exception:  # noqa: BLE001
            found[name] = traceback.format_exc() + device.log()
    device.close()
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(DEFAULT + CHIP_310P)
