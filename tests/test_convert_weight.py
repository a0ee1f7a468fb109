"""Conversion of weights: bit for bit there and back, the original's command lines, and failures that leave no trace."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from mindspore_files import tensor, value, write_ckpt
from reference.numpy_decoder import Array
from reference.tiny_models import TINY_SPECS
from safetensors.numpy import load_file

from llm_boost import CheckpointError, convert_weight
from llm_boost.checkpoint import StoredTensor, open_checkpoint
from llm_boost.convert_weight import Options, convert_to_hugging_face, convert_to_mindspore, fuse_checkpoint, stream
from llm_boost.model_config import ModelConfig

QUIET = Options(progress=False)
NUMPY = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "int32": np.int32}
Tiny = Callable[[str], Path]


def array(stored: StoredTensor) -> Array:
    data = b""
    for path, begin, count in stored.segments:
        with open(path, "rb") as file:
            file.seek(begin)
            data += file.read(count)
    values: Array = np.frombuffer(data, NUMPY[stored.dtype]).reshape(stored.shape)
    return values


def arrays(path: Path) -> dict[str, Array]:
    (stored,) = open_checkpoint(path)
    return {name: array(stored) for name, stored in stored.items()}


def assert_same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape), name
        assert found[name].tobytes() == values.tobytes(), name


def run(*words: object) -> int:
    return convert_weight.main([str(word) for word in words])


@pytest.mark.parametrize("name", TINY_SPECS)
@pytest.mark.parametrize("slice_bytes", [10_001, 1 << 29])
def test_there_and_back_is_bit_exact(tiny_model: Tiny, tmp_path: Path, name: str, slice_bytes: int) -> None:
    options = Options(progress=False, slice_bytes=slice_bytes)
    source, spec = tiny_model(name), TINY_SPECS[name]
    ckpt = convert_to_mindspore(source, tmp_path / "m.ckpt", options)
    fused = fuse_checkpoint(ckpt, tmp_path / "fused.ckpt", options)
    direct = convert_to_mindspore(source, tmp_path / "direct.ckpt", options, fused=True)
    assert fused.read_bytes() == direct.read_bytes()
    for made in (ckpt, fused):
        back = convert_to_hugging_face(made, tmp_path / f"back-{made.stem}", options, config_path=source)
        assert_same(arrays(back), arrays(source))
        assert load_file(back / "model.safetensors").keys() == arrays(source).keys()
        for companion in source.glob("*.json"):
            if companion.name != "model.safetensors.index.json":
                assert (back / companion.name).read_bytes() == companion.read_bytes()
    stored = arrays(fused)
    assert "lm_head.weight" in stored
    assert len(stored) == 3 + spec.layers * (7 if spec.arch == "qwen2" else 6)
    if spec.tie:
        assert stored["lm_head.weight"].tobytes() == stored["model.tok_embeddings.embedding_weight"].tobytes()


def test_names_and_rows(tiny_model: Tiny, tmp_path: Path) -> None:
    source = arrays(tiny_model("qwen2_tied"))
    split = arrays(convert_to_mindspore(tiny_model("qwen2_tied"), tmp_path / "m.ckpt", QUIET))
    fused = arrays(fuse_checkpoint(tmp_path / "m.ckpt", tmp_path / "fused.ckpt", QUIET))
    layer, stored = "model.layers.1.", "model.layers.1.self_attn."
    assert_same(
        {name: values for name, values in split.items() if name.startswith(layer + "attention.wk")},
        {
            layer + "attention.wk.weight": source[stored + "k_proj.weight"],
            layer + "attention.wk.bias": source[stored + "k_proj.bias"],
        },
    )
    for kind in ("weight", "bias"):
        parts = [source[f"{stored}{part}_proj.{kind}"] for part in "qkv"]
        np.testing.assert_array_equal(fused[f"{layer}attention.w_qkv.{kind}"], np.concatenate(parts))
    gate_up = [source[f"{layer}mlp.{part}_proj.weight"] for part in ("gate", "up")]
    np.testing.assert_array_equal(fused[layer + "feed_forward.w_gate_hidden.weight"], np.concatenate(gate_up))
    assert not any(".wq." in name or ".w1." in name for name in fused)


class TestTypes:
    """--dtype."""

    @pytest.mark.parametrize("flag", ["fp32", "fp16", "bf16"])
    @pytest.mark.parametrize("name", ["llama_mha", "llama_f16", "llama_mqa_f32"])
    def test_conversion(self, tiny_model: Tiny, tmp_path: Path, name: str, flag: str) -> None:
        source, target = tiny_model(name), tmp_path / "x.safetensors"
        assert run("--model", "llama", "--input_path", source, "--output_path", target, "--dtype", flag) == 0
        kind = NUMPY[{"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[flag]]
        embedding = arrays(source)["model.embed_tokens.weight"].astype(np.float32).astype(kind)
        found = arrays(target)
        assert {values.dtype for values in found.values()} == {np.dtype(kind)}
        assert found["model.tok_embeddings.embedding_weight"].tobytes() == embedding.tobytes()

    def test_every_bfloat16_survives_float32(self, tmp_path: Path) -> None:
        every = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
        ckpt = write_ckpt(tmp_path / "x.ckpt", {"a": every})
        (stored,) = open_checkpoint(ckpt)
        with stream.ChunkReader() as reader:
            wide = b"".join(bytes(chunk) for chunk in reader.chunks(stored["a"], "float32"))
        assert (np.frombuffer(wide, np.uint32) >> 16).astype(np.uint16).tobytes() == every.tobytes()
        assert not (np.frombuffer(wide, np.uint32) & 0xFFFF).any()

    def test_float16_overflow_is_an_error_and_infinity_is_not(self, tmp_path: Path) -> None:
        (stored,) = open_checkpoint(write_ckpt(tmp_path / "x.ckpt", {"big": np.float32([1, np.inf, 65536, 2])}))
        (fine,) = open_checkpoint(write_ckpt(tmp_path / "y.ckpt", {"fine": np.float32([1, -np.inf, 65504, np.nan])}))
        with stream.ChunkReader() as reader:
            with pytest.raises(CheckpointError, match=r"'big' .* holds 65536, and float16 ends at 65504"):
                list(reader.chunks(stored["big"], "float16"))
            assert bytes(next(reader.chunks(fine["fine"], "float16")))[:6] == np.float16([1, -np.inf, 65504]).tobytes()

    def test_reversed_config_tells_the_new_type(self, tiny_model: Tiny, tmp_path: Path) -> None:
        target = tmp_path / "x"
        assert run(tiny_model("llama_mha"), target, "--reversed", "--dtype", "fp32") == 0
        assert json.loads((target / "config.json").read_text("utf-8"))["torch_dtype"] == "float32"

    def test_chunks_may_end_anywhere(self, tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = convert_to_mindspore(tiny_model("qwen2_tied"), tmp_path / "a.ckpt", QUIET).read_bytes()
        monkeypatch.setattr(stream, "_CHUNK_BYTES", 24)
        assert convert_to_mindspore(tiny_model("qwen2_tied"), tmp_path / "b.ckpt", QUIET).read_bytes() == whole


RUN = """
model:
  model_config:
    type: LlmBoostConfig
    llm_backend: CPU
    boost_model_name: {name}
    seq_length: 512
    max_position_embedding: 512
    hidden_size: {spec.hidden}
    intermediate_size: {spec.ffn}
    num_layers: {spec.layers}
    num_heads: {spec.heads}
    n_kv_heads: {spec.kv_heads}
    vocab_size: {spec.vocab}
    rms_norm_eps: {spec.eps:.1e}
    theta: {spec.theta}
    eos_token_id: {spec.end_of_text}
  arch:
    type: LlmBoostForCausalLM
