"""The Ascend backend on the test double of an Ascend device, compared with the CPU backend."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from atb_models import MODELS, PLANS, clear_prompts, plan_text
from atb_process import HAS_ATB, Double, generate, in_process, on_two_ranks
from reference.tiny_models import TinySpec, write_tiny_model
from sanitizer import SANITIZED

import llm_boost
from llm_boost import BackendError, ConfigError, LlmBoostError, Model, SamplingParams, _core, _testing
from llm_boost.checkpoint import read_checkpoint
from llm_boost.model_config import ModelConfig

# Built with LLM_BOOST_ATB=OFF there is nothing to test but the plans.
needs_atb = pytest.mark.skipif(not HAS_ATB, reason="the atb backend is not in this build")
GOLDEN = Path(__file__).parent / "golden" / "atb"
LENGTHS = (5, 17, 1, 40)

# Every error of the backend: the call, what it was for, the code, its meaning, and what to do.
MESSAGE = r"atb backend: \S.* for \S.* failed with \d+ \(.+\); \S+"

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


# -- Lowering ----------------------------------------------------------------------------------------------------------


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


# -- Tokens ------------------------------------------------------------------------------------------------------------


@needs_atb
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_unequal_prompts(npu_model: Callable[[str], Path], double: Double, name: str) -> None:
    prompts, expected = clear_prompts(npu_model(name), LENGTHS, 6)
    with load(npu_model(name), "atb") as model:
        assert generate(model, prompts, 6) == expected


@needs_atb
@pytest.mark.parametrize("block_size", [16, 128])  # without and with the prefix encoder
@pytest.mark.parametrize("name", ["llama_f16", "qwen2_f16", "llama_bf16"])
def test_chunks_and_prefixes(npu_model: Callable[[str], Path], double: Double, name: str, block_size: int) -> None:
    directory = npu_model(name)
    [prompt], _ = clear_prompts(directory, [300], 4)
    # The whole prompt, most of it with another end, and a part of it.
    prompts, expected = clear_prompts(directory, [300, 283, 150], 4, start=prompt[:140])
    blocks = {16: 80, 128: 12}[block_size]
    options = {"block_size": block_size, "num_blocks": blocks, "max_num_batched_tokens": 140}
    with load(directory, "atb", **options) as model:
        assert [tokens for p in prompts for tokens in generate(model, [p], 4)] == expected
        assert model.generate([prompts[0]])[0].num_cached_tokens >= 256
        assert generate(model, prompts, 4) == expected


@needs_atb
def test_preemption(npu_model: Callable[[str], Path], double: Double) -> None:
    directory = npu_model("llama_f16")
    prompts, expected = clear_prompts(directory, [20, 21, 22, 23], 16)
    with load(directory, "atb", block_size=16, num_blocks=8, max_model_len=128) as model:
        assert generate(model, prompts, 16) == expected
        assert model.stats()["num_preemptions"] > 0


@needs_atb
def test_samples_share_their_prompt(npu_model: Callable[[str], Path], double: Double) -> None:
    """Samples of one prompt write to copies of its last block."""
    [prompt], [expected] = clear_prompts(npu_model("llama_f16"), [21], 8)
    with load(npu_model("llama_f16"), "atb", block_size=16, enable_prefix_caching=False) as model:
        before = double.calls("aclrtMemcpyAsync")
        alone = generate(model, [prompt], 8)
        between = double.calls("aclrtMemcpyAsync")
        params = SamplingParams(temperature=0, n=3, max_tokens=8, ignore_eos=True)
        outputs = model.generate([prompt], params)[0].outputs
        copies = double.calls("aclrtMemcpyAsync") - between - (between - before)
    assert [list(output.token_ids) for output in outputs] == 3 * [expected]
    assert alone == [expected]
    assert copies == 2 * 2 * MODELS["llama_f16"].layers  # two samples: keys and values of each layer


@needs_atb
def test_logits_are_close(npu_model: Callable[[str], Path], double: Double) -> None:
    """Rows without gather and with it; float16 rounds each of some 20 intermediate results by 2^-11."""
    token_ids = np.arange(5, 45, dtype=np.int32)
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
def test_nz_weights(npu_model: Callable[[str], Path], double: Double) -> None:
    prompts, expected = clear_prompts(npu_model("llama_f16"), LENGTHS, 6)
    options = _core.EngineOptions()
    options.backend, options.need_nz, options.num_blocks, options.max_num_seqs = "atb", True, 12, 4
    config = ModelConfig.from_directory(npu_model("llama_f16"))
    core = _core.LoadedModel(config.to_core(400), read_checkpoint(npu_model("llama_f16"), config), options)
    with Model(core, config, None) as model:
        assert generate(model, prompts, 6) == expected


@needs_atb
def test_the_310p(npu_model: Callable[[str], Path]) -> None:
    """NZ weights and cache, and whole prompts only."""
    directory = npu_model("qwen2_f16")
    prompts, expected = clear_prompts(directory, LENGTHS, 6)
    options = {"num_blocks": 12, "max_num_seqs": 4, "max_model_len": 400}
    arguments = {"directory": str(directory), "prompts": prompts, "max_tokens": 6, "options": options}
    result = in_process("tokens", arguments, ATB_DOUBLE_SOC="Ascend310P3")
    assert result["backend"] == "atb, Ascend310P3, device 0"
    assert result["log"] == ""
    assert result["live"] == 0
    assert result["tokens"] == expected


# -- Several ranks -----------------------------------------------------------------------------------------------------


# "CANN 8.5.0, ATB 8.5.0"
HAS_LAUNCH_MODE = HAS_ATB and not _core.device_report()["built_for"].startswith("CANN 8.1")
needs_launch_mode = pytest.mark.skipif(not HAS_LAUNCH_MODE, reason="CANN has no graph launch mode")


@needs_atb
@pytest.mark.parametrize("graph_launch", ["", pytest.param("1,4", marks=needs_launch_mode)])
@pytest.mark.parametrize("name", ["llama_bf16", "qwen2_f16"])
def test_two_ranks_give_what_one_gives(npu_model: Callable[[str], Path], name: str, graph_launch: str) -> None:
    directory = npu_model(name)
    prompts, expected = clear_prompts(directory, LENGTHS, 6)
    options = {"num_blocks": 12, "max_num_seqs": 4, "max_model_len": 400, "num_threads": 1}
    # All prompts at once: each rank takes a request into a step when the other does.
    arguments = {"directory": str(directory), "prompts": prompts, "max_tokens": 6, "options": options, "at_once": True}
    environment = {"LLM_BOOST_ATB_GRAPH_LAUNCH": graph_launch}
    results = on_two_ranks("tokens", arguments, environment, environment)
    for rank, result in enumerate(results):
        assert f"rank {rank} of 2 over lccl" in result["backend"]
        assert result["log"] == ""
        assert result["live"] == 0
        assert result["tokens"] == expected
        # The prompts together and the sample alone.
        assert result["captured"] == (2 * (2 + MODELS[name].layers) if graph_launch else 0)
    assert results[0]["sampled"] == results[1]["sampled"]  # no seed is given: the ranks agree on one


# -- Graph launch mode -------------------------------------------------------------------------------------------------


@needs_atb
@pytest.mark.skipif(HAS_LAUNCH_MODE, reason="CANN has it")
def test_cann_without_graph_launch_mode(
    npu_model: Callable[[str], Path], double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_BOOST_ATB_GRAPH_LAUNCH", "1")
    with pytest.raises(BackendError, match="has no graph launch mode; unset it"):
        load(npu_model("llama_f16"), "atb")


@needs_launch_mode
@pytest.mark.parametrize(("name", "block_size"), [("llama_f16", 16), ("qwen2_bf16", 128)])
def test_graph_launch_mode(
    npu_model: Callable[[str], Path],
    double: Double,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    block_size: int,
) -> None:
    """Three sequences decode as four, one as one; five do not fit."""
    monkeypatch.setenv("LLM_BOOST_ATB_GRAPH_LAUNCH", "4,1,4")
    prompts, expected = clear_prompts(npu_model(name), [15, 5, 31, 16, 2], 6)  # three grow into another block of 16
    options = {"block_size": block_size, "num_blocks": 32, "max_num_seqs": 5}
    with load(npu_model(name), "atb", **options) as model:
        before = [double.calls(call) for call in ("aclmdlRICaptureBegin", "aclmdlRIExecuteAsync")]
        for count in (5, 3, 1, 1):
            assert generate(model, prompts[:count], 6) == expected[:count]
        captured, replayed = (
            double.calls(call) - number
            for call, number in zip(("aclmdlRICaptureBegin", "aclmdlRIExecuteAsync"), before, strict=True)
        )
    operations = 2 + MODELS[name].layers  # of a step
    assert captured == 2 * operations  # two sizes
    # Three calls of `generate`, whose first tokens come from prefill; more where a prompt came a step late.
    assert replayed >= 3 * 5 * operations
    assert replayed % operations == 0


@needs_launch_mode
def test_a_step_is_filled_up_beside_all_blocks(
    npu_model: Callable[[str], Path], double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three short sequences have all blocks of the cache; what fills the step up to four writes to none of them."""
    monkeypatch.setenv("LLM_BOOST_ATB_GRAPH_LAUNCH", "4")
    prompts, expected = clear_prompts(npu_model("llama_f16"), [2, 2, 3], 8)
    with load(npu_model("llama_f16"), "atb", num_blocks=3, max_model_len=128, enable_prefix_caching=False) as model:
        assert generate(model, prompts, 8) == expected


