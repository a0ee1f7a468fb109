"""The Ascend backend on the test double of an Ascend device, compared with the CPU backend."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from atb_models import MODELS, PLANS, plan_text
from atb_process import HAS_ATB, Double, generate, in_process, start, wait
from reference.tiny_models import TinySpec, write_tiny_model

from llm_boost import BackendError, ConfigError, LlmBoostError, Model, _testing
from llm_boost.model_config import ModelConfig

# Built with LLM_BOOST_ATB=OFF there is nothing to test but the plans.
needs_atb = pytest.mark.skipif(not HAS_ATB, reason="the atb backend is not in this build")
GOLDEN = Path(__file__).parent / "golden" / "atb"
PROMPTS = [[(7 * i + 3 * j) % 250 for i in range(length)] for j, length in enumerate((5, 17, 1, 40))]

os.environ.setdefault("ATB_DOUBLE_HBM_BYTES", str(1 << 30))


@pytest.fixture(scope="module")
def npu_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("npu")

    def directory(name: str) -> Path:
        path = root / name
        return path if path.is_dir() else write_tiny_model(path, MODELS[name])

    return directory


@pytest.fixture
def double() -> Iterator[Double]:
    """Fails the test when ATB logged an error or when something is left."""
    double = Double()
    before = double.errors()
    yield double
    assert double.errors() == before, double.log()
    assert double.live() == 0


def load(directory: Path, backend: str, **options: object) -> Model:
    values = {"num_blocks": 12, "max_num_seqs": 4, "max_model_len": 400, "num_threads": 2, **options}
    return Model.from_pretrained(directory, backend=backend, use_tqdm=False, **values)  # type: ignore[arg-type]


def cpu_tokens(directory: Path, prompts: list[list[int]], max_tokens: int = 12, **options: object) -> list[list[int]]:
    options = {"num_blocks": None, **options}
    with load(directory, "cpu", **options) as model:
        return generate(model, prompts, max_tokens)


# -- Lowering -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANS)
def test_what_atb_is_told(name: str, tmp_path: Path) -> None:
    assert plan_text(name, tmp_path) == (GOLDEN / f"{name}.txt").read_text("utf-8")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"dtype": "float32"}, "activations are float32, expected float16 or bfloat16"),
        ({}, {"block_size": 24}, "block_size is 24, expected a multiple of 16 up to 128"),
        ({"head_dim": 24}, {}, "head_dim is 24, expected a multiple of 16"),
        ({"head_dim": 256}, {}, "head_dim 256 x block_size 128 is more than 16384; use a block_size of 64"),
        ({"hidden": 72}, {}, "hidden_size is 72, expected a multiple of 16"),
        ({"head_dim": 16}, {"ranks": 3}, "4 attention heads, which 3 ranks cannot share evenly"),
        ({"ffn": 174}, {"ranks": 4}, "174 ffn columns, which 4 ranks cannot share evenly"),
        ({}, {"is_310p": True, "dtype": "bfloat16"}, "this chip computes in float16 alone"),
        ({}, {"is_310p": True, "ranks": 2}, "communication_backend is lccl, which this chip does not have"),
    ],
)
def test_models_that_the_chip_cannot_run(
    tmp_path: Path, changes: dict[str, object], options: dict[str, object], message: str
) -> None:
    spec = TinySpec(**{"head_dim": 16, **changes})  # type: ignore[arg-type]
    config = ModelConfig.from_directory(write_tiny_model(tmp_path / "model", spec))
    with pytest.raises(ConfigError, match=message):
        _testing.atb_plan(config.to_core(max_positions=8), **options)


# -- Tokens -------------------------------------------------------------------------------------------------------------


@needs_atb
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_unequal_prompts(npu_model: Callable[[str], Path], double: Double, name: str) -> None:
    with load(npu_model(name), "atb") as model:
        assert generate(model, PROMPTS) == cpu_tokens(npu_model(name), PROMPTS)


@needs_atb
@pytest.mark.parametrize("block_size", [16, 128])  # without and with the prefix encoder
@pytest.mark.parametrize("name", ["llama_f16", "qwen2_f16", "llama_bf16"])
def test_chunks_and_prefixes(
    npu_model: Callable[[str], Path], double: Double, name: str, block_size: int
) -> None:
    prompt = [(11 * i) % 250 for i in range(300)]
    prompts = [prompt, [*prompt[:280], 1, 2, 3], prompt[:150]]
    expected = [tokens for p in prompts for tokens in cpu_tokens(npu_model(name), [p], 6)]
    blocks = {16: 80, 128: 12}[block_size]
    options = {"block_size": block_size, "num_blocks": blocks, "max_num_batched_tokens": 140}
    with load(npu_model(name), "atb", **options) as model:
        assert [tokens for p in prompts for tokens in generate(model, [p], 6)] == expected
        assert model.generate([prompt])[0].num_cached_tokens >= 256
        assert generate(model, prompts, 6) == expected


@needs_atb
def test_preemption(npu_model: Callable[[str], Path], double: Double) -> None:
    directory = npu_model("llama_f16")
    prompts = [[(5 * i + j) % 250 for i in range(20)] for j in range(4)]
    with load(directory, "atb", block_size=16, num_blocks=8, max_model_len=128) as model:
        assert generate(model, prompts, 30) == cpu_tokens(directory, prompts, 30)
        assert model.stats()["num_preemptions"] > 0


@needs_atb
def test_samples_share_their_prompt(npu_model: Callable[[str], Path], double: Double) -> None:
    """Copies of cache blocks: samples of one prompt write to copies of its last block."""
    from llm_boost import SamplingParams

    params = SamplingParams(temperature=0.9, seed=5, n=3, max_tokens=8, ignore_eos=True)
    results = []
    for backend in ("cpu", "atb"):
        with load(npu_model("llama_f16"), backend) as model:
            result = model.generate([PROMPTS[1]], params)[0]
            results.append([list(output.token_ids) for output in result.outputs])
    assert results[0] == results[1]


@needs_atb
def test_logits_are_close(npu_model: Callable[[str], Path], double: Double) -> None:
    """Rows without gather and with it; float16 rounds each of some 20 intermediate results by 2^-11."""
    token_ids = np.array(PROMPTS[3], dtype=np.int32)
    count = len(token_ids)
    logits = {}
    for backend in ("cpu", "atb"):
        with load(npu_model("qwen2_f16"), backend, block_size=16, num_blocks=32) as model:
            arrays = {
                "token_ids": token_ids,
                "positions": np.arange(count, dtype=np.int32),
                "slots": np.arange(count, dtype=np.int32),
                "seq_begin": np.array([0, count], dtype=np.int32),
                "context_len": np.array([count], dtype=np.int32),
                "block_table": np.arange(25, dtype=np.int32)[None],
            }
            logits[backend] = [
                model.forward(**arrays, logit_rows=np.array(rows, dtype=np.int32))
                for rows in (range(count), [3, 39], [0])
            ]
    for cpu, atb in zip(logits["cpu"], logits["atb"], strict=True):
        assert np.abs(cpu - atb).max() < 20 * 2.0**-11 * np.abs(cpu).max()
    assert np.array_equal(logits["atb"][0][[3, 39]], logits["atb"][1])


@needs_atb
def test_nz_weights(npu_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = npu_model("llama_f16")
    config = {"prompts": PROMPTS, "options": {"num_blocks": 12, "max_num_seqs": 4, "max_model_len": 400}}
    plain = in_process("tokens", {"directory": str(directory), **config})
    assert plain["log"] == ""
    assert plain["live"] == 0
    assert plain["tokens"] == cpu_tokens(directory, PROMPTS)


# -- Several ranks ------------------------------------------------------------------------------------------------------


@needs_atb
@pytest.mark.parametrize("name", ["llama_bf16", "qwen2_f16"])
def test_two_ranks_give_what_one_gives(npu_model: Callable[[str], Path], name: str) -> None:
    directory = npu_model(name)
    options = {"num_blocks": 12, "max_num_seqs": 4, "max_model_len": 400, "num_threads": 1}
    arguments = {"directory": str(directory), "prompts": PROMPTS, "options": options}
    ranks = [start("tokens", arguments, RANK_ID=str(rank), RANK_SIZE="2") for rank in range(2)]
    results = [wait(rank) for rank in ranks]
    for rank, result in enumerate(results):
        assert f"rank {rank} of 2 over lccl" in result["backend"]
        assert result["log"] == ""
        assert result["live"] == 0
        assert result["tokens"] == [cpu_tokens(directory, [prompt])[0] for prompt in PROMPTS]


# -- Errors -------------------------------------------------------------------------------------------------------------


@needs_atb
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "float32"}, ConfigError, "the atb backend computes with one type"),
        ({"block_size": 8}, ConfigError, "block_size is 8, but this backend"),
        ({"activation_dtype": "float32"}, ConfigError, "activations are float32, expected float16 or bfloat16"),
        ({"num_blocks": 1 << 20}, BackendError, "aclrtMalloc of .* failed with 207001 .out of device memory"),
    ],
)
def test_options_that_cannot_be(
    npu_model: Callable[[str], Path], options: dict[str, object], error: type[LlmBoostError], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(npu_model("llama_f16"), "atb", **options)
    assert Double().live() == 0


@needs_atb
def test_the_cpu_has_no_float16_activations(npu_model: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="activation_dtype is float16, which the cpu backend does not have"):
        load(npu_model("llama_f16"), "cpu", activation_dtype="float16")


@needs_atb
def test_the_cache_is_sized_from_free_memory(npu_model: Callable[[str], Path], double: Double) -> None:
    with load(npu_model("llama_f16"), "atb", num_blocks=None, max_model_len=None) as model:
        info = model.info()
        assert info.block_size == 128
        assert info.activation_dtype == "float16"
        assert info.num_blocks == 16  # all that 4 sequences of 512 tokens can use
