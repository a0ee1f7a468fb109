"""The llm-boost command: what it prints, and how it fails."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_boost import Model, __version__
from llm_boost.cli import _module, main
from llm_boost.model import Message


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llm_boost", *words], capture_output=True, text=True, check=False)


def test_installed_command_and_module_agree() -> None:
    assert run("--version").stdout == f"llm_boost {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["rnu"], "unknown command 'rnu'; did you mean 'run'?"),
        (["run"], "the following arguments are required: MODEL"),
        (["run", "m", "p", "--max-tokns", "3"], "unknown option '--max-tokns'; did you mean '--max-tokens'?"),
        (["run", "m", "p", "--max-tok=3"], "unknown option '--max-tok'; did you mean '--max-tokens'?"),
        (["run", "m", "p", "q"], "unrecognized arguments: q"),
        (["run", "m", "--top-k", "many"], "argument --top-k: invalid int value: 'many'"),
        (["run", "smollm2"], "no directory 'smollm2', and unknown model 'smollm2'; did you mean 'smollm2-135m-"),
        (["run", "", "hi"], "the model's name is empty, expected a directory, a checkpoint, or a pulled model"),
        (["pull", "smollm"], "unknown model 'smollm'; did you mean 'smollm2-135m-instruct'?"),
        (["convert", "missing.gguf", "out"], "missing.gguf"),
        (["info", "/dev/null"], "is not a model directory|no directory|is a file|/dev/null"),
    ],
)  # fmt: skip
def test_mistakes_give_one_message_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(words)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else -1
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("llm-boost")
    assert any(part in captured.err for part in message.split("|"))
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("command", "line", "expected"),
    [
        ("convert", "hf --dtype fp16 x.ckpt", {"source": Path("hf"), "target": Path("x.ckpt"), "dtype": "fp16"}),
        ("convert", "--force hf x.ckpt", {"source": Path("hf"), "target": Path("x.ckpt"), "force": True}),
        ("convert", "hf --force x --reversed", {"source": Path("hf"), "target": Path("x"), "reversed": True}),
        ("convert", "hf --qkv_concat x.ckpt", {"source": Path("hf"), "target": Path("x.ckpt"), "qkv_concat": True}),
        ("convert", "-qkv_concat a/hf False", {"source": Path("a/hf"), "target": Path("False"), "qkv_concat": True}),
        ("convert", "hf x.ckpt -qkv_concat FALSE", {"qkv_concat": False}),
        ("convert", "--qkv_concat=False hf x.ckpt", {"target": Path("x.ckpt"), "qkv_concat": False}),
        ("convert", "hf", {"source": Path("hf"), "target": None, "qkv_concat": None}),
        ("convert", "--dtype fp16 -- -x y.ckpt", {"source": Path("-x"), "target": Path("y.ckpt"), "dtype": "fp16"}),
        ("run", "m --top-k 3 text", {"model": "m", "prompt": "text", "top_k": 3}),
        ("run", "--raw m --seed 1 - --top-p 1", {"model": "m", "prompt": "-", "seed": 1, "raw": True}),
        ("run", "--raw m", {"model": "m", "prompt": None}),
        ("run", "m -- --help", {"model": "m", "prompt": "--help"}),
        ("batch", "in --force out --num-threads 2 m", {"input": Path("in"), "output": Path("out"), "model": "m"}),
        ("batch", "--force in out", {"input": Path("in"), "output": Path("out"), "model": None}),
        ("bench serve", "--num-prompts 3", {"num_prompts": 3}),
    ],
)
def test_options_may_stand_anywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, line: str, expected: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FALSE").touch()  # a value all the same
    parsed: list[Namespace] = []
    monkeypatch.setattr(_module(command), "main", lambda arguments: parsed.append(arguments) or 0)
    assert main([*command.split(), *line.split()]) == 0
    assert expected.items() <= vars(parsed[0]).items()


def test_bad_sampling_parameter(tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tiny_model("llama_mha")), "x", "--top-p", "2"]) == 2
    assert capsys.readouterr().err.startswith("llm-boost run: top_p is 2, expected")


def test_info(tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_model("qwen2_tied")), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["architecture"], facts["layers"], facts["tied_embeddings"]) == ("qwen2", 2, True)
    assert facts["kv_cache_bytes_per_token_bf16"] == 2 * 2 * 2 * 2 * 8
    assert main(["info", str(tiny_model("qwen2_tied")), "--graph"]) == 0
    assert "PagedAttention(" in capsys.readouterr().out
    assert main(["info", str(tiny_model("qwen2_tied"))]) == 0
    assert "architecture" in capsys.readouterr().out


def test_run_answers_a_prompt(smollm2_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = "What is the capital of France?"
    assert main(["run", str(smollm2_directory), question, "--max-tokens", "20", "--temperature", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "The capital of France is Paris.\n"
    assert "prefill 37 tokens" in captured.err
    assert "decode 7 tokens" in captured.err


def test_run_reads_standard_input(
    smollm2_directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("1, 2, 3, 4,"))
    assert main(["run", str(smollm2_directory), "-", "--raw", "--max-tokens", "3", "--temperature", "0"]) == 0
    assert "5" in capsys.readouterr().out


def test_chat_keeps_the_conversation(
    smollm2_directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[list[Message]] = []
    encode_prompt = Model.encode_prompt

    def recorded(model: Model, prompt: list[Message]) -> list[int]:
        prompts.append(list(prompt))
        return encode_prompt(model, prompt)

    monkeypatch.setattr(Model, "encode_prompt", recorded)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello.\n\nAnd now?\n"))
    assert (
        main(["run", str(smollm2_directory), "--max-tokens", "5", "--temperature", "0", "--system", "Be brief."]) == 0
    )
    answer = capsys.readouterr().out.split("> ")[1].rstrip("\n")
    assert [[(message["role"], message["content"]) for message in prompt] for prompt in prompts] == [
        [("system", "Be brief."), ("user", "Hello.")],
        [("system", "Be brief."), ("user", "Hello."), ("assistant", answer), ("user", "And now?")],
    ]


def test_interrupt_ends_with_130(smollm2_directory: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "llm_boost",
        "run",
        str(smollm2_directory),
        "Tell me a long story.",
        "--max-tokens",
        "2000",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    found = re.search(rb"decode (\d+) tokens", errors)
    assert found, errors
    assert int(found[1]) < 2000  # the answer so far counts
