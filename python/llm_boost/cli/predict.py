"""``llm-boost predict``: what MindFormers' run scripts did with a run YAML, a checkpoint and some prompts."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_boost._yaml import Node, parse_yaml_value
from llm_boost.cli.options import add_flag, path
from llm_boost.cli.throughput import measure_throughput
from llm_boost.errors import ConfigError
from llm_boost.model import Model, Prompt
from llm_boost.outputs import RequestOutput
from llm_boost.run_config import RunConfig, read_run_config
from llm_boost.run_config.resolve import keys_for_other_backends

SUMMARY = "answer prompts as a run config (YAML) says"

_RESULT_FILE = "text_generation_result.txt"  # unless --save_file names another
# What the original's scripts asked when they were given nothing to ask.
_SAMPLE_PROMPTS = ("I love Beijing, because", "LLaMA is a", "Huawei is a company that")

_MODEL = "model.model_config."


@dataclass(frozen=True, slots=True)
class _Override:
    """An option that replaces a key of the run config."""

    option: str
    key: str
    kind: type
    text: str
    alias: str | None = None

    def names(self) -> list[str]:
        return [f"--{name}" for name in (self.option, self.alias) if name]


_OVERRIDES = (
    _Override("load_checkpoint", "load_checkpoint", str, "model directory, checkpoint, or pulled model"),
    _Override("vocab_file", "processor.tokenizer.vocab_file", str, "tokenizer.model or vocab.json"),
    _Override("merges_file", "processor.tokenizer.merges_file", str, "merges.txt that goes with vocab.json"),
    _Override("batch_size", _MODEL + "batch_size", int, "most prompts computed at once", "predict_batch_size"),
    _Override("seq_length", _MODEL + "seq_length", int, "most tokens of prompt and output"),
    _Override("max_decode_length", _MODEL + "max_decode_length", int, "most of both to generate", "predict_length"),
    _Override("do_sample", _MODEL + "do_sample", bool, "draw tokens at random"),
    _Override("temperature", _MODEL + "temperature", float, "logits are divided by it, if do_sample"),
    _Override("top_k", _MODEL + "top_k", int, "only the k most likely tokens, if do_sample"),
    _Override("top_p", _MODEL + "top_p", float, "only tokens that reach this probability, if do_sample"),
    _Override("repetition_penalty", _MODEL + "repetition_penalty", float, "above 1 avoids repetition"),
    _Override("seed", "seed", int, "of random choices"),
    _Override("use_parallel", "use_parallel", bool, "use several devices"),
    _Override("device_num", "parallel_config.model_parallel", int, "devices, if use_parallel"),
    _Override("use_past", _MODEL + "use_past", bool, "must be True"),
    _Override("run_mode", "run_mode", str, "must be predict"),
    _Override("only_save_strategy", "only_save_strategy", bool, "must be False"),
    _Override("auto_trans_ckpt", "auto_trans_ckpt", bool, "no effect: formats are found out"),
    _Override("src_strategy_path_or_dir", "src_strategy_path_or_dir", str, "no effect on one device"),
    _Override("register_path", "register_path", str, "no effect: no code is loaded"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command's arguments."""
    parser.add_argument(
        "--config",
        "--config_path",
        required=True,
        type=path,
        metavar="YAML",
        help="the run config: a file, or the name of one that comes with llm_boost",
    )
    parser.add_argument(
        "--predict_data",
        nargs="+",
        action="extend",
        metavar="PROMPT",
        help="prompts, or files with a prompt a line (default: input_data)",
    )
    parser.add_argument("--raw", action="store_true", help="complete prompts as they are, without the chat template")
    parser.add_argument(
        "--save_file", type=path, metavar="FILE", help=f"write texts there (default: a list, {_RESULT_FILE})"
    )
    add_flag(parser, "--measure_throughput", help="time random prompts, and print a table")
    parser.add_argument("--device_id", type=int, default=None, help="device to run on; -1: of the variable RANK_ID")
    parser.add_argument("--task", choices=["text_generation"], help="there is one task")
    parser.add_argument("--verbose", action="store_true", help="list the keys that have no effect")
    parser.add_argument(
        "--options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="replace any key: model.model_config.top_k=5",
    )
    group = parser.add_argument_group("replacing keys of the run config")
    for override in _OVERRIDES:
        if override.kind is bool:
            add_flag(group, *override.names(), help=override.text)
        else:
            group.add_argument(*override.names(), type=override.kind, help=override.text)


def main(arguments: argparse.Namespace) -> int:
    """Loads what the run config names, and answers, or measures."""
    run = read_run_config(arguments.config, _overrides(arguments))
    if arguments.verbose:
        _print_ignored(run)
    target = _target(arguments)
    if arguments.measure_throughput:
        _measure(arguments, run, target)
        return 0
    prompts = _prompts(arguments, run)
    started = time.perf_counter()
    with Model.from_pretrained(run) as model:
        loaded = time.perf_counter()
        uses_template = not arguments.raw and model.tokenizer.chat_template is not None
        requests = [_as_chat(text) if uses_template else text for text in prompts]
        outputs = model.generate(requests, use_tqdm=sys.stderr.isatty())
        seconds = time.perf_counter() - loaded
    texts = [_text(output, prompt, is_chat=uses_template) for output, prompt in zip(outputs, prompts, strict=True)]
    for text in texts:
        print(text)
    _save(target, _file_of(texts, as_list=not arguments.save_file))
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    speed = f"{len(outputs)} prompts, {tokens} new tokens, {tokens / seconds:.1f} tokens/s"
    print(f"load {loaded - started:.2f} s | {speed} | saved in {target}", file=sys.stderr)
    return 0


