"""The boost that a framework drives: MindFormers' generation loop gets the engine's tokens."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import mindspore_loop
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore_loop import PROMPTS, SEQ_LENGTH, config_of, drive, fused, new_boost, parameters_of, prompt_step
from reference.tiny_models import TINY_SPECS, TinySpec, write_tiny_model

from llm_boost import Model, SamplingParams
from llm_boost.errors import CheckpointError, ConfigError, RequestError
from llm_boost.integrations.mindspore import (
    LlamaBoost,
    LlmBoost,
    LlmBoostConfig,
    LlmBoostForCausalLM,
    LlmBoostRegister,
)
from llm_boost.integrations.mindspore.step import Step
from llm_boost.run_config.sections import ModelConfigSection

SPECS = {name: TINY_SPECS[name] for name in ("llama_mha", "llama_gqa_tied", "qwen2_tied", "llama_f16")}


@pytest.fixture(scope="module", params=SPECS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TinySpec, Path]:
    return SPECS[request.param], write_tiny_model(tmp_path_factory.mktemp("tiny"), SPECS[request.param])


@pytest.fixture(scope="module")
def mha(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinySpec, dict[str, Any]]:
    spec = TINY_SPECS["llama_mha"]
    return spec, parameters_of(write_tiny_model(tmp_path_factory.mktemp("mha"), spec))


def engine_tokens(directory: Path, prompts: list[list[int]], max_length: int) -> list[list[int]]:
    """What `Model` makes of the prompts."""
    with Model.from_pretrained(directory, max_model_len=SEQ_LENGTH, use_tqdm=False) as model:
        params = [SamplingParams(temperature=0, max_tokens=max_length - len(prompt)) for prompt in prompts]
        results = model.generate(prompts, params)
    return [[*result.prompt_token_ids, *result.outputs[0].token_ids] for result in results]


@pytest.mark.parametrize("is_dynamic", [True, False])
def test_a_generation_loop_gets_the_engines_tokens(tiny: tuple[TinySpec, Path], is_dynamic: bool) -> None:
    spec, directory = tiny
    prompts = [[token % spec.vocab for token in prompt] for prompt in PROMPTS]
    network = LlmBoostForCausalLM(config_of(spec, is_dynamic=is_dynamic))
    network.llm_boost.set_weights(parameters_of(directory))
    tokens = drive(network, prompts, 70, spec.end_of_text, lambda array: array)
    assert tokens == engine_tokens(directory, prompts, 70)
    for prompt, expected in zip(prompts, tokens, strict=True):  # one prompt, padded, alone
        assert drive(network, [prompt], 70, spec.end_of_text, lambda array: array) == [expected]


def test_sequences_end_at_different_times(mha: tuple[TinySpec, dict[str, Any]]) -> None:
    """Some of them exactly at the end of a block, whose next one is never reserved."""
    spec, parameters = mha
    network = LlmBoostForCausalLM(config_of(spec))
    network.llm_boost.set_weights(parameters)
    unlimited = drive(network, PROMPTS, 70, -1, lambda array: array)
    eos = unlimited[0][16]  # the first ends when its block is full
    ended = drive(network, PROMPTS, 70, eos, lambda array: array)
    for prompt, long, short in zip(PROMPTS, unlimited, ended, strict=True):
        answer = long[len(prompt) :]
        end = len(prompt) + (answer.index(eos) + 1 if eos in answer else len(answer))
        assert short == long[:end]
    assert len({len(row) for row in ended}) > 1


def test_fused_and_transposed_weights_are_taken(mha: tuple[TinySpec, dict[str, Any]]) -> None:
    spec, parameters = mha
    expected = None
    for weights in (parameters, fused(parameters), {k: np.asfortranarray(v) for k, v in parameters.items()}):
        before = dict(weights)
        network = LlmBoostForCausalLM(config_of(spec))
        network.llm_boost.set_weights(weights)
        assert weights == before or all(weights[name] is before[name] for name in before)
        tokens = drive(network, PROMPTS[:2], 60, -1, lambda array: array)
        expected = expected or tokens
        assert tokens == expected


def test_dtype_of_weights(mha: tuple[TinySpec, dict[str, Any]]) -> None:
    spec, parameters = mha
    wide = {name: value.astype(np.float32) for name, value in parameters.items()}
    tokens = []
    for weights, dtype in ((parameters, None), (wide, "bfloat16")):
        network = LlmBoostForCausalLM(config_of(spec))
        network.llm_boost.set_weights(weights, dtype=dtype)
        tokens.append(drive(network, PROMPTS[:1], 60, -1, lambda array: array))
    assert tokens[0] == tokens[1]
    with pytest.raises(CheckpointError, match="did you mean 'bfloat16'"):
        network.llm_boost.set_weights(parameters, dtype="bflot16")


def test_memory_of_the_weights_is_not_copied(mha: tuple[TinySpec, dict[str, Any]]) -> None:
    """What changes before the first step counts, what changes after it does not."""
    spec, parameters = mha
    parameters = {name: value.copy() for name, value in parameters.items()}
    steps = []
    boost = new_boost(spec, parameters)
    steps.append(boost.forward(prompt_step([1, 2, 3])))
    parameters["lm_head.weight"][:] = 0
    steps.append(boost.forward(prompt_step([1, 2, 3])))
    assert steps[0].any()
    np.testing.assert_array_equal(steps[0], steps[1])
    boost.set_weights(parameters)
    assert not boost.forward(prompt_step([1, 2, 3])).any()


# Rotary tables


def rotary_tables(spec: TinySpec, dtype: Any = np.float32, factor: float = 1.0) -> tuple[Any, Any]:
    head_dim = spec.head_dim or spec.hidden // spec.heads
    frequencies = spec.theta ** (-np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    angles = np.outer(np.arange(SEQ_LENGTH, dtype=np.float32) / np.float32(factor), frequencies.astype(np.float32))
    angles = np.concatenate([angles, angles], axis=1)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


@pytest.mark.parametrize("method", ["None", "PI"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rotary_tables_of_the_framework_count(mha: tuple[TinySpec, dict[str, Any]], dtype: str, method: str) -> None:
    spec, parameters = mha
    numpy_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    cos, sin = rotary_tables(spec, numpy_dtype, factor=4.0 if method == "PI" else 1.0)
    step = prompt_step(PROMPTS[1], PROMPTS[3])
    given = new_boost(spec, parameters).forward({**step, "cos_embed": cos, "sin_embed": sin})
    config = {"extend_method": method, "scaling_factor": 4.0 if method == "PI" else 1.0, "rotary_dtype": dtype}
    own = new_boost(spec, parameters, **config).forward(step)
    np.testing.assert_allclose(given, own, rtol=0, atol=np.ptp(own) * 2**-6)  # an ulp of a table entry, in bfloat16
    plain = new_boost(spec, parameters, rotary_dtype=dtype).forward(step)
    assert (np.abs(given - plain).max() > np.ptp(own) / 4) == (method == "PI")


def test_rotary_tables_that_cannot_be_used(mha: tuple[TinySpec, dict[str, Any]]) -> None:
    spec, parameters = mha
    cos, sin = rotary_tables(spec)
    step = prompt_step([1, 2, 3])
    for changes, message in [
        ({"cos_embed": cos}, "one of cos_embed and sin_embed"),
        ({"cos_embed": cos[:10], "sin_embed": sin}, r"cos_embed has shape \[10, 16\], expected \[96 or more, 16\]"),
        ({"cos_embed": cos, "sin_embed": sin * np.repeat([-1, 1], 8).astype(np.float32)}, "halves of sin_embed"),
    ]:
        with pytest.raises(RequestError, match=message):
            new_boost(spec, parameters).forward({**step, **changes})
    boost = new_boost(spec, parameters)
    first = boost.forward({**step, "cos_embed": cos, "sin_embed": sin})
    np.testing.assert_array_equal(boost.forward({**step, "cos_embed": cos.copy(), "sin_embed": sin}), first)
    np.testing.assert_array_equal(boost.forward(step), first)
    with pytest.raises(ConfigError, match="differ from those of the first step"):
        boost.forward({**step, "cos_embed": cos, "sin_embed": cos})


# Steps


def test_positions_lengths_and_rows_may_be_left_out(mha: tuple[TinySpec, dict[str, Any]]) -> None:
    spec, parameters = mha
    boost = new_boost(spec, parameters)
    whole = boost.forward(prompt_step(*PROMPTS))
    less = prompt_step(*PROMPTS, position_ids=None, lm_head_indices=None, seq_lens=None)
    np.testing.assert_array_equal(boost.forward(less), whole)
    del less["batch_valid_length"]
    np.testing.assert_array_equal(boost.forward({**less, "seq_lens": [len(prompt) for prompt in PROMPTS]}), whole)
    rows = boost.forward(prompt_step(*PROMPTS, lm_head_indices=[46, 4, 46]))
    np.testing.assert_array_equal(rows, whole[[2, 0, 2]])


def test_large_steps_are_cut(mha: tuple[TinySpec, dict[str, Any]]) -> None:
    """More tokens than the engine computes at once, and more sequences."""
    spec, parameters = mha
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 250, length).tolist() for length in rng.integers(1, 16, 48)]
    prompts[7:9] = [rng.integers(0, 250, 90).tolist()] * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mindspore_loop, "NUM_BLOCKS", 128)
        boost = new_boost(spec, parameters, num_blocks=128)
        info = boost.model.info()
        small = types.SimpleNamespace(
            block_size=info.block_size,
            max_model_len=info.max_model_len,
            max_num_batched_tokens=37,
            max_num_seqs=5,
        )
        whole = boost.forward(prompt_step(*prompts))
        patch.setattr(type(boost.model), "info", lambda self: small)
        np.testing.assert_array_equal(boost.forward(prompt_step(*prompts)), whole)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 10), st.integers(1, 5), st.data())
def test_pieces_make_up_the_step(lengths: list[int], max_tokens: int, max_sequences: int, data: st.DataObject) -> None:
    begins = np.concatenate([[0], np.cumsum(lengths)])
    before = np.array(data.draw(st.lists(st.integers(0, 5), min_size=len(lengths), max_size=len(lengths))))
    total = int(begins[-1])
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, total - 1)))), np.int64)
    positions = np.concatenate([start + np.arange(n) for start, n in zip(before, lengths, strict=True)])
    tables = np.arange(len(lengths))[:, None]
    step = Step(np.arange(total), positions, np.arange(total) + 7, begins, before + lengths, tables, rows)
    pieces = list(step.pieces(max_tokens, max_sequences))
    assert np.concatenate([piece.token_ids for piece in pieces]).tolist() == list(range(total))
    offsets = np.cumsum([0, *(len(piece.token_ids) for piece in pieces)])
    found = [row + offset for piece, offset in zip(pieces, offsets, strict=False) for row in piece.logit_rows]
    assert found == rows.tolist()
    for piece in pieces:
        assert len(piece.token_ids) <= max_tokens
        assert max(len(piece.context_len), len(piece.logit_rows)) <= max_sequences
        assert piece.seq_begin[0] == 0
        assert piece.seq_begin[-1] == len(piece.token_ids)
        assert (np.diff(piece.seq_begin) > 0).all()
        for sequence, end in enumerate(piece.seq_begin[1:]):
            assert piece.positions[end - 1] == piece.context_len[sequence] - 1
            assert step.token_ids[begins[piece.block_table[sequence, 0]]] <= piece.token_ids[end - 1]


WRONG_STEPS: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"slot_maping": [0]}, "unknown input of forward 'slot_maping'; did you mean 'slot_mapping'"),
    "no ids": ({"input_ids": None}, "forward got no input_ids"),
    "no lengths": ({"batch_valid_length": None, "seq_lens": None}, "neither batch_valid_length nor seq_lens"),
    "lengths": ({"seq_lens": [3, 3]}, r"batch_valid_length is \[3, 2\], but seq_lens is \[3, 3\]"),
    "no length": ({"batch_valid_length": [3, 0], "seq_lens": None}, "at least one sequence of one token"),
    "ids": ({"input_ids": [1, 2, 3, 4]}, r"input_ids has 4 elements, expected 5 \(lengths \[3, 2\]\)"),
    "floats": ({"input_ids": [1.0] * 5}, "input_ids has elements of type float64, expected integers"),
    "tables": ({"block_tables": [[0, 1]]}, "a row for each of 2 sequences"),
    "block": ({"block_tables": [[48], [1]]}, r"block_table\[0\]\[0\] is 48"),
    "slot": ({"slot_mapping": [0, 1, 3, 16, 17]}, r"slots\[2\] is 3"),
    "position": ({"position_ids": [0, 1, 2, 1, 2]}, r"positions\[3\] is 1"),
    "token": ({"input_ids": [1, 2, 257, 4, 5]}, r"token_ids\[2\] is 257"),
    "ragged": ({"input_ids": [[1, 2, 3], [4, 5]]}, "input_ids is no tensor: "),
    "row": ({"lm_head_indices": [4, 5]}, r"lm_head_indices is \[4, 5\], expected tokens 0 to 4"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG_STEPS.values(), ids=WRONG_STEPS)
def test_wrong_steps(mha: tuple[TinySpec, dict[str, Any]], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        new_boost(*mha).forward(prompt_step([1, 2, 3], [4, 5], **changes))


def test_a_boost_is_usable_after_every_error(mha: tuple[TinySpec, dict[str, Any]]) -> None:
    boost = new_boost(*mha)
    expected = boost.forward(prompt_step([1, 2, 3]))
    for changes, message in WRONG_STEPS.values():
        with pytest.raises(RequestError, match=message):
            boost.forward(prompt_step([1, 2, 3], [4, 5], **changes))
    for inputs in (None, [1]):
        with pytest.raises(RequestError, match="expected a dictionary of tensors by name"):
            boost.forward(inputs)
    for parameters in (None, [1], {3: np.ones(2, np.float32)}):
        with pytest.raises(CheckpointError, match="expected a dictionary of tensors by name"):
            boost.set_weights(parameters)
    boost.add_flags(is_first_iteration=False)
    with pytest.raises(RequestError, match=r"call add_flags\(is_first_iteration=True\) before"):
        boost.forward(prompt_step([1, 2, 3]))
    boost.add_flags(is_first_iteration=True)
    np.testing.assert_array_equal(boost.forward(prompt_step([1, 2, 3])), expected)


# Weights and config


def test_weights_that_do_not_fit(mha: tuple[TinySpec, dict[str, Any]]) -> None:
    spec, parameters = mha
    boost = LlamaBoost(config_of(spec))
    with pytest.raises(CheckpointError, match="call set_weights first"):
        boost.set_kvcache()
    with pytest.raises(CheckpointError, match="call set_weights first"):
        boost.forward(prompt_step([1]))
    wrong = {
        **parameters,
        "extra": np.zeros((2, 2), np.float32),
        "model.norm_out.weight": parameters["model.norm_out.weight"][1:],
        "model.layers.1.attention.wk.weight": parameters["model.layers.1.attention.wk.weight"].astype(np.float32),
    }
    del wrong["model.layers.0.feed_forward.w3.weight"]
    with pytest.raises(CheckpointError) as caught:
        boost.set_weights(wrong)
    for words in ("missing 'model.layers.0.feed_forward.w3.weight'", "surplus", "[63]", "different types"):
        assert words in str(caught.value)
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' int8 .*, expected one of the types"):
        boost.set_weights({**parameters, "lm_head.weight": np.zeros((257, 64), np.int8)})
    with pytest.raises(ConfigError, match="set_kvcache got caches"):
        boost.set_kvcache([1], [2])


WRONG_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "key": ({"max_position_embeddings": 10}, "did you mean 'max_position_embedding'"),
    "must be empty": ({"quant_config": {"w": 8}}, "quant_config is .*expected None: quantised checkpoints are not"),
    "of no effect, but wrong": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', expected True or False"),
    "backend": ({"llm_backend": "BuildInn"}, "did you mean 'BuildIn'"),
    "model": ({"boost_model_name": "Qwen2"}, "did you mean 'Qwen'"),
    "dtype": ({"compute_dtype": "int8"}, "compute_dtype 'int8'"),
    "use_past": ({"use_past": False}, "use_past is False"),
    "heads": ({"num_heads": 3}, "not a multiple of num_heads 3"),
    "layers": ({"num_layers": 0}, "num_layers is 0"),
    "method": ({"extend_method": "YARM"}, "did you mean 'YARN'"),
    "epsilon": ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x', expected a number above 0 to 1"),
    "theta": ({"theta": 0}, "theta is 0, expected a number above 1"),
    "end": ({"eos_token_id": "</s>"}, "eos_token_id is '</s>', expected a token id or a list"),
    "need_nz": ({"need_nz": "yes"}, "need_nz is 'yes', expected True or False"),
    "communication": ({"communication_backend": "lcl"}, "communication_backend is 'lcl', expected one of lccl, hccl"),
    "factor": ({"extend_method": "PI", "scaling_factor": "two"}, "factor is 'two'"),
}


def test_every_key_of_a_run_config_is_known() -> None:
    section = ModelConfigSection
    names = [item.name for item in fields(section)]
    assert {item.name for item in fields(LlmBoostConfig)} - set(names) == {"device_id"}
    LlmBoostConfig(**dict.fromkeys([*names, *section.UNUSED]))
    assert LlmBoostConfig(auto_map={}, min_new_tokens=3).min_new_tokens == 3


@pytest.mark.parametrize(("changes", "message"), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS)
def test_wrong_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LlmBoostForCausalLM(config_of(TINY_SPECS["llama_mha"], **changes))


def test_shapes_that_contradict_the_weights(mha: tuple[TinySpec, dict[str, Any]]) -> None:
    spec, parameters = mha
    for changes in ({"vocab_size": 300}, {"intermediate_size": 128}, {"num_layers": 1}, {"n_kv_heads": 2}):
        with pytest.raises(CheckpointError, match="does not fit the model"):
            LlamaBoost(config_of(spec, **changes)).set_weights(parameters)


def test_any_object_is_a_config(mha: tuple[TinySpec, dict[str, Any]]) -> None:
    """MindFormers passes its own class, whose types are MindSpore's."""
    spec, parameters = mha
    own = config_of(spec)
    names = ("hidden_size", "num_layers", "num_heads", "n_kv_heads", "seq_length", "block_size", "num_blocks", "theta")
    values = {name: getattr(own, name) for name in (*names, "rms_norm_eps", "use_past")}

    class BFloat16:
        def __str__(self) -> str:
            return "BFloat16"

    foreign = types.SimpleNamespace(**values, compute_dtype=BFloat16(), rotary_dtype="float32")
    boosts = [LlamaBoost(own), LlamaBoost(foreign)]
    for boost in boosts:
        boost.set_weights(parameters)
        boost.add_flags(is_first_iteration=True)
    first, second = (boost.forward(prompt_step([1, 2, 3])) for boost in boosts)
    np.testing.assert_array_equal(first, second)


