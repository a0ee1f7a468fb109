"""A float64 decoder for Llama and Qwen2 in plain numpy: the specification that the engine is tested against.

It shares no code with the engine and favours reading over speed. Weights keep their stored values and every
operation is float64. Only the rotary angles are rounded to float32, because that is how Hugging Face
defines them, and at position p it moves them by up to p roundoffs.

Shapes: `T` tokens of this call, `C` tokens of context (those in the cache and these), `E` hidden, `H`/`K`
query and key-value heads, `D` head size, `F` feed-forward, `V` vocabulary.

How far may a correct implementation be from it?
------------------------------------------------
A worst-case bound multiplies by the norm of every matrix on the way and is useless after a layer or two.
`tolerance` measures instead (Monte Carlo arithmetic, Parker 1997): it repeats the computation with a random
error wherever an implementation rounds, and sees how far the logits move. The network propagates the errors
itself, so no amplification is guessed. What is injected, u being the unit roundoff (2^-24 in float32, 2^-8
in bfloat16):

* An activation that is stored becomes x (1 + u r), with r uniform in [-1, 1].
* A sum y of k products a_i b_i is rounded k times, by at most u |s_j| each, where s_j are the partial sums.
  Taken as independent and uniform (after Higham and Mary 2019) these errors have variances (u s_j)^2 / 3.
  On the way from 0 to y the partial sums follow a straight line plus a random walk as long as n, the 2-norm
  of the k products, so the mean of s_j^2 is at most y^2 / 3 + n^2 / 2. Hence the error of the sum: normal,
  with variance (k u^2 / 3) (y^2 / 3 + n^2 / 2). SIMD lanes and blocking only shorten the chains.

A logit's deviation adds up many such errors, so it is close to normal, and the largest of a row, over V
tokens and a few samples, lies at some 3 standard deviations. `SAFETY` = 4 times that is 12: out of reach of
chance, with room for what the model leaves out (an exp that is good to 3 ulp, roundings that are
correlated). Transformers stays within 0.3 (float32) and 0.5 (bfloat16) of the tolerance on the tiny models,
while a wrong head mapping is off by 100,000 and 16 tolerances: test_reference.py holds both sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
KvCache = dict[int, tuple[Array, Array]]  # layer -> keys and values, each [K, C, D]; a new cache is {}

SAFETY = 4.0

_STORED_DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}

# Keys of config.json that change the computation, with the one value that is implemented (also the default).
_ONLY_VALUE = {
    "hidden_act": "silu",
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
}


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The facts of a config.json that the computation depends on."""

    qkv_bias: bool
    tied: bool
    hidden: int  # E
    ffn: int  # F
    layers: int
    heads: int  # H
    kv_heads: int  # K
    head_dim: int  # D
    vocab: int  # V
    theta: float
    eps: float

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Reads a Hugging Face config, as transformers 4 or 5 writes it.

        Raises:
            ValueError: If the config asks for something that this decoder does not compute.
        """
        rope = config.get("rope_parameters") or {}
        wanted = {key: config.get(key, only) for key, only in _ONLY_VALUE.items()}
        if wanted != _ONLY_VALUE or rope.get("rope_type", "default") != "default":
            raise ValueError(f"config.json: expected {_ONLY_VALUE} and plain rope, found {wanted}, {rope}")
        if config["architectures"] not in (["LlamaForCausalLM"], ["Qwen2ForCausalLM"]):
            raise ValueError(f"config.json: expected Llama or Qwen2, found {config['architectures']}")
        heads = config["num_attention_heads"]
        return cls(
            qkv_bias=config["architectures"] == ["Qwen2ForCausalLM"],
            tied=config.get("tie_word_embeddings", False),
            hidden=config["hidden_size"],
            ffn=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab=config["vocab_size"],
            theta=rope.get("rope_theta") or config["rope_theta"],
            eps=config["rms_norm_eps"],
        )

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight of the model and its shape; a linear layer's weight is [out, in]."""
        hidden, ffn, q, kv = self.hidden, self.ffn, self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, hidden)}
        for i in range(self.layers):
            layer = f"model.layers.{i}."
            shapes[layer + "input_layernorm.weight"] = (hidden,)
            for name, rows in {"q": q, "k": kv, "v": kv}.items():
                shapes[layer + f"self_attn.{name}_proj.weight"] = (rows, hidden)
                if self.qkv_bias:
                    shapes[layer + f"self_attn.{name}_proj.bias"] = (rows,)
            shapes[layer + "self_attn.o_proj.weight"] = (hidden, q)
            shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
            shapes[layer + "mlp.gate_proj.weight"] = (ffn, hidden)
            shapes[layer + "mlp.up_proj.weight"] = (ffn, hidden)
            shapes[layer + "mlp.down_proj.weight"] = (hidden, ffn)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, hidden)
        return shapes


