"""Every kernel of every instruction set level that this machine or its emulator has, against float64.

Tolerances. A sum of n products in f32, in any order, is off by at most about n * eps * sum |a_i b_i| (Higham, "Accuracy
and Stability of Numerical Algorithms", section 3.1), eps = 2^-24; the dot product instruction rounds twice a step and
flushes denormals, which the factor 2 and the tiny absolute term cover. Inputs are rounded to their storage type first,
so that only the arithmetic is judged.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from reference import kernel_client as kernels
from reference.kernel_client import LEVELS

EPS = 2.0**-24
TINY = 1e-30
STORAGE = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "coded": ml_dtypes.bfloat16,  # in 12 bits
}


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    return x.astype(STORAGE[dtype]).astype(np.float32)


def operands(isa: str, dtype: str) -> list[str]:
    return ["f32", "f32r"] + (["bf16"] if kernels.has_bf16_dot(isa) and STORAGE[dtype] == ml_dtypes.bfloat16 else [])


def product_case(
    rows: int, columns: int, inner: int, dtype: str, operand: str, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, inner)).astype(np.float32)
    w = rounded(random.standard_normal((columns, inner)).astype(np.float32), dtype)
    exact_x = x if operand == "f32" else rounded(x, "bfloat16")
    return x, w, exact_x.astype(np.float64)


def check_product(result: np.ndarray, x: np.ndarray, w: np.ndarray, extra: np.ndarray | float = 0.0) -> None:
    w = w.astype(np.float64)
    bound = 2 * (x.shape[1] + 2) * EPS * (np.abs(x) @ np.abs(w).T + np.abs(extra)) + TINY
    np.testing.assert_array_less(np.abs(result - (x @ w.T + extra)), bound)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("dtype", STORAGE)
def test_linear_of_every_row_count(isa: str, dtype: str) -> None:
    for operand in operands(isa, dtype):
        for rows in [*range(1, 27), 36, 37, 64, 65]:
            x, w, exact_x = product_case(rows, 70, 40, dtype, operand, seed=rows)
            check_product(kernels.linear(isa, x, w, dtype, operand), exact_x, w)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("dtype", STORAGE)
def test_linear_of_every_width(isa: str, dtype: str) -> None:
    for operand in operands(isa, dtype):
        for columns in [*range(1, 68), 127, 128, 129]:
            for rows in (1, 5, 40):
                x, w, exact_x = product_case(rows, columns, 18, dtype, operand, seed=columns)
                check_product(kernels.linear(isa, x, w, dtype, operand), exact_x, w)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("dtype", STORAGE)
def test_linear_of_every_inner_size(isa: str, dtype: str) -> None:
    for operand in operands(isa, dtype):
        for inner in [*range(2, 70, 2), 576, 1000]:
            for misalignment in (0, 4, 12, 36):
                x, w, exact_x = product_case(7, 33, inner, dtype, operand, seed=inner)
                check_product(kernels.linear(isa, x, w, dtype, operand, misalignment=misalignment), exact_x, w)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("dtype", STORAGE)
def test_linear_in_several_blocks_of_the_inner_size(isa: str, dtype: str) -> None:
    for operand in operands(isa, dtype):
        for rows in (1, 13, 40, 256):  # one tile, several of few rows, several of many, the most there may be
            x, w, exact_x = product_case(rows, 70, 2100, dtype, operand, seed=rows)
            result = kernels.linear(isa, x, w, dtype, operand)
            check_product(result, exact_x, w)
            np.testing.assert_array_equal(kernels.linear(isa, x[:1], w, dtype, operand), result[:1])


@pytest.mark.parametrize("isa", LEVELS)
def test_linear_epilogues(isa: str) -> None:
    for operand in operands(isa, "bfloat16"):
        for rows, columns in [(1, 32), (3, 50), (13, 96), (50, 64)]:
            x, w, exact_x = product_case(rows, columns, 24, "bfloat16", operand, seed=rows)
            random = np.random.default_rng(99)
            bias = random.standard_normal(columns).astype(np.float32)
            initial = random.standard_normal((rows, columns)).astype(np.float32)
            check_product(
                kernels.linear(isa, x, w, "bfloat16", operand, bias=bias), exact_x, w, bias.astype(np.float64)
            )
            added = kernels.linear(isa, x, w, "bfloat16", operand, epilogue="add", bias=bias, initial=initial)
            check_product(added, exact_x, w, bias + initial.astype(np.float64))


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("ffn", [1, 15, 16, 17, 48, 50])
def test_linear_swiglu(isa: str, ffn: int) -> None:
    for operand in operands(isa, "bfloat16"):
        for rows in (1, 6, 40):
            x, w, exact_x = product_case(rows, 2 * ffn, 24, "bfloat16", operand, seed=ffn)
            gate, up = exact_x @ w[:ffn].T.astype(np.float64), exact_x @ w[ffn:].T.astype(np.float64)
            expected = gate / (1 + np.exp(-gate)) * up
            result = kernels.linear(isa, x, w, "bfloat16", operand, epilogue="swiglu")
            # The sums' errors pass through silu (slope at most 1.1) and the product; the result may be rounded to bf16.
            sums = 2 * 26 * EPS * (np.abs(exact_x) @ np.abs(w).T.astype(np.float64))
            bound = (
                1.1 * sums[:, :ffn] * np.abs(up)
                + sums[:, ffn:] * np.abs(gate)
                + (8 * EPS + (operand != "f32") * 2.0**-8) * np.abs(expected)
            )
            np.testing.assert_array_less(np.abs(result - expected), bound + 1e-12)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("dtype", STORAGE)
def test_linear_does_not_depend_on_rows_or_pieces(isa: str, dtype: str) -> None:
    for operand in operands(isa, dtype):
        x, w, _ = product_case(70, 200, 96, dtype, operand, seed=5)
        whole = kernels.linear(isa, x, w, dtype, operand)
        for rows in [1, 2, 3, 5, 6, 11, 12, 13, 24, 36, 37, 48]:
            np.testing.assert_array_equal(kernels.linear(isa, x[:rows], w, dtype, operand), whole[:rows])
        for pieces in (1, 2, 3):
            np.testing.assert_array_equal(kernels.linear(isa, x, w, dtype, operand, panels_per_call=pieces), whole)


def weights_with_strangers(rows: int, columns: int, share: float) -> np.ndarray:
    """Weights as models have them, of which a share has any bits at all: zeros, subnormal, huge and infinite ones."""
    random = np.random.default_rng(rows)
    bits = (random.standard_normal((rows, columns)) * 0.02).astype(ml_dtypes.bfloat16).view(np.uint16)
    strangers = random.integers(0, 1 << 16, bits.shape, dtype=np.uint16)
    strangers[strangers & 0x7F80 == 0x7F80] &= 0xFF80  # no payloads of NaN: they travel as floats
    bits = np.where(random.random(bits.shape) < share, strangers, bits)
    bits[random.random(bits.shape) < 0.01] = 0
    return bits.view(ml_dtypes.bfloat16).astype(np.float32)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("share", [0.0, 0.0005, 0.02, 1.0])  # no escapes, some, too many to code some panels, or any
def test_coded_weights_are_the_same_weights(isa: str, share: float) -> None:
    w = weights_with_strangers(70, 1100, share)
    np.testing.assert_array_equal(kernels.decoded_rows(isa, w).view(np.uint32), w.view(np.uint32))
    w[~np.isfinite(w) | (np.abs(w) > 1e6)] = 0.0  # sums of products shall stay numbers
    x = np.random.default_rng(1).standard_normal((256, 1100)).astype(np.float32)
    for operand in operands(isa, "coded"):
        for rows in (1, 2, 7, 12, 13, 36, 40, 256):
            plain = kernels.linear(isa, x[:rows], w, "bfloat16", operand)
            coded = kernels.linear(isa, x[:rows], w, "coded", operand)
            np.testing.assert_array_equal(coded.view(np.uint32), plain.view(np.uint32))


@pytest.mark.parametrize("isa", LEVELS)
def test_coded_weights_with_an_escape_in_every_place(isa: str) -> None:
    """A panel in which one element has an exponent of its own: each in turn, of a small panel; some, of a large one.

    With four columns there is no room for an escape, so that the panel stays plain.
    """
    for columns in (4, 16, 1032):
        w = np.full((32, columns), 0.5, np.float32)
        for place in range(0, w.size, 1 if columns < 1000 else 97):
            marked = w.copy()
            marked.flat[place] = 3e-30
            np.testing.assert_array_equal(kernels.decoded_rows(isa, marked), rounded(marked, "bfloat16"))


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("operand", ["f32", "f32r", "bf16"])
def test_rms_norm(isa: str, operand: str) -> None:
    for columns in [*range(1, 40), 576, 1000]:
        for misalignment in (0, 4, 20):
            random = np.random.default_rng(columns)
            x = (random.standard_normal(columns) * 3).astype(np.float32)
            weight = random.standard_normal(columns).astype(np.float32)
            exact = x / np.sqrt(np.mean(x.astype(np.float64) ** 2) + 1e-5) * weight
            result = kernels.rms_norm(isa, x, weight, 1e-5, operand, misalignment)
            bound = ((columns + 8) * EPS + (operand != "f32") * 2.0**-8) * np.abs(exact) + 1e-12
            np.testing.assert_array_less(np.abs(result - exact), bound)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    a, b = x[..., :half].astype(np.float64), x[..., half:].astype(np.float64)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class AttentionCase:
    """Random keys, values and queries of one kv head, and the exact answer."""

    def __init__(
        self, context: int, tokens: int, group: int, dim: int, dtype: str, seed: int, block_size: int = 16
    ) -> None:
        random = np.random.default_rng(seed)
        self.q = (random.standard_normal((tokens, group, dim)) * 2).astype(np.float32)
        self.keys = random.standard_normal((context, dim)).astype(np.float32)
        self.values = random.standard_normal((context, dim)).astype(np.float32)
        angles = random.uniform(0, 6.28, (context, dim // 2))
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        num_blocks = -(-context // block_size) + 3
        self.block_table = random.permutation(num_blocks).astype(np.int32)
        self.block_size, self.num_blocks, self.dtype = block_size, num_blocks, dtype
        self.scale = float(np.float32(1 / np.sqrt(dim)))

    def exact(self, operand: str) -> np.ndarray:
        context, tokens, dim = len(self.keys), len(self.q), self.q.shape[2]
        keys = rounded(rotate(self.keys, self.cos, self.sin).astype(np.float32), self.dtype).astype(np.float64)
        values = rounded(self.values, self.dtype).astype(np.float64)
        first = context - tokens
        q = rotate(self.q, self.cos[first:, None], self.sin[first:, None]).astype(np.float32)
        q = (q if operand == "f32" else rounded(q, "bfloat16")).astype(np.float64)
        out = np.empty((tokens, self.q.shape[1], dim))
        for t in range(tokens):
            scores = q[t] @ keys[: first + t + 1].T * self.scale
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[t] = weights @ values[: first + t + 1] / weights.sum(axis=1, keepdims=True)
        return out

    def run(
        self,
        isa: str,
        operand: str,
        order: np.ndarray | None = None,
        garbage: float = np.nan,
        tokens: int | None = None,
    ) -> np.ndarray:
        return kernels.attention(
            isa=isa,
            q=self.q if tokens is None else self.q[-tokens:],
            keys=self.keys,
            values=self.values,
            cos=self.cos,
            sin=self.sin,
            block_table=self.block_table,
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            scale=self.scale,
            dtype=self.dtype,
            operand=operand,
            write_order=np.arange(len(self.keys)) if order is None else order,
            garbage=garbage,
        )


def attention_cases(isa: str) -> list[tuple[str, str]]:
    return [("float32", "f32"), ("bfloat16", "f32r")] + ([("bfloat16", "bf16")] if kernels.has_bf16_dot(isa) else [])


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("dim", [16, 18, 64, 80, 128])
def test_attention_against_float64(isa: str, dim: int) -> None:
    for dtype, operand in attention_cases(isa):
        for context, tokens, group in [
            (1, 1, 1),
            (2, 2, 3),
            (15, 15, 1),
            (16, 3, 7),
            (17, 1, 4),
            (40, 33, 3),
            (300, 1, 7),
            (515, 20, 2),
        ]:
            case = AttentionCase(context, tokens, group, dim, dtype, seed=context)
            result = case.run(isa, operand)
            # Scores are off by at most (D + 2) eps |q| |k| scale, about 1e-4 here. Queries, weights and outputs may be
            # rounded to bf16; outputs are averages of values below 4, whose half steps are 2^-8.
            error = np.abs(result - case.exact(operand)).max()
            assert error < (2e-4 if operand == "f32" else 2.0**-7), (dtype, operand, context, tokens, group, error)


@pytest.mark.parametrize("isa", LEVELS)
def test_attention_does_not_depend_on_chunks_or_garbage(isa: str) -> None:
    for dtype, operand in attention_cases(isa):
        case = AttentionCase(530, 300, 3, 32, dtype, seed=3)
        whole = case.run(isa, operand)
        assert np.isfinite(whole).all()
        for tokens in (1, 2, 5, 17, 100):
            np.testing.assert_array_equal(case.run(isa, operand, tokens=tokens), whole[-tokens:])
        # What lies in the cache beyond the context, and the order of writing, make no difference. Positions of a group
        # that follow one another are written at once: here one by one, and parts of groups from even and odd positions.
        backwards = np.arange(529, -1, -1)
        in_parts = np.concatenate(np.array_split(np.arange(530), 75)[::-1])
        for order in (backwards, in_parts):
            np.testing.assert_array_equal(case.run(isa, operand, order=order, garbage=0.0), whole)
        shorter = AttentionCase(530, 300, 3, 32, dtype, seed=3)
        shorter.keys, shorter.values = shorter.keys[:519], shorter.values[:519]
        shorter.cos, shorter.sin = shorter.cos[:519], shorter.sin[:519]
        shorter.q = shorter.q[:289]
        np.testing.assert_array_equal(shorter.run(isa, operand), whole[:289])


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_attention_of_few_rows_is_that_of_many(isa: str, dim: int) -> None:
    for dtype, operand in attention_cases(isa):
        for group in range(1, 10):  # tiles differ in shape by the number of rows
            case = AttentionCase(290, 50, group, dim, dtype, seed=group)
            np.testing.assert_array_equal(case.run(isa, operand, tokens=1), case.run(isa, operand)[-1:])


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_attention_does_not_depend_on_block_size(isa: str, block_size: int) -> None:
    for dtype, operand in attention_cases(isa):
        expected = AttentionCase(270, 9, 2, 64, dtype, seed=1).run(isa, operand)
        np.testing.assert_array_equal(
            AttentionCase(270, 9, 2, 64, dtype, seed=1, block_size=block_size).run(isa, operand), expected
        )


@pytest.mark.parametrize("isa", LEVELS)
def test_logit_reductions(isa: str) -> None:
    for n in [*range(1, 50), 1000, 1003]:
        x = np.random.default_rng(n).standard_normal(n).astype(np.float32) * 5
        assert kernels.max_value(isa, x) == x.max()
        exact = np.exp((x.astype(np.float64) - x.max()) * 0.7).sum()
        assert abs(kernels.sum_exp(isa, x, float(x.max()), 0.7) - exact) < exact * 1e-5
        low, high = float(np.sort(x)[n // 2]), float(np.sort(x)[3 * n // 4])
        for end in (high, float("inf")):
            expected = np.flatnonzero((x >= np.float32(low)) & (x < np.float32(end))).tolist()
            assert kernels.collect_between(isa, x, low, end) == expected
        weights = kernels.exp_weights(isa, x, float(x.max()), 0.7)
        np.testing.assert_allclose(weights, np.exp((x.astype(np.float64) - x.max()) * 0.7), rtol=1e-5)
        for threshold in (0.0, float(np.sort(weights)[n // 2])):
            exact = weights[weights >= np.float32(threshold)].astype(np.float64).sum()
            assert abs(kernels.sum_at_least(isa, weights, threshold) - exact) <= exact * 1e-6
    assert kernels.max_value(isa, np.full(40, -np.inf, np.float32)) == -np.inf
    impossible = np.array([0, -np.inf, np.nan, -90, -80] * 9, np.float32)
    assert (kernels.exp_weights(isa, impossible, 0.0, 1.0) > 0).tolist() == [True, False, False, False, True] * 9


@pytest.mark.parametrize("isa", LEVELS)
def test_exp_is_accurate_over_its_range(isa: str) -> None:
    # sum_exp of one element is the kernel's exp itself.
    for x in np.linspace(-87, 0, 4001, dtype=np.float32):
        exact = np.exp(np.float64(x))
        assert abs(kernels.sum_exp(isa, np.array([x], np.float32), 0.0, 1.0) - exact) <= 2.5 * EPS * 2 * exact


@pytest.mark.parametrize("isa", [LEVELS[0], LEVELS[-1]])  # natively and emulated: no level has its own
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scalar_conversions_round_to_nearest_even(dtype: str, isa: str) -> None:
    random = np.random.default_rng(1)
    x = np.concatenate(
        [
            random.standard_normal(1000),
            random.standard_normal(1000) * 1e-6,
            random.standard_normal(1000) * 1e4,
            [0, -0.0, np.inf, -np.inf, 1e30],
        ]
    ).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = rounded(x, dtype)
    np.testing.assert_array_equal(kernels.round_trip(isa, dtype, x), expected)
    assert np.isnan(kernels.round_trip(isa, dtype, np.array([np.nan], np.float32))).all()