"""
MODEL_NAMES = {"llama": "Llama", "qwen2": "Qwen"}


class TestRunConfig:
    """--config_path run.yaml: what describes a model that has no config.json."""

    @pytest.mark.parametrize("name", ["llama_mha", "qwen2_f16"])
    def test_config_is_made_anew(self, tiny_model: Tiny, tmp_path: Path, name: str) -> None:
        source, spec = tiny_model(name), TINY_SPECS[name]
        (tmp_path / "run.yaml").write_text(RUN.format(name=MODEL_NAMES[spec.arch], spec=spec))
        ckpt = convert_to_mindspore(source, tmp_path / "m.ckpt", QUIET)
        assert run(ckpt, tmp_path / "hf", "--reversed", "--config_path", tmp_path / "run.yaml") == 0
        expected, found = ModelConfig.from_directory(source), ModelConfig.from_directory(tmp_path / "hf")
        rest = {"generation_defaults": expected.generation_defaults, "pad_token_id": expected.pad_token_id}
        assert dataclasses.replace(found, **rest) == expected
        made = json.loads((tmp_path / "hf" / "config.json").read_text("utf-8"))
        assert made["torch_dtype"] == arrays(source)["model.norm.weight"].dtype.name
        assert_same(arrays(tmp_path / "hf"), arrays(source))

    def test_what_config_json_cannot_say(
        self, tiny_model: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ckpt = convert_to_mindspore(tiny_model("llama_mha"), tmp_path / "m.ckpt", QUIET)
        text = RUN.format(name="Llama", spec=TINY_SPECS["llama_mha"])
        stretched = text.replace("    theta:", '    extend_method: "PI"\n    scaling_factor: 2.0\n    theta:')
        (tmp_path / "run.yaml").write_text(stretched)
        assert run(ckpt, tmp_path / "hf", "--reversed", "--config_path", tmp_path / "run.yaml") == 2
        assert "has an extend_method, for which config.json has no word" in capsys.readouterr().err
        assert sorted(os.listdir(tmp_path)) == ["m.ckpt", "run.yaml"]


class TestFusing:
    """--pre_ckpt_path ... -qkv_concat True."""

    def split(self) -> dict[str, Array]:
        random = np.random.default_rng(0)
        shapes = {"attention.wq.weight": (8, 8), "attention.wk.weight": (4, 8), "attention.wv.weight": (4, 8)}
        shapes |= {"feed_forward.w1.weight": (6, 8), "feed_forward.w3.weight": (6, 8), "ffn_norm.weight": (8,)}
        names = [(f"model.layers.{layer}.{name}", shape) for layer in range(11) for name, shape in shapes.items()]
        return {name: random.random(shape).astype(np.float32) for name, shape in names}

    def test_ranks_are_fused_one_by_one(self, tmp_path: Path) -> None:
        shares = []
        for rank in range(2):
            shares.append(self.split() | {"global_step": np.asarray(rank, np.int32)})
            write_ckpt(tmp_path / "in" / f"rank_{rank}" / f"checkpoint_{rank}.ckpt", shares[rank])
        words = ["--pre_ckpt_path", tmp_path / "in", "--mindspore_ckpt_path", tmp_path / "out", "-qkv_concat", "True"]
        assert run(*words) == 0
        assert run(*words) == 2  # it is there
        for rank, share in enumerate(shares):
            fused = arrays(tmp_path / "out" / f"rank_{rank}" / f"checkpoint_{rank}.ckpt")
            assert fused["global_step"] == rank
            assert len(fused) == 1 + 11 * 3
            parts = [share[f"model.layers.10.attention.w{part}.weight"] for part in "qkv"]
            np.testing.assert_array_equal(fused["model.layers.10.attention.w_qkv.weight"], np.concatenate(parts))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"model.layers.3.attention.wk.weight": None},
                r"missing '.*.3.attention.wk.weight', which belongs",
            ),
            (
                {"model.layers.3.attention.wq.weight": None},
                r"missing '.*.3.attention.wq.weight', which belongs",
            ),
            ({"model.layers.3.attention.wk.weight": np.ones((4, 9), np.float32)}, r"parts do not fit: .*\[4, 9\]"),
            ({"model.layers.3.attention.wk.weight": np.ones((4, 8), np.float16)}, "parts do not fit: .*float16"),
            ({"model.layers.3.attention.w_qkv.weight": np.ones((4, 8), np.float16)}, "w_qkv.weight' is there already"),
        ],
    )
    def test_what_does_not_belong_together(self, tmp_path: Path, change: dict[str, Array | None], message: str) -> None:
        tensors = {name: values for name, values in (self.split() | change).items() if values is not None}
        with pytest.raises(CheckpointError, match=message):
            fuse_checkpoint(write_ckpt(tmp_path / "x.ckpt", tensors), tmp_path / "y.ckpt", QUIET)

    def test_nothing_to_fuse(self, tiny_model: Tiny, tmp_path: Path) -> None:
        fused = fuse_checkpoint(write_ckpt(tmp_path / "x.ckpt", self.split()), tmp_path / "fused.ckpt", QUIET)
        with pytest.raises(CheckpointError, match=r"fused.ckpt: is fused already"):
            fuse_checkpoint(fused, tmp_path / "again.ckpt", QUIET)
        with pytest.raises(CheckpointError, match="give a Hugging Face model as --input_path"):
            fuse_checkpoint(tiny_model("llama_mha"), tmp_path / "again.ckpt", QUIET)


def test_old_checkpoints_are_updated(tiny_model: Tiny, tmp_path: Path) -> None:
    """Interleaving the rows of wq and wk makes an old checkpoint of today's."""
    source = tiny_model("llama_gqa_tied")
    today = arrays(convert_to_mindspore(source, tmp_path / "today.ckpt", QUIET))
    old = dict(today)
    for name, values in today.items():
        if ".wq." in name or ".wk." in name:
            halves = values.reshape(-1, 2, 4, values.shape[1])  # heads of 8 elements
            old[name] = halves.transpose(0, 2, 1, 3).reshape(values.shape)
    write_ckpt(tmp_path / "old.ckpt", old)
    assert run("--pre_ckpt_path", tmp_path / "old.ckpt", "--config_path", source) == 0
    assert_same(arrays(tmp_path / "old_hf.ckpt"), today)