@needs_launch_mode
@pytest.mark.parametrize("steps", ["", "1,4"])
def test_the_workspace_grows_while_the_device_works(npu_model: Callable[[str], Path], steps: str) -> None:
    """What is in flight keeps the workspace it was launched with, and what was captured takes the new one."""
    directory = npu_model("llama_f16")
    prompts, expected = clear_prompts(directory, LENGTHS, 6)
    options = {"num_blocks": 12, "max_num_seqs": 4, "max_model_len": 400, "num_threads": 1}
    arguments = {"directory": str(directory), "prompts": prompts, "max_tokens": 6, "options": options, "at_once": True}
    environment = {"ATB_DOUBLE_WORKSPACE": "rising", "LLM_BOOST_ATB_GRAPH_LAUNCH": steps}
    found = {
        schedule: in_process("tokens", arguments, ATB_DOUBLE_SCHEDULE=schedule, **environment)
        for schedule in ("eager", "lazy")
    }
    assert [(each["tokens"], each["log"], each["live"]) for each in found.values()] == [(expected, "", 0)] * 2
    assert min(each["allocated"] for each in found.values()) > 5  # the slab, and the workspace several times


@needs_atb
@pytest.mark.parametrize("text", ["0", "1,,2", "8", "a", "1,", "-1"])
def test_sizes_of_graph_launch_mode(
    npu_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("LLM_BOOST_ATB_GRAPH_LAUNCH", text)
    message = f"LLM_BOOST_ATB_GRAPH_LAUNCH is '{text}', expected numbers of sequences .* each from 1 to 4"
    with pytest.raises(ConfigError, match=message):
        load(npu_model("llama_f16"), "atb")
    assert Double().live() == 0


# -- Errors ------------------------------------------------------------------------------------------------------------


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


@needs_atb
@pytest.mark.parametrize(
    ("options", "graph_launch"),
    [
        ({}, ""),
        ({"block_size": 16, "num_blocks": 12, "max_num_batched_tokens": 4, "enable_prefix_caching": False}, ""),
        pytest.param({}, "1,2", marks=needs_launch_mode),
    ],
    ids=["plain", "chunks", "graph launch"],
)
def test_a_failure_at_every_call(tmp_path: Path, options: dict[str, object], graph_launch: str) -> None:
    """Loading and a short generation, again and again, with each call to ACL and ATB failing once."""
    directory = write_tiny_model(tmp_path / "model", TinySpec(layers=1, kv_heads=4, dtype="f16"))
    arguments = {
        "directory": str(directory),
        "prompts": [[1, 2, 3], [4, 5, 6, 7, 8]],
        "options": {"num_blocks": 4, "max_num_seqs": 2, "max_model_len": 64, "num_threads": 1, **options},
        "calls": ["any", "kernel"],
    }
    found = in_process("failures", arguments, LLM_BOOST_ATB_GRAPH_LAUNCH=graph_launch)
    assert found["log"] == []
    assert [each for each in found["results"] if each["live"] != 0] == []
    assert {each["type"] for each in found["results"]} == {"BackendError", ""}
    # A model that could be loaded gives the right tokens after the failure, or says that it cannot be used any more.
    assert {each["after"] for each in found["results"]} <= {"right", "unusable", "not loaded"}
    # What fails without an error is a wait for what has been waited for already.
    silent = [each for each in found["results"] if not each["error"]]
    assert len(silent) <= 1
    assert all(re.match(MESSAGE, each["error"]) for each in found["results"] if each not in silent)
    assert len([each for each in found["results"] if each["after"] == "not loaded"]) > 100


@needs_atb
@pytest.mark.parametrize("nth", [225, 300, 600])  # late in loading, and at two calls of the steps
def test_a_rank_that_fails_takes_the_others_along(npu_model: Callable[[str], Path], nth: int) -> None:
    arguments = {"directory": str(npu_model("llama_f16")), "prompts": [[1, 2, 3], [4, 5, 6]], "max_tokens": 40}
    results = on_two_ranks("failed_rank", arguments, {}, {"ATB_DOUBLE_FAIL": f"any:{nth}"})
    for result in results:
        assert re.match(MESSAGE, result["error"]), results
        assert result["after"] in ("not loaded", "unusable")
        assert result["live"] == 0
    assert results[1]["log"] == ""
    assert "rank 1 is gone" in results[0]["log"]


@needs_atb
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"RANK_ID": "2", "RANK_SIZE": "2"},
            "environment variable RANK_ID is 2, expected less than RANK_SIZE, which is 2",
        ),
        ({"RANK_ID": "0"}, "environment variable RANK_SIZE is not set, but RANK_ID is"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "environment variable RANK is 'x', expected a whole number"),
        ({"ATB_DOUBLE_SOC": "Ascend910A"}, "Ascend910A is not supported, expected Ascend 910B, 910_93 or 310P"),
        ({"ATB_DOUBLE_DEVICES": "0"}, "there is no device 0, this host has 0"),
        ({"ATB_HOME_PATH": ""}, "environment variable ATB_HOME_PATH is not set; source"),
        (
            {"ATB_HOME_PATH": "/usr/local/Ascend/nnal/atb/latest/atb/cxx_abi_0"},
            "ATB_HOME_PATH is .*cxx_abi_0, but llm_boost was built for C.. ABI 1; source .*set_env.sh --cxx_abi=1",
        ),
        ({"ATB_DOUBLE_HBM_BYTES": "100000"}, "MB free of .* leave no room for a KV cache"),
    ],
)
def test_environments_that_cannot_be(
    npu_model: Callable[[str], Path], environment: dict[str, str], message: str
) -> None:
    result = in_process("load_error", {"directory": str(npu_model("llama_f16"))}, **environment)
    assert re.search(message, result), result


