"""Run configs: every key does what it should, and every mistake is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_config_files import without_config, write_run
from tokenizer_files import copy_vocabulary

from llm_boost import (
    BackendError,
    CheckpointError,
    ConfigError,
    LlmBoostError,
    Model,
    RequestError,
    SamplingParams,
    _core,
    load_config,
)
from llm_boost.run_config.keys import Section, subsections
from llm_boost.run_config.resolve import keys_for_other_backends, source_of_run
from llm_boost.run_config.sections import RootSection

ROOT = Path(__file__).parent.parent
PROMPT = list(range(40, 56))


@pytest.fixture(scope="module")
def bare(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without config.json: the run config alone says what it is."""
    return without_config(tiny_model("llama_mha"), tmp_path_factory.mktemp("bare") / "model")


@pytest.fixture(scope="module")
def base(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.from_pretrained(write_run(tmp_path_factory.mktemp("base"), bare)) as model:
        yield model


def logits(model: Model) -> Any:
    count, info = len(PROMPT), model.info()
    width = -(-info.max_model_len // info.block_size)
    return model.forward(
        token_ids=PROMPT, positions=range(count), slots=range(count), seq_begin=[0, count], context_len=[count],
        block_table=[range(width)], logit_rows=range(count),
    )  # fmt: skip


def tokens(model: Model) -> tuple[int, ...]:
    return model.generate([PROMPT])[0].outputs[0].token_ids


# -- Each key -------------------------------------------------------------------------------------------------------


def other_logits(model: Model, base: Model) -> bool:
    return bool(np.abs(logits(model) - logits(base)).max() > 1e-4)


def same_tokens(model: Model, base: Model) -> bool:
    return tokens(model) == tokens(base)


def other_tokens(model: Model, base: Model) -> bool:
    return tokens(model) != tokens(base)


@dataclass(frozen=True)
class Effect:
    """What a change of the tiny run config must lead to: a check of the model, or an error."""

    changes: Mapping[str, Any]
    check: Callable[[Model, Model], bool] | None = None
    error: tuple[type[LlmBoostError], str] | None = None


SAMPLED = {"do_sample": True, "seed": 1}
NOT_EMPTY = "expected None: .* not supported"
EFFECTS: dict[str, Effect] = {
    "type": Effect({"type": "LlamaConfig"}, same_tokens),
    "llm_backend": (
        Effect({"llm_backend": "ATB"}, lambda m, _: m.info().backend.startswith("atb"))
        if "atb" in _core.backend_names()
        else Effect({"llm_backend": "ATB"}, error=(BackendError, "backend 'atb' is not available"))
    ),
    "boost_model_name": Effect({"boost_model_name": "Qwen"}, error=(CheckpointError, r"q_proj.bias")),
    "batch_size": Effect({"batch_size": 3}, lambda m, b: (m.info().max_num_seqs, b.info().max_num_seqs) == (3, 2)),
    "seq_length": Effect(
        {"seq_length": 100}, lambda m, b: (m.info().max_model_len, b.info().max_model_len) == (100, 256)
    ),
    "hidden_size": Effect({"hidden_size": 128}, error=(CheckpointError, r"\[257, 64\], expected shape \[257, 128\]")),
    "num_layers": Effect({"num_layers": 3}, error=(CheckpointError, r"missing 'model.layers.2")),
    "num_heads": Effect({"num_heads": 2}, other_logits),  # the same matrices, cut in other ways
    "n_kv_heads": Effect({"n_kv_heads": 2}, error=(CheckpointError, r"k_proj.*\[64, 64\], expected shape \[32, 64\]")),
    "intermediate_size": Effect({"intermediate_size": 200}, error=(CheckpointError, r"expected shape \[200, 64\]")),
    # 8/3 * 64 = 170, rounded up to a multiple of 88 is 176, which is right, of 90 is 180
    "multiple_of": Effect(
        {"intermediate_size": None, "multiple_of": 90}, error=(CheckpointError, r"shape \[180, 64\]")
    ),
    "ffn_dim_multiplier": Effect(  # (1.3 + 0.01) * 8/3 * 64 = 223, rounded up to a multiple of 8
        {"intermediate_size": None, "multiple_of": 8, "ffn_dim_multiplier": 1.3},
        error=(CheckpointError, r"shape \[224, 64\]"),
    ),
    "vocab_size": Effect({"vocab_size": 300}, error=(CheckpointError, r"expected shape \[300, 64\]")),
    "tie_word_embeddings": Effect({"tie_word_embeddings": True}, other_logits),
    "qkv_has_bias": Effect({"qkv_has_bias": True}, error=(CheckpointError, r"q_proj.bias")),
    "attn_proj_has_bias": Effect({"attn_proj_has_bias": True}, error=(CheckpointError, r"o_proj.bias")),
    "max_position_embedding": Effect({"max_position_embedding": 128}, error=(ConfigError, "trained for 128 tokens")),
    "rms_norm_eps": Effect({"rms_norm_eps": 0.1}, other_logits),
    "theta": Effect({"theta": 500.0}, other_logits),
    "extend_method": Effect({"extend_method": "PI", "scaling_factor": 2.0}, other_logits),
    "scaling_factor": Effect({"scaling_factor": 2.0}, error=(ConfigError, "no effect without an extend_method")),
    "bos_token_id": Effect({"bos_token_id": 7}, lambda m, b: (m.config.bos_token_id, b.config.bos_token_id) == (7, 1)),
    "eos_token_id": Effect(
        {"eos_token_id": list(range(256))}, lambda m, b: len(tokens(m)) == 1 and len(tokens(b)) == 24 - len(PROMPT)
    ),
    "pad_token_id": Effect({"pad_token_id": 9}, lambda m, b: (m.config.pad_token_id, b.config.pad_token_id) == (9, 0)),
    "compute_dtype": Effect(
        {"compute_dtype": "bfloat16"},
        lambda m, b: (m.info().activation_dtype, b.info().activation_dtype) == ("bfloat16", "float32"),
    ),
    "rotary_dtype": Effect({"rotary_dtype": "bfloat16"}, other_logits),
    "use_past": Effect({"use_past": False}, error=(ConfigError, "use_past is False, expected True")),
    "is_dynamic": Effect({"is_dynamic": False}, same_tokens),
    "block_size": Effect({"block_size": 32}, lambda m, b: (m.info().block_size, b.info().block_size) == (32, 16)),
    "num_blocks": Effect({"num_blocks": 33}, lambda m, b: (m.info().num_blocks, b.info().num_blocks) == (33, 64)),
    "need_nz": Effect({"need_nz": True}, same_tokens),  # see test_options_of_accelerators
    "communication_backend": Effect({"communication_backend": "hccl"}, same_tokens),
    "do_sample": Effect(SAMPLED, other_tokens),
    "temperature": Effect(
        {**SAMPLED, "temperature": 1e-3}, lambda m, b: same_tokens(m, b) and m.default_sampling_params().temperature > 0
    ),
    "top_k": Effect({**SAMPLED, "top_k": 1}, same_tokens),
    "top_p": Effect({**SAMPLED, "top_p": 1e-6}, same_tokens),
    "repetition_penalty": Effect({"repetition_penalty": 50.0}, lambda m, _: len(set(tokens(m))) == 24 - len(PROMPT)),
    "max_decode_length": Effect({"max_decode_length": 20}, lambda m, _: len(tokens(m)) == 20 - len(PROMPT)),
    "max_new_tokens": Effect({"max_new_tokens": 3}, lambda m, _: len(tokens(m)) == 3),
    "min_new_tokens": Effect({"min_new_tokens": 5, "eos_token_id": list(range(250))}, lambda m, _: len(tokens(m)) >= 5),
    "quant_config": Effect({"quant_config": {"bits": 8}}, error=(ConfigError, NOT_EMPTY)),
    "quantization_config": Effect({"quantization_config": {"bits": 8}}, error=(ConfigError, NOT_EMPTY)),
    "pet_config": Effect({"pet_config": {"pet_type": "lora"}}, error=(ConfigError, NOT_EMPTY)),
    "moe_config": Effect({"moe_config": {"experts": 8}}, error=(ConfigError, NOT_EMPTY)),
    "parallel_decoding_params": Effect({"parallel_decoding_params": {"la": 1}}, error=(ConfigError, NOT_EMPTY)),
    # Beyond model.model_config.
    "load_checkpoint": Effect({"load_checkpoint": "/nowhere/a.ckpt"}, error=(ConfigError, "no file or no directory")),
    "seed": Effect({**SAMPLED, "seed": 2}, lambda m, _: m.default_sampling_params().seed == 2),
    "run_mode": Effect({"run_mode": "finetune"}, error=(ConfigError, "run_mode is 'finetune', expected 'predict'")),
    "use_parallel": Effect(
        {"use_parallel": True, "parallel_config.model_parallel": 2}, error=(ConfigError, "asks for 2 devices")
    ),
    "input_data": Effect({"input_data": ["a", "b"]}, same_tokens),  # see test_predict.py
    "only_save_strategy": Effect({"only_save_strategy": True}, error=(ConfigError, "no strategy files")),
    "arch.type": Effect({"model.arch.type": "LlamaForCausalLM"}, same_tokens),
    "context.device_id": Effect({"context.device_id": 1}, error=(ConfigError, "the CPU backend has only device 0")),
    "context.device_target": Effect(
        {"context.device_target": "CPU", "llm_backend": "ATB"},
        error=(ConfigError, "device_target is CPU, but .* is ATB"),
    ),
    "parallel_config.model_parallel": Effect({"parallel_config.model_parallel": 2}, same_tokens),
    "parallel_config.pipeline_stage": Effect(
        {"use_parallel": True, "parallel_config.pipeline_stage": 3}, error=(ConfigError, "asks for 3 devices")
    ),
    "parallel_config.data_parallel": Effect(
        {"use_parallel": True, "parallel_config.data_parallel": 8}, error=(ConfigError, "asks for 8 devices")
    ),
}


@pytest.mark.parametrize("key", EFFECTS)
def test_each_key_has_its_effect(key: str, base: Model, bare: Path, tmp_path: Path) -> None:
    effect = EFFECTS[key]
    path = write_run(tmp_path, bare, effect.changes)
    if effect.error is not None:
        with pytest.raises(effect.error[0], match=effect.error[1]):
            Model.from_pretrained(path)
        return
    assert effect.check is not None
    with Model.from_pretrained(path) as model:
        assert effect.check(model, base)


def all_keys(kind: type[Section], prefix: str = "") -> list[str]:
    inside = subsections(kind)
    keys = [prefix + item.name for item in fields(kind) if item.name not in inside]
    for name, section in inside.items():
        keys += all_keys(section, f"{prefix}{name}.")
    return keys


def test_every_key_has_an_effect_to_test() -> None:
    keys = {key.removeprefix("model.model_config.").removeprefix("model.") for key in all_keys(RootSection)}
    tokenizer = {key for key in keys if key.startswith("processor.tokenizer.")}
    assert keys - tokenizer == EFFECTS.keys()
    assert {key.removeprefix("processor.tokenizer.") for key in tokenizer} == TOKENIZER_EFFECTS.keys()


def test_seeds_and_their_absence(bare: Path, tmp_path: Path) -> None:
    with Model.from_pretrained(write_run(tmp_path, bare, {**SAMPLED, "seed": 3})) as model:
        assert tokens(model) == tokens(model)
    with Model.from_pretrained(write_run(tmp_path, bare, {**SAMPLED, "seed": None, "max_decode_length": 100})) as model:
        assert tokens(model) != tokens(model)


def test_options_of_accelerators_reach_the_core(bare: Path, tmp_path: Path) -> None:
    changes = {"need_nz": True, "communication_backend": "lccl", "context.device_id": 0}
    run = load_config(write_run(tmp_path, bare, changes))
    options = source_of_run(run).options
    assert (options["need_nz"], options["communication_backend"], options["device_id"]) == (True, "lccl", 0)
    assert keys_for_other_backends(run).keys() == {
        "model.model_config.need_nz",
        "model.model_config.communication_backend",
    }


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"llm_backend": "BuildIn"}, "auto"),
        ({"llm_backend": "LLMBoost"}, "auto"),
        ({"llm_backend": "CPU"}, "cpu"),
        ({"llm_backend": "cpu"}, "cpu"),
        ({"llm_backend": "ATB"}, "atb"),
        ({"llm_backend": "BuildIn", "context.device_target": "CPU"}, "cpu"),
        ({"llm_backend": "BuildIn", "context.device_target": "Ascend"}, "auto"),
        ({"llm_backend": None}, "auto"),
    ],
)
def test_backends(keys: dict[str, Any], expected: str, bare: Path, tmp_path: Path) -> None:
    assert source_of_run(load_config(write_run(tmp_path, bare, keys))).options["backend"] == expected