def test_the_registry() -> None:
    class Registry(LlmBoostRegister):
        registry: ClassVar[dict[str, dict[str, type]]] = {}

    @Registry.register("BuildIn", "Mine")
    class Mine(LlamaBoost):
        pass

    config = config_of(TINY_SPECS["llama_mha"])
    assert Registry.is_exist("BuildIn")
    assert Registry.is_exist("BuildIn", "Mine")
    assert not Registry.is_exist("BuildIn", "Other")
    assert not Registry.is_exist("Other")
    assert Registry.get_cls("BuildIn", "Mine") is Mine
    assert type(Registry.get_instance("BuildIn", "Mine", config=config)) is Mine
    assert type(Registry.get_instance("BuildIn", LlamaBoost, config=config)) is LlamaBoost
    for backend in ("BuildIn", "ATB", "CPU"):
        assert issubclass(LlmBoostRegister.get_cls(backend, "Llama"), LlmBoost)
    with pytest.raises(ConfigError, match="unknown llm_backend 'Other'"):
        Registry.get_instance("Other", "Mine", config=config)
    with pytest.raises(ConfigError, match="unknown boost_model_name 'mine'; did you mean 'Mine'"):
        Registry.get_cls("BuildIn", "mine")


# MindSpore's tensors


@pytest.fixture
def mindspore(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for MindSpore: its tensors have asnumpy() and get_bytes(), and are no arrays."""
    module = types.ModuleType("mindspore")

    class Tensor:
        __module__ = "mindspore.common.tensor"

        def __init__(self, array: Any) -> None:
            self._array = np.asarray(array)
            self.dtype = {"bfloat16": "BFloat16"}.get(self._array.dtype.name, self._array.dtype.name.capitalize())
            self.shape = self._array.shape

        def asnumpy(self) -> Any:
            if self.dtype == "BFloat16":
                raise TypeError("The Numpy bfloat16 data type is not supported now")
            return self._array

        def get_bytes(self) -> bytes:
            return bytes(self._array.tobytes())

        def __array__(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("taken for an array")

    module.Tensor = Tensor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mindspore", module)
    return module


def test_mindspore_tensors(mha: tuple[TinySpec, dict[str, Any]], mindspore: Any) -> None:
    spec, parameters = mha
    networks = [LlmBoostForCausalLM(config_of(spec)) for _ in range(2)]
    networks[0].llm_boost.set_weights(parameters)
    networks[1].llm_boost.set_weights({name: mindspore.Tensor(value) for name, value in parameters.items()})
    expected = drive(networks[0], PROMPTS, 60, -1, lambda array: array)
    assert drive(networks[1], PROMPTS, 60, -1, mindspore.Tensor) == expected
    boost = new_boost(spec, parameters)
    cos, sin = map(mindspore.Tensor, rotary_tables(spec, ml_dtypes.bfloat16))
    inputs = {name: mindspore.Tensor(value) for name, value in prompt_step([1, 2, 3]).items() if value is not None}
    logits = boost.forward({**inputs, "cos_embed": cos, "sin_embed": sin, "seq_lens": [3]})
    assert isinstance(logits, mindspore.Tensor)


def test_mindspore_is_not_imported() -> None:
    code = "import sys, llm_boost.integrations.mindspore; sys.exit('mindspore' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.filterwarnings("default")
def test_the_real_mindspore(mha: tuple[TinySpec, dict[str, Any]]) -> None:
    """Runs where MindSpore is installed."""
    real = pytest.importorskip("mindspore", reason="MindSpore is not installed")
    spec, parameters = mha
    networks = [LlmBoostForCausalLM(config_of(spec)) for _ in range(2)]
    networks[0].llm_boost.set_weights(parameters)
    networks[1].llm_boost.set_weights(
        {name: real.Tensor(value.astype(np.float32), real.bfloat16) for name, value in parameters.items()}
    )
    expected = drive(networks[0], PROMPTS, 60, -1, lambda array: array)
    assert drive(networks[1], PROMPTS, 60, -1, real.Tensor) == expected