def test_a_head_that_is_not_the_embedding_is_not_lost(tiny_model: Tiny, tmp_path: Path) -> None:
    source = tiny_model("llama_gqa_tied")
    tensors = arrays(convert_to_mindspore(source, tmp_path / "x.ckpt", QUIET))
    tensors["lm_head.weight"] = np.array(tensors["lm_head.weight"])
    tensors["lm_head.weight"][-1, -1] += 1
    ckpt = write_ckpt(tmp_path / "y.ckpt", tensors)
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' is not the embedding, but config.json has tie_word"):
        convert_to_hugging_face(ckpt, tmp_path / "back", QUIET, config_path=source)


MISTAKES = {
    "empty source": ("'' out.ckpt", "argument SOURCE: is empty, expected a path"),
    "empty target": ("HF ''", "argument TARGET: is empty, expected a path"),
    "empty option": ("--input_path '' --output_path x", "argument --input_path: is empty, expected a path"),
    "nothing": ("", "expected one of SOURCE, --input_path, --torch_ckpt_path, --pre_ckpt_path; found none"),
    "no target": ("HF", "where to write is missing; give TARGET or --output_path"),
    "two sources": ("HF out.ckpt --input_path HF", "found SOURCE and --input_path"),
    "targets mixed up": (
        "--input_path HF --mindspore_ckpt_path x",
        "_ckpt_path does not go with --input_path",
    ),
    "unknown model": ("HF out.ckpt --model glm", "argument --model: invalid choice: 'glm'"),
    "other model": ("HF out.ckpt --model qwen2", "is a llama model, but --model is qwen2"),
    "unknown type": ("HF out.ckpt --dtype int8", "argument --dtype: invalid choice: 'int8'"),
    "misspelt option": ("HF out.ckpt --dtpye fp16", "unknown option '--dtpye'; did you mean '--dtype'?"),
    "qkv_concat maybe": (
        "HF out.ckpt --qkv_concat maybe",
        "-qkv_concat: expected True or False, found 'maybe'",
    ),
    "n_head": ("HF out.ckpt --n_head 32", "--n_head is not supported: the shape comes from the model's config.json"),
    "layers": ("HF out.ckpt --layers 2", "--layers is not supported: the shape comes from"),
    "is_pretrain": ("HF out.ckpt --is_pretrain True", "--is_pretrain is not supported: it is about GLM"),
    "telechat": ("HF out.ckpt --telechat_type x", "--telechat_type is not supported: it is about TeleChat"),
    "reversed and fused": ("CKPT out --reversed --qkv_concat", "--qkv_concat cannot be used with --reversed"),
    "old checkpoint without config": (
        "--pre_ckpt_path CKPT",
        "--pre_ckpt_path needs --qkv_concat True, or",
    ),
    "reversed old checkpoint": ("--pre_ckpt_path CKPT --reversed", "--reversed cannot be used with --pre_ckpt_path"),
    "fusing with a config": ("--pre_ckpt_path CKPT --qkv_concat --config_path HF", "--config_path cannot be used with"),
    "source missing": ("missing out.ckpt", "missing: does not exist"),
    "ckpt missing": ("missing.ckpt out.ckpt", "missing.ckpt: is not a file"),
    "source empty": ("EMPTY out.ckpt", "has no weights: neither model.safetensors"),
    "no config": ("CKPT out.ckpt", "has no config.json, which describes the model"),
    "config elsewhere": ("CKPT out.ckpt --config_path EMPTY", "has no config.json, which describes the model"),
    "Meta's pth": ("--torch_ckpt_path PTH", "consolidated.00.pth is a PyTorch pickle, which is never opened"),
    "Meta's pth file": ("PTH/consolidated.00.pth out.ckpt", "consolidated.00.pth: is a PyTorch pickle"),
    "not a checkpoint": ("HF/config.json out.ckpt", "config.json: is not a checkpoint; expected a directory"),
    "GGUF and type": ("x.gguf out --dtype bf16", "--dtype cannot be used with a GGUF file"),
    "GGUF without target": ("x.gguf", "where to write is missing"),
    "target is a directory": ("HF DIR.ckpt", "DIR.ckpt: is a directory, expected the name of the file to make"),
    "target is the root": ("HF /", "/: is a directory, expected the name of the file to make"),
    "target is the directory above": ("HF ..", "..: is a directory, expected the name of the file to make"),
    "target in a file": ("HF HF/config.json/x.ckpt", "config.json/x.ckpt: cannot be written: "),
    "directory in a file": ("HF HF/config.json/x --reversed", "config.json/x: cannot be written: "),
    "target of 300 letters": (f"HF {'x' * 300}.ckpt", "xxx.ckpt: cannot be written: "),
    "directory of 300 letters": (f"HF {'x' * 300} --reversed", "xxx: cannot be written: "),
    "source of 300 letters": (f"{'x' * 300} out.ckpt", "xxx: "),
    "directory without a name": ("HF / --reversed", "/: has no name, expected that of the directory to make"),
    "beside the source": ("CKPTS CKPTS/new.ckpt --config_path HF", "new.ckpt: would be read as a part of 'ckpt' from"),
    "before the source": ("CKPTS CKPTS/x.safetensors --config_path HF", "would be read as a part of 'ckpt'"),
    "before a model": ("HF HF/model.safetensors --force", "would be read as a part of"),
    "beside ranks": ("--pre_ckpt_path RANKS/rank_0 --mindspore_ckpt_path RANKS/rank_0/x --qkv_concat", "as a part of"),
    "old one beside itself": ("--pre_ckpt_path CKPTS --config_path HF --mindspore_ckpt_path CKPTS/x", "as a part of"),
    "config missing": ("CKPT out.ckpt --config_path nowhere", "nowhere: does not exist; expected a config.json, a dir"),
    "config of another name": ("CKPT out.ckpt --config_path HF/tokenizer.json", "is not a config.json, a directory"),
    "encrypted": ("ENCRYPTED out.ckpt", "is encrypted; load it in MindSpore with its key"),
    "damaged": ("DAMAGED out.ckpt", "has the checksum"),
    "other shape": ("CKPT out.ckpt --config_path QWEN", "the checkpoint does not fit the model's config:"),
    "rank missing": ("--pre_ckpt_path RANKS --qkv_concat", "has 2 directories rank_*, but no rank_1"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_give_one_message_and_exit_code_2(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for directory in ("EMPTY", "DIR.ckpt", "RANKS/rank_0", "RANKS/rank_2", "PTH", "ckpt"):
        Path(directory).mkdir(parents=True)
    Path("PTH/consolidated.00.pth").write_bytes(b"PK\x03\x04")
    Path("ENCRYPTED.ckpt").write_bytes(b"\xd8\x5e\x3a\x7f" + bytes(64))
    Path("DAMAGED.ckpt").write_bytes(value("a", tensor()) + b"crc_num" + bytes(10))
    if "CKPT" in MISTAKES[case][0]:
        convert_to_mindspore(tiny_model("llama_mha"), Path("ckpt/m.ckpt"), QUIET)
    paths = {"CKPT": "ckpt/m.ckpt", "CKPTS": "ckpt", "ENCRYPTED": "ENCRYPTED.ckpt", "DAMAGED": "DAMAGED.ckpt"}
    paths |= {"HF": str(tiny_model("llama_mha")), "QWEN": str(tiny_model("qwen2_tied"))}
    words = [paths.get(word, word) for word in shlex.split(MISTAKES[case][0])]
    words = [word.replace("HF/", paths["HF"] + "/").replace("CKPTS/", "ckpt/") for word in words]
    before = sorted(tmp_path.rglob("*"))
    try:
        code = convert_weight.main(words)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else -1
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.out == ""
    assert captured.err.startswith("llm-boost convert: ")
    assert MISTAKES[case][1] in captured.err
    assert "Traceback" not in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_seed_command_lines(tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its README has them, through the module."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model("llama_mha"), "hf")
    for line in (
        "--model llama --input_path hf --output_path out/llama --dtype bf16",
        "--pre_ckpt_path out/llama.ckpt --mindspore_ckpt_path fused.ckpt -qkv_concat True",
        "--torch_ckpt_path hf --qkv_concat False",
        "--model llama --input_path hf --output_path direct.ckpt --qkv_concat",
    ):
        command = [sys.executable, "-m", "llm_boost.convert_weight", *line.split()]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert Path(result.stdout.strip()).is_file()
    assert Path("transform.ckpt").read_bytes() == Path("out/llama.ckpt").read_bytes()
    assert Path("fused.ckpt").read_bytes() == Path("direct.ckpt").read_bytes()
