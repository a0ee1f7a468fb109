"""Whole run configs: those that ship, those of MindFormers, those that are not YAML; and their reference page."""

from __future__ import annotations

import contextlib
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_config_files import WHOLE_FILE

from llm_boost import ConfigError, load_config
from llm_boost.run_config.keys import Section, subsections
from llm_boost.run_config.reader import shipped_configs
from llm_boost.run_config.resolve import source_of_run
from llm_boost.run_config.sections import ModelConfigSection, RootSection

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["predict_llama2_7b", "predict_qwen2_7b_instruct", "predict_smollm2_135m_instruct"])
def test_shipped_configs_load(name: str) -> None:
    run = load_config(ROOT / "configs" / f"{name}.yaml")
    model = run.model.model_config
    assert model.hidden_size is not None
    assert model.compute_dtype in ("float16", "bfloat16")
    if name != "predict_smollm2_135m_instruct":
        with pytest.raises(ConfigError, match="load_checkpoint is empty; set it, or give --load_checkpoint"):
            source_of_run(run)


class TestShippedNames:
    """Where there is no such file, the name of a shipped config will do."""

    @pytest.mark.parametrize("name", ["predict_llama2_7b", "predict_llama2_7b.yaml"])
    def test_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.chdir(tmp_path)
        assert load_config(name).path.read_bytes() == (ROOT / "configs" / "predict_llama2_7b.yaml").read_bytes()
        Path(name).write_text("model: {model_config: {num_layers: 5}}")
        assert load_config(name).model.model_config.num_layers == 5  # a file goes first

    def test_every_config_of_the_repository_is_in_the_package(self) -> None:
        assert {path.name for path in shipped_configs().values()} == {p.name for p in (ROOT / "configs").iterdir()}

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "predict_llama_7b",
                "predict_llama_7b: is not a file; unknown shipped run config 'predict_llama_7b'; did you",
            ),
            ("configs2/predict_llama2_7b.yaml", "does not exist; give a file, or one of predict_llama2_7b, "),
            ("predict_llama2_7b.txt", "does not exist; give a file, or one of"),
        ],
    )
    def test_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match=re.escape(message)):
            load_config(name)


def test_whole_mindformers_file(tmp_path: Path) -> None:
    path = tmp_path / "predict_llama2_7b.yaml"
    path.write_text(WHOLE_FILE, "utf-8")
    run = load_config(path)
    model = run.model.model_config
    assert (model.llm_backend, model.num_layers, model.eos_token_id, model.rms_norm_eps) == ("LLMBoost", 32, (2,), 1e-5)
    assert run.processor.tokenizer.bos_token == "<s>"
    assert run.ignored["optimizer"] == run.ignored["callbacks"] == "matters for training only"
    assert run.ignored["model.model_config.auto_map"].startswith("uploads and remote code")
    assert {"context.max_device_memory", "parallel", "trainer", "metric"} <= run.ignored.keys()
    assert not any(key.startswith("model.model_config.top") for key in run.ignored)


def test_aliases_and_merges(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "optimizer: &o {seed: 1}\ncontext:\n  <<: {device_id: 3, device_target: CPU}\n  device_id: 0\n<<: *o\n"
    )
    run = load_config(path)
    assert (run.seed, run.context.device_id, run.context.device_target) == (1, 0, "CPU")


# -- Anything at all ------------------------------------------------------------------------------------------------

YAML_PIECES = [*"{}[]:-~'\"\t", "&a ", "*a", "<<: ", "!!int ", "|\n", "? ", "1e400", "0x"]
FUZZING = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def read_or_refuse(text: str, directory: Path) -> None:
    path = directory / "run.yaml"
    path.write_text(text, "utf-8", errors="surrogatepass")
    with contextlib.suppress(ConfigError):
        load_config(path)


@FUZZING
@given(text=st.text() | st.lists(st.sampled_from([*YAML_PIECES, "model", "seed", "\n", "\n  ", " "])).map("".join))
def test_any_text_is_read_or_refused(text: str, tmp_path: Path) -> None:
    read_or_refuse(text, tmp_path)


@FUZZING
@given(data=st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    start = WHOLE_FILE.index("context:") + data.draw(st.integers(0, 1500))
    end = start + data.draw(st.integers(0, 8))
    piece = data.draw(st.sampled_from(YAML_PIECES) | st.text(max_size=3))
    read_or_refuse(WHOLE_FILE[WHOLE_FILE.index("context:") : start] + piece + WHOLE_FILE[end:], tmp_path)


# -- The reference page ---------------------------------------------------------------------------------------------


def reference(kind: type[Section], name: str) -> str:
    """The table of a section, as docs/run-configs.md has it."""
    inside = subsections(kind)
    rows = [
        f"| `{item.name}` | {item.metadata['meaning']} |" for item in fields(kind) if item.name not in inside
    ]  # fmt: skip
    unused: dict[str, list[str]] = {}
    for key, reason in kind.UNUSED.items():
        unused.setdefault(reason, []).append(f"`{key}`")
    notes = [f"- {', '.join(keys)}: {reason}." for reason, keys in unused.items()]
    text = [f"### {name}", ""]
    if rows:
        text += ["| key | meaning |", "|---|---|", *rows, ""]
    if notes:
        text += ["Accepted, without effect:", "", *notes, ""]
    text += [reference(section, f"{name}.{key}" if kind is not RootSection else key) for key, section in inside.items()]
    return "\n".join(text)


def test_reference_page_lists_every_key() -> None:
    page = (ROOT / "docs" / "run-configs.md").read_text("utf-8")
    assert reference(RootSection, "Top level") in page
    assert len(fields(ModelConfigSection)) > 35
