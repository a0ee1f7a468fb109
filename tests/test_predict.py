"""``llm-boost predict``: every option takes effect, results look as they did, and mistakes end with exit code 2."""

from __future__ import annotations

import ast
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_config_files import write_run
from tokenizer_files import copy_vocabulary

from llm_boost import Model
from llm_boost.cli import main
from llm_boost.run_config import RunConfig
from llm_boost.run_config.resolve import source_of_run

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run config of a tiny model, in the working directory, where results go."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK_ID", raising=False)
    return write_run(tmp_path, tiny_model("llama_mha"), {"max_decode_length": 40})


def predict(run: Path, *words: str) -> int:
    try:
        return main(["predict", "--config", str(run), *words])
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else -1


def saved(run: Path, *words: str) -> list[str]:
    """The texts that a run saves."""
    assert predict(run, *words) == 0
    content = ast.literal_eval(Path("text_generation_result.txt").read_text("utf-8"))
    return [item["text_generation_text"][0] for item in content]


# -- Prompts and results --------------------------------------------------------------------------------------------


def test_texts_are_printed_and_saved(run: Path, capsys: Capture) -> None:
    texts = saved(run, "--raw", "--predict_data", "Hello", "a b c")
    with Model.from_pretrained(run) as model:
        outputs = model.generate(["Hello", "a b c"])
    assert texts == [
        prompt + output.outputs[0].text for prompt, output in zip(("Hello", "a b c"), outputs, strict=True)
    ]
    captured = capsys.readouterr()
    assert captured.out == "".join(f"{text}\n" for text in texts)
    assert "2 prompts, 70 new tokens" in captured.err  # max_decode_length 40, less a prompt of 5, twice
    assert "saved in text_generation_result.txt" in captured.err
    assert sorted(path.name for path in Path().iterdir()) == ["run.yaml", "text_generation_result.txt"]


def test_save_file_has_one_text_after_another(run: Path) -> None:
    texts = saved(run, "--raw", "--predict_data", "Hello", "a b c")
    Path("text_generation_result.txt").unlink()
    assert predict(run, "--raw", "--predict_data", "Hello", "a b c", "--save_file", "out.txt") == 0
    assert Path("out.txt").read_text("utf-8") == "".join(f"{text}\n" for text in texts)
    assert not Path("text_generation_result.txt").exists()


def test_prompts_from_files_and_from_the_run_config(run: Path, capsys: Capture) -> None:
    Path("prompts.txt").write_bytes("Hello\r\n\r\na\u2028b c\n".encode())
    expected = saved(run, "--raw", "--predict_data", "Hello", "a\u2028b c", "你好")
    assert saved(run, "--raw", "--predict_data", "prompts.txt", "你好") == expected
    assert saved(run, "--raw", "--options", 'input_data=[Hello, "a\\u2028b c", 你好]') == expected
    capsys.readouterr()
    assert len(saved(run, "--raw", "--max_decode_length", "60")) == 3
    assert "answering sample prompts" in capsys.readouterr().err


def test_prompts_given_twice_and_files_with_a_byte_order_mark(run: Path) -> None:
    expected = saved(run, "--raw", "--predict_data", "Hello", "a")
    assert saved(run, "--raw", "--predict_data", "Hello", "--predict_data", "a") == expected
    Path("bom.txt").write_bytes(b"\xef\xbb\xbfHello\r\na")
    assert saved(run, "--raw", "--predict_data", "bom.txt") == expected


def test_links_pipes_and_tables_are_written_to(run: Path) -> None:
    ask = ("--raw", "--predict_data", "Hello", "--max_decode_length", "8", "--save_file")
    Path("link").symlink_to("out.txt")
    assert predict(run, *ask, "link") == 0
    assert Path("link").is_symlink()
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert predict(run, *ask, "pipe") == 0
    assert os.read(reader, 1 << 16) == Path("out.txt").read_bytes() != b""
    os.close(reader)
    assert Path("pipe").is_fifo()