class Arithmetic:
    """The two operations in which implementations differ by rounding; here exact, that is, float64."""

    def store(self, x: Array) -> Array:
        """An activation is written to memory."""
        return x

    def matmul(self, a: Array, b: Array) -> Array:
        """Sums of products over the last dimension of `a` and the last but one of `b`."""
        return a @ b


@dataclass(frozen=True, slots=True)
class Precision:
    """The unit roundoffs of an implementation."""

    store: float
    accumulate: float = 2.0**-24


FLOAT32 = Precision(store=2.0**-24)
BFLOAT16 = Precision(store=2.0**-8)
FLOAT16 = Precision(store=2.0**-11)


class NoisyArithmetic(Arithmetic):
    """Exact results plus a random sample of an implementation's rounding errors, as derived at the top."""

    def __init__(self, precision: Precision, rng: np.random.Generator) -> None:
        self.precision = precision
        self.rng = rng

    def store(self, x: Array) -> Array:
        return x * (1 + self.precision.store * self.rng.uniform(-1, 1, x.shape))

    def matmul(self, a: Array, b: Array) -> Array:
        y: Array = a @ b
        variance = a.shape[-1] / 3 * (y * y / 3 + (a * a) @ (b * b) / 2)
        error: Array = self.precision.accumulate * np.sqrt(variance) * self.rng.standard_normal(y.shape)
        return y + error


EXACT = Arithmetic()


class Greedy(NamedTuple):
    """Greedy tokens, and how much larger each one's logit was than the runner-up's."""

    tokens: list[int]
    margins: list[float]


