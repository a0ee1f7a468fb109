"""Every format of weights loads, gives the same tokens, and is refused with a reason where it cannot be understood."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from mindspore_files import write_ckpt
from reference.numpy_decoder import Array
from reference.tiny_models import TINY_SPECS, TinySpec, write_tiny_model
from safetensors.numpy import save_file
from test_convert_weight import MODEL_NAMES, QUIET, RUN, arrays

from llm_boost import CheckpointError, ConfigError, Model
from llm_boost.checkpoint import read_checkpoint
from llm_boost.cli import main
from llm_boost.convert_weight import convert_to_hugging_face, convert_to_mindspore
from llm_boost.model_config import ModelConfig

Tiny = Callable[[str], Path]
Weights = dict[str, Array]
NAMES = ["llama_gqa_tied", "qwen2_f16"]
PROMPT = [72, 101, 108, 108, 111]


def mindformers(source: Path, *, fused: bool) -> Weights:
    """The model under MindFormers names, by numpy."""
    hidden_to_mf = {
        "embed_tokens.weight": "tok_embeddings.embedding_weight",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.norm": "model.norm_out",
        "self_attn.o_proj": "attention.wo",
        "mlp.down_proj": "feed_forward.w2",
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
    }
    weights: Weights = {}
    for name, values in arrays(source).items():
        for old, new in hidden_to_mf.items():
            name = name.replace(old, new)
        weights[name] = values
    if fused:
        for name in [name for name in weights if ".wq." in name or ".w1." in name]:
            parts, whole = (("wq", "wk", "wv"), "w_qkv") if ".wq." in name else (("w1", "w3"), "w_gate_hidden")
            whole = name.replace(parts[0], whole)
            weights[whole] = np.concatenate([weights.pop(name.replace(parts[0], part)) for part in parts])
    return weights


def shards(weights: Weights, spec: TinySpec, ranks: int) -> list[Weights]:
    """The weights as tensor parallelism shares them out; q, k, v are fused after the split."""
    shares: list[Weights] = [{} for _ in range(ranks)]
    head = spec.head_dim or spec.hidden // spec.heads
    for name, values in weights.items():
        kind = name.split(".")[-2]
        for rank, share in enumerate(shares):
            if kind in ("wo", "w2"):
                share[name] = np.split(values, ranks, axis=1)[rank]
            elif kind == "w_qkv":
                q, kv = spec.heads * head, spec.kv_heads * head
                parts = np.split(values, [q, q + kv])
                share[name] = np.concatenate([np.split(part, ranks)[rank] for part in parts])
            elif kind == "w_gate_hidden":
                share[name] = np.concatenate([np.split(part, ranks)[rank] for part in np.split(values, 2)])
            elif kind in ("wq", "wk", "wv", "w1", "w3", "lm_head"):
                share[name] = np.split(values, ranks)[rank]
            else:
                share[name] = values
    return shares


def halves(weights: Weights) -> list[Weights]:
    items = list(weights.items())
    return [dict(items[:7]), dict(items[7:])]


@dataclass(frozen=True)
class Formats:
    """Writes a model to the directory `target`, and returns what to load."""

    target: Path
    split: Weights
    fused: Weights
    spec: TinySpec

    def ckpt(self) -> Path:
        return write_ckpt(self.target / "m.ckpt", self.split)

    def sliced_ckpt_without_checksum(self) -> Path:
        return write_ckpt(self.target / "m.ckpt", self.split, slice_bytes=1001, checksum=False)

    def fused_ckpt(self) -> Path:
        return write_ckpt(self.target / "m.ckpt", self.fused)

    def partly_fused_ckpt(self) -> Path:
        mixed = {name: v for name, v in self.split.items() if not re.search(r"feed_forward\.w[13]", name)}
        mixed |= {name: v for name, v in self.fused.items() if "w_gate_hidden" in name}
        return write_ckpt(self.target / "m.ckpt", mixed)

    def training_ckpt(self) -> Path:
        extra = {f"adam_m.{name}": values for name, values in list(self.split.items())[:3]}
        extra |= {"global_step": np.asarray([7], np.int32), "loss_scale": np.float32(1)}
        return write_ckpt(self.target / "m.ckpt", self.split | extra)

    def safetensors(self) -> Path:
        save_file(self.split, self.target / "m.safetensors", {"format": "ms"})
        return self.target / "m.safetensors"

    def fused_safetensors(self) -> Path:
        save_file(self.fused, self.target / "m.safetensors", {"format": "ms"})
        return self.target / "m.safetensors"

    def directory_of_ckpt(self) -> Path:
        for number, part in enumerate(halves(self.split)):
            write_ckpt(self.target / f"part{number}.ckpt", part)
        return self.target

    def directory_of_safetensors(self) -> Path:
        for number, part in enumerate(halves(self.fused)):
            save_file(part, self.target / f"part{number}.safetensors")
        return self.target

    def safetensors_with_name_map(self) -> Path:
        parts = {f"part{number}.safetensors": part for number, part in enumerate(halves(self.split))}
        for name, part in parts.items():
            save_file(part, self.target / name)
        index = {name: file for file, part in parts.items() for name in part}
        (self.target / "param_name_map.json").write_text(json.dumps(index))
        return self.target

    def rank_0(self) -> Path:
        write_ckpt(self.target / "rank_0" / "checkpoint_0.ckpt", self.fused)
        return self.target

    def two_ranks(self) -> Path:
        return self._ranks(shards(self.split, self.spec, 2))

    def two_fused_ranks(self) -> Path:
        return self._ranks(shards(self.fused, self.spec, 2))

    def data_parallel_ranks(self) -> Path:
        return self._ranks([self.split] * 3)

    def _ranks(self, shares: list[Weights]) -> Path:
        for rank, share in enumerate(shares):
            write_ckpt(self.target / f"rank_{rank}" / f"checkpoint_{rank}.ckpt", share, slice_bytes=999)
        return self.target


FORMATS = [name for name in vars(Formats) if not name.startswith("_") and callable(getattr(Formats, name))]


def write_format(kind: str, target: Path, source: Path, spec: TinySpec) -> Path:
    target.mkdir()
    for path in source.glob("*.json"):
        shutil.copyfile(path, target / path.name)
    formats = Formats(target, mindformers(source, fused=False), mindformers(source, fused=True), spec)
    made: Path = getattr(formats, kind)()
    return made


def tokens(path: Path) -> tuple[list[int], bytes]:
    """What a model says, and the logits of its prompt, bit for bit."""
    with Model.from_pretrained(path, max_model_len=64, num_threads=1, use_tqdm=False) as model:
        count = len(PROMPT)
        logits = model.forward(
            token_ids=PROMPT,
            positions=range(count),
            slots=range(count),
            seq_begin=[0, count],
            context_len=[count],
            logit_rows=[count - 1],
            block_table=[0, -1, -1, -1],
        )
        return list(model.generate(PROMPT)[0].outputs[0].token_ids), logits.tobytes()


def spec_of(name: str) -> TinySpec:
    # Two ranks need an even number of heads of each kind, and of tokens.
    return TinySpec(arch="qwen2", heads=8, vocab=258, dtype="f16") if name == "qwen2_f16" else TINY_SPECS[name]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, tuple[list[int], bytes]]]:
    root = tmp_path_factory.mktemp("formats")
    paths = {name: write_tiny_model(root / name, spec_of(name)) for name in NAMES}
    return {name: (path, tokens(path)) for name, path in paths.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_tokens(
    models: dict[str, tuple[Path, tuple[list[int], bytes]]], tmp_path: Path, name: str, kind: str
) -> None:
    source, expected = models[name]
    path = write_format(kind, tmp_path / "m", source, spec_of(name))
    assert tokens(path) == expected
    back = convert_to_hugging_face(path, tmp_path / "back", QUIET, config_path=source)
    assert (back / "model.safetensors").stat().st_size > 1000
    assert {n: v.tobytes() for n, v in arrays(back).items()} == {n: v.tobytes() for n, v in arrays(source).items()}


@pytest.mark.parametrize("kind", ["fused_ckpt", "directory_of_safetensors", "two_ranks"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_config_stands_in_for_config_json(
    models: dict[str, tuple[Path, tuple[list[int], bytes]]], tmp_path: Path, name: str, kind: str
) -> None:
    source, expected = models[name]
    path = write_format(kind, tmp_path / "m", source, spec_of(name))
    for companion in (tmp_path / "m").glob("*.json"):
        companion.unlink()
    spec = spec_of(name)
    text = RUN.format(name=MODEL_NAMES[spec.arch], spec=spec) + f"load_checkpoint: {path}\n"
    text = text.replace("    theta:", f"    tie_word_embeddings: {spec.tie}\n    theta:")
    (tmp_path / "run.yaml").write_text(text)
    assert tokens(tmp_path / "run.yaml")[1] == expected[1]


def test_info_and_run_take_a_checkpoint_file(
    tiny_model: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_format("fused_ckpt", tmp_path / "m", tiny_model("llama_mha"), TINY_SPECS["llama_mha"])
    assert main(["info", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 2
    assert main(["run", str(path), "Hello", "--raw", "--max-tokens", "2", "--temperature", "0"]) == 0


class TestRefused:
    """What cannot be understood."""

    def weights(self, tiny_model: Tiny) -> tuple[Weights, ModelConfig]:
        source = tiny_model("llama_gqa_tied")
        return mindformers(source, fused=False), ModelConfig.from_directory(source)

    def fails(self, path: Path, config: ModelConfig, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(path, config)

    def test_unknown_names(self, tiny_model: Tiny, tmp_path: Path) -> None:
        weights, config = self.weights(tiny_model)
        renamed = {f"network.{name}": values for name, values in weights.items()}
        path = write_ckpt(tmp_path / "x.ckpt", renamed)
        self.fails(
            path, config, r"holds neither 'model.embed_tokens.weight' \(Hugging Face\) nor .* starts with 'network"
        )

    def test_all_problems_are_one_error(self, tiny_model: Tiny, tmp_path: Path) -> None:
        weights, config = self.weights(tiny_model)
        del weights["model.layers.1.attention.wk.weight"]
        weights["model.layers.0.attention.wo.weight"] = weights["model.layers.0.attention.wo.weight"].astype(np.int8)
        weights["model.layers.0.feed_forward.w2.weight"] = np.ones((64, 99), ml_dtypes.bfloat16)
        weights["model.layers.0.surplus.weight"] = np.ones((2, 2), np.float32)
        save_file(weights, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(tmp_path / "x.safetensors", config)
        text = str(caught.value)
        assert "missing 'model.layers.1.attention.wk.weight' [16, 64]" in text
        assert "wo.weight' int8 [64, 64], expected one of the types float32, float16, bfloat16" in text
        assert "w2.weight' bfloat16 [64, 99], expected shape [64, 100]" in text
        assert "surplus x.safetensors: 'model.layers.0.surplus.weight'" in text

    def test_two_checkpoints_in_a_directory(self, tiny_model: Tiny, tmp_path: Path) -> None:
        weights, config = self.weights(tiny_model)
        for step in (1, 2):
            write_ckpt(tmp_path / f"step{step}.ckpt", weights)
        self.fails(tmp_path, config, "both step1.ckpt and step2.ckpt hold .* name the file that is wanted")

    def test_name_map_outside_the_directory(self, tiny_model: Tiny, tmp_path: Path) -> None:
        _, config = self.weights(tiny_model)
        for content, message in [
            ('{"a": "../x.safetensors"}', "names the file"),
            ("{}", "param_name_map.json: is empty"),
        ]:
            (tmp_path / "param_name_map.json").write_text(content)
            self.fails(tmp_path, config, message)

    def test_ranks_that_do_not_add_up(self, tiny_model: Tiny, tmp_path: Path) -> None:
        weights, config = self.weights(tiny_model)
        four = shards(weights, TINY_SPECS["llama_gqa_tied"], 4)
        for rank, share in enumerate(four[:2]):  # two of four
            write_ckpt(tmp_path / "a" / f"rank_{rank}" / "x.ckpt", share)
        self.fails(tmp_path / "a", config, r"\[16, 64\], expected shape \[64, 64\], or a share .* on each of 2 ranks")
        four[1]["model.layers.0.attention.wq.weight"] = weights["model.layers.0.attention.wq.weight"]
        for rank, share in enumerate(four):
            write_ckpt(tmp_path / "b" / f"rank_{rank}" / "x.ckpt", share)
        self.fails(tmp_path / "b", config, "wq.weight' differs in type or shape from rank to rank")
        shutil.rmtree(tmp_path / "b" / "rank_2")
        self.fails(tmp_path / "b", config, "has 3 directories rank_.*, but no rank_2")

    def test_a_weight_that_some_ranks_lack(self, tiny_model: Tiny, tmp_path: Path) -> None:
        weights, config = self.weights(tiny_model)
        two = shards(weights, TINY_SPECS["llama_gqa_tied"], 2)
        del two[1]["model.norm_out.weight"]  # rank 0 has all of it
        for rank, share in enumerate(two):
            write_ckpt(tmp_path / f"rank_{rank}" / "x.ckpt", share)
        read_checkpoint(tmp_path, config)
        del two[1]["model.layers.0.attention.wq.weight"]  # of this, only half is left
        write_ckpt(tmp_path / "rank_1" / "x.ckpt", two[1])
        self.fails(tmp_path, config, "wq.weight' .*, or a share of its rows")

    def test_a_checkpoint_without_config(self, tiny_model: Tiny, tmp_path: Path) -> None:
        path = convert_to_mindspore(tiny_model("llama_mha"), tmp_path / "m.ckpt", QUIET)
        with pytest.raises(ConfigError, match=r"has no config.json, .*; copy it beside the weights"):
            Model.from_pretrained(path)