@pytest.mark.parametrize(
    ("dtype", "backend", "expected"),
    [
        ("float16", "cpu", "float32"),
        ("float32", "cpu", "float32"),
        ("bfloat16", "cpu", "bfloat16"),
        ("float16", "atb", "float16"),
    ],
)
def test_compute_dtypes(dtype: str, backend: str, expected: str, bare: Path, tmp_path: Path) -> None:
    run = load_config(write_run(tmp_path, bare, {"compute_dtype": dtype}))
    assert source_of_run(run, backend=backend).options["activation_dtype"] == expected


@pytest.mark.parametrize(
    ("method", "factor"),
    [
        ("PI", 2.0),
        ("NTK", 2.0),
        ("LINEAR", 3.0),
        ("linear", {"factor": 3.0}),
        ("DYNAMIC_NTK", 2),
        (
            "YARN",
            {"factor": 2.0, "original_max_position_embeddings": 128, "beta_fast": 32, "beta_slow": 1,
             "mscale": 1.0, "mscale_all_dim": 0},
        ),
        (
            "LLAMA3",
            {"factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        ),
    ],
)  # fmt: skip
def test_extend_methods(method: str, factor: Any, base: Model, bare: Path, tmp_path: Path) -> None:
    """The frequencies themselves are tested in test_rope.py."""
    changes = {"extend_method": method, "scaling_factor": factor, "max_position_embedding": 128}
    with Model.from_pretrained(write_run(tmp_path, bare, changes)) as model:
        assert model.config.rope_scaling.method == method.upper()
        assert model.info().max_model_len == 256  # longer than the trained 128, which the method allows
        assert other_logits(model, base)


# -- The tokenizer section ------------------------------------------------------------------------------------------

TOKENIZER_EFFECTS: dict[str, Callable[[Path, Path], None]] = {}


def tokenizer_effect(*keys: str) -> Callable[[Callable[[Path, Path], None]], Callable[[Path, Path], None]]:
    def register(test: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        TOKENIZER_EFFECTS.update(dict.fromkeys(keys, test))
        return test

    return register


def tokenizer_of(bare: Path, directory: Path, **keys: Any) -> Any:
    changes = {f"processor.tokenizer.{key}": value for key, value in keys.items()}
    return source_of_run(load_config(write_run(directory, bare, changes))).load_tokenizer()


@tokenizer_effect("vocab_file", "type", "bos_token", "add_bos_token", "add_eos_token", "eos_token", "unk_token")
def llama_vocabulary(bare: Path, directory: Path) -> None:
    source = copy_vocabulary(directory / "llama", "llama")
    vocab = (source / "tokenizer.model").rename(source / "any.name")
    with pytest.raises(ConfigError, match=r"does not say what it is; set processor.tokenizer.type"):
        tokenizer_of(bare, directory, vocab_file=str(vocab))
    keys = {"vocab_file": str(vocab), "type": "LlamaTokenizer", "unk_token": "<unk>"}
    tokenizer = tokenizer_of(bare, directory, **keys)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert tokenizer.id_to_token(begin) == "<s>"
    text = tokenizer.encode("a b")
    assert text[0] == begin
    assert tokenizer_of(bare, directory, **keys, add_bos_token=False).encode("a b") == text[1:]
    assert tokenizer_of(bare, directory, **keys, add_eos_token=True).encode("a b") == [*text, end]
    swapped = tokenizer_of(bare, directory, **keys, bos_token="</s>", eos_token="<s>")
    assert (swapped.bos_token_id, swapped.eos_token_id) == (end, begin)


@tokenizer_effect("merges_file", "pad_token", "model_max_length", "chat_template")
def qwen2_vocabulary(bare: Path, directory: Path) -> None:
    source = copy_vocabulary(directory / "qwen2", "qwen2", {"tokenizer_config.json": {"chat_template": "old"}})
    merges = (source / "merges.txt").rename(directory / "other.txt")
    keys = {"vocab_file": str(source / "vocab.json"), "type": "Qwen2Tokenizer"}
    with pytest.raises(LlmBoostError, match=r"merges\.txt: expected a regular file"):
        tokenizer_of(bare, directory, **keys)
    keys["merges_file"] = str(merges)
    tokenizer = tokenizer_of(bare, directory, **keys)
    assert (tokenizer.chat_template, tokenizer.model_max_length) == ("old", None)
    assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"
    other = tokenizer_of(
        bare, directory, **keys, chat_template="new", model_max_length=77, pad_token="<|im_end|>"
    )  # fmt: skip
    assert (other.chat_template, other.model_max_length) == ("new", 77)
    assert other.pad_token_id == tokenizer.token_to_id("<|im_end|>") != tokenizer.pad_token_id


@pytest.mark.parametrize("test", dict.fromkeys(TOKENIZER_EFFECTS.values()))
def test_tokenizer_keys(test: Callable[[Path, Path], None], bare: Path, tmp_path: Path) -> None:
    test(bare, tmp_path)


def test_settings_change_the_tokenizer_of_the_checkpoint(bare: Path, tmp_path: Path) -> None:
    assert tokenizer_of(bare, tmp_path).chat_template is not None
    assert tokenizer_of(bare, tmp_path, chat_template="mine").chat_template == "mine"
    (bare / "chat_template.jinja").write_text("in a file")
    try:
        assert tokenizer_of(bare, tmp_path).chat_template == "in a file"
        assert tokenizer_of(bare, tmp_path, chat_template="mine").chat_template == "mine"
    finally:
        (bare / "chat_template.jinja").unlink()


# -- Checkpoints that have a config.json ----------------------------------------------------------------------------


def test_absent_keys_come_from_the_checkpoint(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = tiny_model("qwen2_tied")
    path = tmp_path / "run.yaml"
    path.write_text(f"load_checkpoint: {directory}\n", "utf-8")
    with Model.from_pretrained(path) as run, Model.from_pretrained(directory) as direct:
        assert run.config == direct.config
        assert run.info() == direct.info()


def test_shapes_that_contradict_config_json(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = tiny_model("llama_mha")
    changes = {"num_layers": 5, "vocab_size": 300, "boost_model_name": "Qwen", "tie_word_embeddings": True}
    path = write_run(tmp_path, directory, changes)
    with pytest.raises(ConfigError) as caught:
        Model.from_pretrained(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert f"model.model_config.num_layers is 5, but {directory}/config.json says num_hidden_layers 2" in str(
        caught.value
    )
    assert "boost_model_name is Qwen, but" in str(caught.value)
    assert all(line.startswith(f"  {path}:") for line in lines[1:])


def test_what_a_run_config_replaces(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = tmp_path / "m"
    shutil.copytree(tiny_model("llama_mha"), directory)
    (directory / "generation_config.json").write_text(json.dumps({"max_new_tokens": 2, "top_k": 7, "do_sample": True}))
    with Model.from_pretrained(write_run(tmp_path, directory, {"max_decode_length": None, "do_sample": None})) as model:
        params = model.default_sampling_params()
        assert (params.max_tokens, params.top_k, params.temperature) == (2, 7, 1.0)
    with Model.from_pretrained(write_run(tmp_path, directory, {"top_k": 3, "theta": 77.0})) as model:
        params = model.default_sampling_params(num_prompt_tokens=4)
        assert (params.max_tokens, params.top_k, params.temperature) == (20, 3, 0.0)
        assert model.config.rope_theta == 77.0
        with pytest.raises(RequestError, match=r"the prompt has 24 tokens, but max_decode_length, .*, is 24"):
            model.generate([[1] * 24])


def test_arguments_go_before_the_run_config(bare: Path, tmp_path: Path) -> None:
    path = write_run(tmp_path, bare)
    with Model.from_pretrained(
        load_config(path), block_size=32, max_model_len=64, activation_dtype="bfloat16"
    ) as model:
        info = model.info()
        assert (info.block_size, info.max_model_len, info.activation_dtype) == (32, 64, "bfloat16")
        assert info.max_num_seqs == 2


def test_scaling_of_config_json_is_followed_or_replaced(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = tmp_path / "m"
    shutil.copytree(tiny_model("llama_mha"), directory)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    config["rope_scaling"] = {"type": "linear", "factor": 2.0}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")

    def method(**changes: Any) -> str:
        return source_of_run(load_config(write_run(tmp_path, directory, changes))).config.rope_scaling.method

    assert method(seq_length=1024) == "LINEAR"
    assert method(extend_method="PI", scaling_factor=4, seq_length=2048) == "PI"
    with pytest.raises(ConfigError, match=r"extend_method is None, but .* asks for LINEAR; leave extend_method out"):
        method(extend_method="None")
    with pytest.raises(ConfigError, match="seq_length is 1025, but the model was trained for 1024 tokens"):
        method(seq_length=1025)


def test_qwen2_without_config_json(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = tiny_model("qwen2_tied")
    bare = without_config(directory, tmp_path / "bare")
    changes = {
        "boost_model_name": "Qwen", "hidden_size": 112, "num_heads": 14, "n_kv_heads": 2, "intermediate_size": 300,
        "tie_word_embeddings": True, "rms_norm_eps": 1e-6, "theta": 1e6, "compute_dtype": "bfloat16",
    }  # fmt: skip
    with (
        Model.from_pretrained(write_run(tmp_path, bare, changes)) as run,
        Model.from_pretrained(directory, max_model_len=256) as direct,
    ):
        assert np.array_equal(logits(run), logits(direct))


def test_smollm2_run_config_gives_the_tokens_of_from_pretrained(smollm2: Model) -> None:
    prompt = "The lighthouse at the end of the pier"
    path = ROOT / "configs" / "predict_smollm2_135m_instruct.yaml"
    run = load_config(path, {"model.model_config.max_decode_length": 48})
    with Model.from_pretrained(run, use_tqdm=False) as model:
        output = model.generate(prompt)[0]
    expected = smollm2.generate(prompt, SamplingParams(temperature=0, max_tokens=48))[0].outputs[0]
    token_ids = output.outputs[0].token_ids
    assert token_ids == expected.token_ids[: len(token_ids)]
    assert len(output.prompt_token_ids) + len(token_ids) == 48


def test_llama2_without_intermediate_size(bare: Path, tmp_path: Path) -> None:
    """The original's file for Llama2-7b lacks it: the model's formula gives 11008."""
    changes = {"intermediate_size": None, "hidden_size": 4096, "num_heads": 32, "vocab_size": 32000}
    run = load_config(write_run(tmp_path, bare, changes))
    assert source_of_run(run).config.intermediate_size == 11008


def test_overrides(bare: Path, tmp_path: Path) -> None:
    path = write_run(tmp_path, bare)
    run = load_config(path, {"model.model_config.seq_length": 99, "context.device_id": 0, "input_data": ["a"]})
    assert (run.model.model_config.seq_length, run.context.device_id, run.input_data) == (99, 0, ("a",))
    with pytest.raises(ConfigError, match=r"overrides of .*: model.model_config.seq_length is 'x'"):
        load_config(path, {"model.model_config.seq_length": "x"})