@dataclass(frozen=True, slots=True, eq=False)
class NumpyDecoder:
    """A decoder-only language model: RMS norm, rotary grouped-query attention, SwiGLU.

    Example:
        >>> decoder = NumpyDecoder.from_directory(model_dir)  # doctest: +SKIP
        >>> decoder.logits([1, 2, 3]).shape  # doctest: +SKIP
        (3, 49152)
    """

    config: DecoderConfig
    weights: Mapping[str, Array]
    arithmetic: Arithmetic = EXACT

    def __post_init__(self) -> None:
        expected = self.config.weight_shapes()
        found = {name: tensor.shape for name, tensor in self.weights.items()}
        if found != expected:
            difference = sorted(found.items() ^ expected.items())
            raise ValueError(f"weights: these are found but not expected, or the reverse: {difference}")

    @classmethod
    def from_directory(cls, directory: Path) -> NumpyDecoder:
        """Reads config.json and the safetensors files of a Hugging Face model directory."""
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        return cls(DecoderConfig.from_hugging_face(config), read_weights(directory))

    def logits(self, token_ids: Sequence[int], cache: KvCache | None = None) -> Array:
        """The logits [T, V] of the token after each of `token_ids`.

        Args:
            token_ids: The tokens, at least one.
            cache: The context before them, to which they are added; without it they begin the text.
        """
        if not token_ids or not 0 <= min(token_ids) <= max(token_ids) < self.config.vocab:
            raise ValueError(f"token_ids: expected some, in [0, {self.config.vocab}), found {token_ids}")
        cache = {} if cache is None else cache
        past = cache[0][0].shape[1] if cache else 0
        rope = self.rope(np.arange(past, past + len(token_ids)))
        embedding = self.weights["model.embed_tokens.weight"]
        x = embedding[list(token_ids)]  # [T, E]
        for i in range(self.config.layers):
            layer = f"model.layers.{i}."
            normed = self._rms_norm(x, layer + "input_layernorm")
            x = self.arithmetic.store(x + self._attention(normed, i, rope, cache))
            normed = self._rms_norm(x, layer + "post_attention_layernorm")
            x = self.arithmetic.store(x + self._feed_forward(normed, layer + "mlp."))
        head = embedding if self.config.tied else self.weights["lm_head.weight"]
        return self.arithmetic.matmul(self._rms_norm(x, "model.norm"), head.T)

    def greedy(self, prompt: Sequence[int], num_tokens: int) -> Greedy:
        """The `num_tokens` tokens that follow `prompt`, end-of-text being a token like any other."""
        result, cache, step = Greedy([], []), KvCache(), prompt
        for _ in range(num_tokens):
            row = self.logits(step, cache)[-1]
            second, first = np.partition(row, -2)[-2:]
            step = [int(row.argmax())]
            result.tokens.extend(step)
            result.margins.append(float(first - second))
        return result

    def tolerance(self, token_ids: Sequence[int], precision: Precision, samples: int = 4, seed: int = 0) -> Array:
        """How far [T] a correct implementation's logits may be from `logits(token_ids)`, row by row.

        It follows that a greedy token is certain where its margin exceeds twice the tolerance of its row.
        """
        exact = self.logits(token_ids)
        largest = np.zeros(len(token_ids))
        for rng in np.random.default_rng(seed).spawn(samples):
            noisy = replace(self, arithmetic=NoisyArithmetic(precision, rng)).logits(token_ids)
            largest = np.maximum(largest, np.abs(noisy - exact).max(axis=1))
        return SAFETY * largest

    def rope(self, positions: NDArray[np.int64]) -> tuple[Array, Array]:
        """Cosines and sines [T, D / 2] of the rotary angles, computed in float32 as Hugging Face does."""
        dim = self.config.head_dim
        exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        frequencies = np.float32(1) / np.float32(self.config.theta) ** exponents  # [D / 2]
        outer = positions[:, None].astype(np.float64), frequencies[None].astype(np.float64)
        # A float64 product of two float32 numbers is exact: rounding it is what a float32 product does.
        angles = self.arithmetic.matmul(*outer).astype(np.float32).astype(np.float64)
        return self.arithmetic.store(np.cos(angles)), self.arithmetic.store(np.sin(angles))

    def _rms_norm(self, x: Array, name: str) -> Array:
        hidden = self.config.hidden
        mean_square = self.arithmetic.matmul(x * x, np.ones((hidden, 1))) / hidden  # [T, 1]
        normalized = self.arithmetic.store(x / np.sqrt(mean_square + self.config.eps))
        return self.arithmetic.store(normalized * self.weights[name + ".weight"])

    def _linear(self, x: Array, name: str) -> Array:
        y = self.arithmetic.matmul(x, self.weights[name + ".weight"].T)
        return self.arithmetic.store(y + self.weights.get(name + ".bias", 0.0))

    def _attention(self, x: Array, layer: int, rope: tuple[Array, Array], cache: KvCache) -> Array:
        config, arithmetic = self.config, self.arithmetic
        cos, sin = rope

        def project(name: str) -> Array:
            y = self._linear(x, f"model.layers.{layer}.self_attn.{name}_proj")
            heads: Array = y.reshape(len(x), -1, config.head_dim).transpose(1, 0, 2)
            return heads  # [H or K, T, D]

        def rotate(y: Array) -> Array:  # element j turns with element j + D / 2
            a, b = np.split(y, 2, axis=-1)
            return arithmetic.store(np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1))

        q, k, v = rotate(project("q")), rotate(project("k")), project("v")
        if layer in cache:
            past_k, past_v = cache[layer]
            k, v = np.concatenate([past_k, k], axis=1), np.concatenate([past_v, v], axis=1)
        cache[layer] = k, v  # [K, C, D]
        group = config.heads // config.kv_heads  # query head h reads key-value head h // group
        k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)  # [H, C, D]
        scores = arithmetic.matmul(q, k.transpose(0, 2, 1)) / np.sqrt(config.head_dim)  # [H, T, C]
        context = k.shape[1]
        visible = np.arange(context) <= np.arange(context - len(x), context)[:, None]  # [T, C]
        scores = np.where(visible, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        total = arithmetic.matmul(weights, np.ones((context, 1)))
        mixed = arithmetic.store(arithmetic.matmul(arithmetic.store(weights / total), v))  # [H, T, D]
        mixed = mixed.transpose(1, 0, 2).reshape(len(x), -1)
        return self._linear(mixed, f"model.layers.{layer}.self_attn.o_proj")

    def _feed_forward(self, x: Array, prefix: str) -> Array:
        gate = self._linear(x, prefix + "gate_proj")
        up = self._linear(x, prefix + "up_proj")
        silu = self.arithmetic.store(gate / (1 + np.exp(-gate)))
        return self._linear(self.arithmetic.store(silu * up), prefix + "down_proj")


def read_weights(directory: Path) -> dict[str, Array]:
    """The tensors of a Hugging Face model directory, one file or sharded, as float64."""
    index = directory / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return {name: tensor for file in files for name, tensor in _read_safetensors(directory / file)}


def _read_safetensors(path: Path) -> Iterator[tuple[str, Array]]:
    """The tensors of one file: the header's length in 8 bytes, the header in JSON, then the data."""
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8:data]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            stored = np.frombuffer(content[data + begin : data + end], _STORED_DTYPES[entry["dtype"]])
            yield name, stored.reshape(entry["shape"]).astype(np.float64)


def weights_digest(weights: Mapping[str, Array]) -> str:
    """A SHA-256 of names, shapes and values, whatever the files and dtypes they are stored in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.shape}\n".encode())
        digest.update(tensor.astype("<f4").tobytes())  # exact: no checkpoint dtype is wider
    return digest.hexdigest()