# -- Programs ----------------------------------------------------------------------------------------------------------


@needs_atb
@pytest.mark.parametrize(
    ("arguments", "graph_launch"),
    [([], ""), pytest.param(["--communication", "hccl", "--nz"], "1,4", marks=needs_launch_mode)],
)
def test_a_dry_run_of_7b_models(tmp_path: Path, arguments: list[str], graph_launch: str) -> None:
    """Every graph of each preset and type is made, set up and run once, on one device and on two."""
    log = tmp_path / "log"
    result = dry_run(*arguments, ATB_DOUBLE_LOG_FILE=str(log), LLM_BOOST_ATB_GRAPH_LAUNCH=graph_launch)
    cases = ["prefill", "prefix hit", "chunked prefill", "decode", "decode"]
    models = [f"{name} {dtype}" for name in ("llama2-7b", "qwen2-7b", "small") for dtype in ("float16", "bfloat16")]
    lines = [f"{model} {case}: ok" for model in models for case in cases]
    assert result == [*lines, "world size 2", *lines]
    assert not log.exists(), log.read_text("utf-8")


@needs_atb
def test_a_decode_step_takes_less_than_a_millisecond_of_the_host() -> None:
    """32 layers, and nothing allocated. The 10th percentile: other work of the machine must not count."""
    lines = dry_run("--preset", "small", "--dtype", "float16", "--world", "1", "--layers", "32", "--time", "100")
    found = re.fullmatch(r"decode step, host: median .* ms, p10 (.*), p90 .*; 0 allocations in 100 steps", lines[-1])
    assert found, lines[-1]
    assert SANITIZED or float(found[1]) < 1.0


def dry_run(*arguments: str, **settings: str) -> list[str]:
    program = Path(llm_boost.__file__).parent / "bin" / "llm_boost_atb_dry_run"
    environment = {**os.environ, "ATB_DOUBLE_MODE": "null", **settings}
    environment.pop("ATB_DOUBLE_HBM_BYTES")
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