def _overrides(arguments: argparse.Namespace) -> dict[str, Node]:
    nodes = {}
    for assignment in arguments.options:
        key, sign, value = assignment.partition("=")
        if not key or not sign:
            raise ConfigError(f"--options: expected KEY=VALUE, found '{assignment}'")
        if key in nodes:
            raise ConfigError(f"--options: {key} is given twice")
        nodes[key] = parse_yaml_value(value, f"--options {key}")
    for override in _OVERRIDES:
        value = getattr(arguments, override.option)
        if value is not None and override.key in nodes:
            raise ConfigError(f"--{override.option} and --options {override.key} are the same; give one of them")
        if value is not None:
            nodes[override.key] = Node(value, f"--{override.option}")
    if arguments.device_id is not None:
        nodes["context.device_id"] = Node(_device_id(arguments.device_id), "--device_id")
    return nodes


def _device_id(number: int) -> int:
    if number != -1:
        return number
    rank = os.environ.get("RANK_ID", "0")
    if not rank.isdecimal():
        raise ConfigError(f"the variable RANK_ID is '{rank}', expected the number of a device")
    return int(rank)


def _print_ignored(run: RunConfig) -> None:
    by_reason: dict[str, list[str]] = {}
    for key, reason in {**run.ignored, **keys_for_other_backends(run)}.items():
        by_reason.setdefault(reason, []).append(key)
    print(f"{run.path}: keys without effect here:", file=sys.stderr)
    for reason, keys in by_reason.items():
        print(f"  {', '.join(keys)}: {reason}", file=sys.stderr)


# -- Prompts and results -------------------------------------------------------------------------------------------


def _prompts(arguments: argparse.Namespace, run: RunConfig) -> Sequence[str]:
    given = [text for item in arguments.predict_data or run.input_data or () for text in _lines_of(item)]
    prompts = [text for text in given if text.strip()]
    if prompts:
        return prompts
    if arguments.predict_data and any(arguments.predict_data):
        raise ConfigError("--predict_data: there is no prompt in what it names")
    print("no --predict_data and no input_data: answering sample prompts", file=sys.stderr)
    return _SAMPLE_PROMPTS


def _lines_of(item: str) -> list[str]:
    """The prompts in a file, or the text itself if there is no such file."""
    if not os.path.isfile(item):
        if item.endswith(".txt") and not item.split()[1:]:
            raise ConfigError(f"--predict_data: no file '{item}'; to ask just that, put it into a file")
        return [item]
    try:
        return Path(item).read_text("utf-8-sig").split("\n")  # not splitlines(), which cuts at other characters, too
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file of prompts '{item}' cannot be read: {error}") from error


def _as_chat(text: str) -> Prompt:
    return [{"role": "user", "content": text}]


def _text(output: RequestOutput, prompt: str, *, is_chat: bool) -> str:
    """What the original printed and saved: prompt and completion in one; of a chat, the answer alone."""
    answer = output.outputs[0].text
    return answer if is_chat else prompt + answer


def _target(arguments: argparse.Namespace) -> Path:
    """The file of results, which is looked at before hours are spent on them."""
    target = Path(arguments.save_file or _RESULT_FILE)
    if not os.path.isdir(target.parent):
        raise ConfigError(f"--save_file: no directory '{target.parent}'")
    if os.path.isdir(target):
        raise ConfigError(f"--save_file: '{target}' is a directory, expected the name of a file")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(target)
    except OSError as error:
        raise ConfigError(f"the results cannot be written to '{target}': {error.strerror}") from error
    if not os.access(target if os.path.exists(target) else target.parent, os.W_OK):
        raise ConfigError(f"the results cannot be written to '{target}': permission denied")
    return target


def _file_of(texts: Sequence[str], *, as_list: bool) -> str:
    """The results as one of the original's two scripts wrote them.

    ``run_mindformer.py`` wrote the list of its results as Python prints it; ``run_llm_boost.py``, which had
    ``--save_file``, wrote the texts, one after another.
    """
    return str([{"text_generation_text": [text]} for text in texts]) if as_list else "\n".join(texts) + "\n"


def _save(target: Path, content: str) -> None:
    """Writes a file that appears complete or not at all; a device or pipe is written to."""
    file = target.resolve()  # a link stays one
    partial = file.with_name(f".{file.name}.partial")
    try:
        if target.exists() and not target.is_file():
            target.write_text(content, "utf-8")
            return
        partial.write_text(content, "utf-8")
        partial.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ConfigError(f"the results cannot be written to '{target}': {error.strerror}") from error


def _measure(arguments: argparse.Namespace, run: RunConfig, target: Path) -> None:
    if arguments.predict_data:
        print("--predict_data has no effect with --measure_throughput, which makes its own prompts", file=sys.stderr)
    table = measure_throughput(run)
    print(table)
    if arguments.save_file:
        _save(target, table + "\n")