def test_chat_template(run: Path) -> None:
    answers = saved(run, "--predict_data", "Hello")
    with Model.from_pretrained(run) as model:
        output = model.generate([[{"role": "user", "content": "Hello"}]])[0]
        assert answers == [output.outputs[0].text]
        assert output.prompt is not None
        assert "user: Hello" in output.prompt
    assert saved(run, "--raw", "--predict_data", "Hello") != answers


# -- Options --------------------------------------------------------------------------------------------------------


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The run configs that models are loaded from."""
    configs: list[RunConfig] = []
    load = Model.from_pretrained

    def recorded(config: RunConfig, **options: Any) -> Model:
        configs.append(config)
        return load(config, **options)

    monkeypatch.setattr(Model, "from_pretrained", recorded)
    return configs


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        (["--batch_size", "7"], "max_num_seqs", 7),
        (["--predict_batch_size", "7"], "max_num_seqs", 7),
        (["--seq_length", "123"], "max_model_len", 123),
        (["--device_id", "0"], "device_id", 0),
        (["--device_id", "-1"], "device_id", 0),
        (["--options", "model.model_config.block_size=32", "model.model_config.num_blocks=9"], "num_blocks", 9),
        (["--options", "model.model_config.llm_backend=CPU"], "backend", "cpu"),
        (["--use_parallel", "False", "--device_num", "4"], "backend", "auto"),
        (["--use_parallel", "True", "--device_num", "1"], "backend", "auto"),
    ],
)
def test_options_reach_the_engine(
    run: Path, resolved: list[RunConfig], words: list[str], option: str, value: object
) -> None:
    assert predict(run, "--raw", "--predict_data", "x", *words) == 0
    assert source_of_run(resolved[0]).options[option] == value


def test_options_change_what_is_generated(run: Path) -> None:
    ask = ("--raw", "--predict_data", "Hello")
    greedy = saved(run, *ask)
    assert saved(run, *ask, "--do_sample", "False") == greedy
    draw = ("--do_sample", "--seed", "1")
    sample = saved(run, *ask, *draw)
    assert sample != greedy
    assert saved(run, *ask, *draw) == sample
    assert saved(run, *ask, "--do_sample", "true", "--seed", "2") not in (sample, greedy)
    assert saved(run, *ask, *draw, "--top_k", "1") == greedy
    assert saved(run, *ask, *draw, "--top_p", "0.000001") == greedy
    assert saved(run, *ask, *draw, "--temperature", "0.0001") == greedy
    assert saved(run, *ask, "--repetition_penalty", "40") != greedy
    for option in ("--max_decode_length", "--predict_length"):
        shorter = saved(run, *ask, option, "12")
        assert len(shorter[0]) < len(greedy[0])
        assert greedy[0].startswith(shorter[0].rstrip("\ufffd"))


def test_checkpoint_and_vocabulary(run: Path, tiny_model: Callable[[str], Path], resolved: list[RunConfig]) -> None:
    ask = ("--raw", "--predict_data", "Hello")
    # --options replaces whole sections, too: now everything comes from the checkpoint.
    other = (*ask, "--options", "model={}", "--load_checkpoint", str(tiny_model("llama_gqa_tied")))
    assert saved(run, *other) != saved(run, *ask)
    assert resolved[0].model.model_config.num_heads is None
    source = copy_vocabulary(Path("vocabulary"), "qwen2")
    vocabulary = ("--vocab_file", str(source / "vocab.json"))
    assert predict(run, *other, *vocabulary) == 0
    merges = (source / "merges.txt").rename("m.txt")
    assert predict(run, *other, *vocabulary) == 2
    assert predict(run, *other, *vocabulary, "--merges_file", str(merges)) == 0
    tokenizer = source_of_run(resolved[-1]).load_tokenizer()
    assert tokenizer is not None
    assert tokenizer.token_to_id("<|im_end|>") is not None


def test_device_of_a_rank(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("RANK_ID", "3")
    assert predict(run, "--predict_data", "x", "--device_id", "-1") == 2
    assert "context.device_id is 3, but the CPU backend has only device 0" in capsys.readouterr().err
    monkeypatch.setenv("RANK_ID", "three")
    assert predict(run, "--predict_data", "x", "--device_id", "-1") == 2
    assert "RANK_ID is 'three'" in capsys.readouterr().err


def test_verbose_lists_what_is_ignored(run: Path, capsys: Capture) -> None:
    path = Path("whole.yaml")
    path.write_text(run.read_text("utf-8") + "optimizer: {type: Adam}\nmetric: {}\nremote_save_url: none\n", "utf-8")
    words = ("--raw", "--predict_data", "x", "--options", "model.model_config.communication_backend=lccl")
    assert predict(path, *words) == 0
    assert "without effect" not in capsys.readouterr().err
    assert predict(path, *words, "--verbose", "--register_path", "research/llm_boost") == 0
    errors = capsys.readouterr().err
    assert "  optimizer, metric: matters for training only" in errors
    assert "  remote_save_url, register_path: uploads and remote code" in errors
    assert "  model.model_config.communication_backend: for NPUs; the CPU backend has no use for it" in errors


def test_throughput_table(run: Path, capsys: Capture) -> None:
    eos = "model.model_config.eos_token_id=[" + ",".join(map(str, range(250))) + "]"  # which ends no measurement
    words = ("--seq_length", "64", "--batch_size", "3", "--options", eos)
    assert predict(run, "--measure_throughput", "True", *words) == 0
    backend, header, *rows = capsys.readouterr().out.splitlines()
    assert backend.startswith("cpu, ")
    assert header.split()[:3] == ["batch", "prompt", "new"]
    assert [row.split()[:3] for row in rows] == [["1", "32", "32"], ["3", "32", "96"], ["4", "32", "128"]]
    assert all(float(cell) > 0 for row in rows for cell in row.split()[3:])
    assert len({len(row) for row in (header, *rows)}) == 1
    assert not Path("text_generation_result.txt").exists()


def test_throughput_takes_the_lengths_that_fit(run: Path, capsys: Capture) -> None:
    words = ("--seq_length", "600", "--options", "model.model_config.max_position_embedding=1024")
    assert predict(run, "--measure_throughput", *words, "--save_file", "table.txt", "--predict_data", "x") == 0
    table, notes = capsys.readouterr()
    assert [row.split()[1] for row in table.splitlines()[2:]] == ["256", "256", "256"]
    assert Path("table.txt").read_text("utf-8") == table
    assert "--predict_data has no effect with --measure_throughput" in notes


# -- Mistakes -------------------------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[str, str]] = {
    "not YAML": ("a: [1", "run.yaml:1: expected"),
    "a tab": ("\ta: 1", "run.yaml:1: found character '\\t'"),
    "empty": ("", "run.yaml: the document is empty, expected a mapping"),
    "a list": ("- 1\n- 2", "the document is a list"),
    "a text": ("predict", "the document is a str"),
    "two documents": ("seed: 1\n---\nseed: 2", "run.yaml:2: but found another document"),
    "binary": ("\x00\x01", "is not YAML"),
    "an object": ("seed: !!python/object/apply:os.system [ls]", "run.yaml:1: the tag !!python/object/apply:os.system"),
    "a key twice": ("seed: 1\nseed: 2", "run.yaml:2: the key 'seed' is there twice, also at"),
    "a list as key": ("? [a]\n: 1", "a key is a list or mapping"),
    "a cycle": ("optimizer: &a [*a]", "nested more than 32 levels"),
    "too deep": ("optimizer: " + "[" * 40, "nested more than 32 levels"),
    "a bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in zip("abcde", "bcdef", strict=True)),
        "more than 20000 values",
    ),
    "too large": ("# " + "x" * (257 << 10), "more than 256 KiB"),
    "an alias of nothing": ("seed: *nothing", "undefined alias"),
    "a merge of a number": ("<<: 3", "'<<' merges mappings, not a int"),
    "unknown key": ("modle: {}", "run.yaml:1: unknown key 'modle'; did you mean 'model'?"),
    "key in the wrong section": ("seq_length: 5", "did you mean 'model.model_config.seq_length'?"),
    "section as text": ("model: llama", "run.yaml:1: model is a str, expected a mapping"),
    "section as list": ("context: [1]", "context is a list, expected a mapping"),
    "a number as text": ("model: {model_config: {num_layers: '32'}}", "num_layers is '32', expected an integer from 1"),
    "not finite": ("model: {model_config: {top_p: .nan}}", "top_p is nan, expected a number above 0 to 1"),
    "a truth as number": ("model: {model_config: {batch_size: true}}", "batch_size is True, expected an integer"),
    "a huge number": ("model: {model_config: {batch_size: 99999999999}}", "expected an integer from 1 to 4096"),
    "too many digits": ("seed: " + "9" * 5000, "is not a value of type int"),
    "a near value": ("model: {model_config: {extend_method: YARM}}", "did you mean 'YARN'?"),
    "a near dtype": ("model: {model_config: {compute_dtype: float61}}", "did you mean 'float16'?"),
    "a near backend": ("model: {model_config: {llm_backend: BuiltIn}}", "did you mean 'BuildIn'?"),
    "token ids": ("model: {model_config: {eos_token_id: [1, -2]}}", "eos_token_id is [1, -2], expected a token id or"),
    "finetuning": ("run_mode: finetune", "run_mode is 'finetune', expected 'predict': this is an inference engine"),
    "no checkpoint": ("run_mode: predict", "load_checkpoint is empty; set it, or give --load_checkpoint"),
    "checkpoint not there": ("load_checkpoint: a.ckpt", "run.yaml:1: load_checkpoint: no file or no directory"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_the_file(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    content, message = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(content, "utf-8")
    assert_refused(["--predict_data", "x"], message, capsys)


def test_several_mistakes_are_reported_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        "seeed: 1",
        "model:",
        "  model_config:",
        "    max_position_embeddings: 5",
        "    use_past: False",
        "    top_k: a",
    ]
    Path("run.yaml").write_text("\n".join(lines), "utf-8")
    assert predict(Path("run.yaml")) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "llm-boost predict: run.yaml: cannot be used:"
    assert errors[1:] == [
        "  run.yaml:1: unknown key 'seeed'; did you mean 'seed'?",
        "  run.yaml:4: unknown key 'model.model_config.max_position_embeddings'; "
        "did you mean 'model.model_config.max_position_embedding'?",
        "  run.yaml:5: model.model_config.use_past is False, expected True: "
        "there is no generation without a cache here",
        "  run.yaml:6: model.model_config.top_k is 'a', expected an integer from 0 to 16777216",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prediction_data", "x"], "unknown option '--prediction_data'; did you mean '--predict_data'?"),
        (["--top_k", "many"], "argument --top_k: invalid int value: 'many'"),
        (["--top_k", "-1"], "--top_k: model.model_config.top_k is -1, expected an integer from 0"),
        (["--do_sample", "yes"], "argument --do_sample: expected True or False, found 'yes'"),
        (["--seq_length", "0"], "--seq_length: model.model_config.seq_length is 0, expected an integer from 1"),
        (["--seq_length", "9999"], "--seq_length: model.model_config.seq_length is 9999, but the model was trained"),
        (["--batch_size", "0"], "--batch_size: model.model_config.batch_size is 0"),
        (["--use_parallel", "--device_num", "2"], "--use_parallel: use_parallel is True, and parallel_config asks"),
        (["--device_id", "1"], "--device_id: context.device_id is 1, but the CPU backend has only device 0"),
        (["--device_id", "-2"], "--device_id: context.device_id is -2, expected an integer from 0"),
        (["--vocab_file", "nowhere.model"], "--vocab_file: processor.tokenizer.vocab_file: no file 'nowhere.model'"),
        (["--load_checkpoint", "nowhere"], "--load_checkpoint: load_checkpoint: no file or no directory 'nowhere'"),
        (["--options", "seed"], "--options: expected KEY=VALUE, found 'seed'"),
        (["--options", "seed=[1"], "--options seed:1: expected"),
        (["--options", "a.b=1"], "--options a.b: unknown key 'a'"),
        (["--options", "model.model_config.top_k=1e2"], "top_k is 100.0, expected an integer"),
        (["--run_mode", "train"], "--run_mode: run_mode is 'train', expected 'predict'"),
        (["--use_past", "False"], "--use_past: model.model_config.use_past is False"),
        (["--only_save_strategy", "True"], "no strategy files are made here"),
        (["--task", "translation"], "argument --task: invalid choice: 'translation'"),
        (["--save_file", "no/such/place.txt"], "--save_file: no directory 'no/such'"),
        (["--max_decode_length", "1"], "the prompt has 1 tokens, but max_decode_length"),
        (["--repetition_penalty", "nan"], "repetition_penalty is nan, expected a number above 0"),
        (["--predict_data", "empty.txt"], "--predict_data: there is no prompt in what it names"),
        (["--predict_data", "latin.txt"], "the file of prompts 'latin.txt' cannot be read"),
        (["--predict_data", "prompts/nowhere.txt"], "--predict_data: no file 'prompts/nowhere.txt'; to ask just that"),
        (["--save_file", ""], "argument --save_file: is empty, expected a path"),
        (["--save_file", "."], "--save_file: '.' is a directory, expected the name of a file"),
        (["--save_file", "/"], "--save_file: '/' is a directory"),
        (["--save_file", "x" * 300], "the results cannot be written to 'xxx"),
        (["--merges_file", "m.txt"], "--merges_file: processor.tokenizer.merges_file is 'm.txt', but there"),
        (["--options", "seed=1", "--options", "seed=2"], "--options: seed is given twice"),
        (["--options", "seed=1", "--seed", "2"], "--seed and --options seed are the same; give one of them"),
        (["--options", "model.model_config={multiple_of: 100}"], "multiple_of makes the intermediate_size 200, but"),
        (["--config", ""], "argument --config/--config_path: is empty, expected a path"),
        (["--config", "x" * 300 + ".yaml"], "File name too long"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: is not a file"),
        (["--config", "/dev/null"], "/dev/null: is not a file"),
    ],
)  # fmt: skip
def test_mistakes_in_options(words: list[str], message: str, run: Path, capsys: Capture) -> None:
    Path("empty.txt").write_text("\n \n", "utf-8")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    prompt = [] if "--predict_data" in words else ["--predict_data", "x"]
    assert_refused(["--raw", *prompt, *words], message, capsys)


def assert_refused(words: list[str], message: str, capsys: Capture) -> None:
    assert predict(Path("run.yaml"), *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("llm-boost predict: ")
    assert message in captured.err
    assert captured.err.count("llm-boost predict: ") == 1
    assert "Traceback" not in captured.err
    assert not Path("text_generation_result.txt").exists()


def test_results_that_cannot_be_written(run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path, __: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert_refused(["--raw", "--predict_data", "x"], "text_generation_result.txt': permission denied", capsys)
    monkeypatch.setattr(Path, "replace", fail)
    assert predict(run, "--raw", "--predict_data", "x", "--save_file", "out.txt") == 2
    assert "out.txt': No space left on device" in capsys.readouterr().err
    assert os.listdir() == ["run.yaml"]


def test_config_is_required(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["predict"])
    assert "the following arguments are required: --config" in capsys.readouterr().err
