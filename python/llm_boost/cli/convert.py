"""``llm-boost convert``: weights of one format from those of another. Takes the options of MindFormers' converters."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_boost.cli.options import add_flag, path
from llm_boost.convert_weight import (
    Options,
    convert_to_hugging_face,
    convert_to_mindspore,
    fuse_checkpoint,
    update_checkpoint,
)
from llm_boost.errors import ConfigError
from llm_boost.gguf_convert import convert_gguf

SUMMARY = "convert weights: GGUF, Hugging Face, MindSpore ckpt, fused ckpt"

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_MODELS = {"llama": "llama", "qwen2": "qwen2", "qwen2_5": "qwen2"}
# The pairs of options that the original's converters had for source and target.
_PATHS = (
    ("source", "target"),
    ("input_path", "output_path"),
    ("torch_ckpt_path", "mindspore_ckpt_path"),
    ("pre_ckpt_path", "mindspore_ckpt_path"),
)
_DEFAULT_TARGET = Path("transform.ckpt")  # the original's
_SHAPE = "the shape comes from the model's config.json"
_REFUSED = {
    "--n_head": _SHAPE,
    "--hidden_size": _SHAPE,
    "--layers": _SHAPE,
    "--is_pretrain": "it is about GLM checkpoints, which are not supported",
    "--telechat_type": "it is about TeleChat checkpoints, which are not supported",
}


class _Refuse(argparse.Action):
    """Says why an option of the original has no meaning here."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option_string: str | None = None
    ) -> None:
        option = option_string or self.option_strings[0]
        parser.error(f"{option} is not supported: {_REFUSED[option]}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", nargs="?", type=path, help="what to convert, see --input_path")
    parser.add_argument("target", metavar="TARGET", nargs="?", type=path, help="what to make of it, see --output_path")
    parser.add_argument(
        "--input_path",
        type=path,
        metavar="PATH",
        help="a GGUF file, a Hugging Face directory, a .ckpt or .safetensors file, a directory of them or of rank_*",
    )
    parser.add_argument(
        "--output_path",
        type=path,
        metavar="PATH",
        help="the file to make: .ckpt, or .safetensors; or the directory, for GGUF and with --reversed",
    )
    parser.add_argument("--model", choices=_MODELS, help="the architecture that is expected")
    parser.add_argument("--dtype", choices=_DTYPES, help="type of the weights (default: as stored)")
    add_flag(parser, "--qkv_concat", "-qkv_concat", help="join wq, wk, wv to w_qkv and w1, w3 to w_gate_hidden")
    parser.add_argument("--reversed", action="store_true", help="make a Hugging Face directory of a checkpoint")
    parser.add_argument(
        "--config_path",
        type=path,
        metavar="PATH",
        help="config.json or a run config, if the former is not beside the weights",
    )
    parser.add_argument("--force", action="store_true", help="replace the target if it exists")
    parser.add_argument("--torch_ckpt_path", type=path, metavar="PATH", help="older name of --input_path")
    parser.add_argument("--mindspore_ckpt_path", type=path, metavar="PATH", help="older name of --output_path")
    parser.add_argument("--pre_ckpt_path", type=path, metavar="PATH", help="--input_path that has MindFormers names")
    for option in _REFUSED:
        parser.add_argument(option, action=_Refuse, help=argparse.SUPPRESS)


def main(arguments: argparse.Namespace) -> int:
    """Converts, and prints what was made."""
    source, target = _paths(arguments)
    print(_convert(arguments, source, target))
    return 0


def _convert(arguments: argparse.Namespace, source: Path, target: Path | None) -> Path:
    options = Options(
        dtype=arguments.dtype and _DTYPES[arguments.dtype],
        architecture=arguments.model and _MODELS[arguments.model],
        force=arguments.force,
    )
    if arguments.pre_ckpt_path is not None:
        return _convert_mindformers(arguments, options, source, target)
    if source.suffix == ".gguf":
        _refuse(arguments, ("dtype", "model", "qkv_concat", "reversed", "config_path"), "with a GGUF file")
        return convert_gguf(source, _required(target), force=arguments.force)
    if arguments.reversed:
        _refuse(arguments, ("qkv_concat",), "with --reversed: Hugging Face has no names for fused weights")
        return convert_to_hugging_face(source, _required(target), options, config_path=arguments.config_path)
    if arguments.torch_ckpt_path is not None and target is None:
        target = _DEFAULT_TARGET
    return convert_to_mindspore(
        source, _required(target), options, fused=bool(arguments.qkv_concat), config_path=arguments.config_path
    )


def _convert_mindformers(arguments: argparse.Namespace, options: Options, source: Path, target: Path | None) -> Path:
    """--pre_ckpt_path: either fuse, or update an old checkpoint."""
    _refuse(arguments, ("reversed",), "with --pre_ckpt_path; use --input_path")
    if arguments.qkv_concat:
        _refuse(arguments, ("config_path", "model"), "with --pre_ckpt_path and --qkv_concat, which go by the names")
        return fuse_checkpoint(source, target or _DEFAULT_TARGET, options)
    if arguments.config_path is None:
        raise ConfigError("--pre_ckpt_path needs --qkv_concat True, or --config_path to update an old checkpoint with")
    target = target or source.with_name(f"{source.stem}_hf.ckpt")
    return update_checkpoint(source, target, arguments.config_path, options)


def _paths(arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    values = vars(arguments)
    sources = [names for names in _PATHS if values[names[0]] is not None]
    if len(sources) != 1:
        found = " and ".join(map(_option, (names[0] for names in sources))) or "none"
        expected = ", ".join(_option(names[0]) for names in _PATHS)
        raise ConfigError(f"expected one of {expected}; found {found}")
    ((source, target),) = sources
    stray = {name for _, name in _PATHS if values[name] is not None} - {target}
    if stray:
        raise ConfigError(f"{_option(min(stray))} does not go with {_option(source)}, but {_option(target)} does")
    return values[source], values[target]


def _required(target: Path | None) -> Path:
    if target is None:
        raise ConfigError("where to write is missing; give TARGET or --output_path")
    return target


def _refuse(arguments: argparse.Namespace, names: Sequence[str], why: str) -> None:
    values: dict[str, Any] = vars(arguments)
    for name in names:
        if values[name]:
            raise ConfigError(f"{_option(name)} cannot be used {why}")


def _option(name: str) -> str:
    return name.upper() if name in ("source", "target") else f"--{name}"
