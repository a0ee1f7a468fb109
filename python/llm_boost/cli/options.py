"""Arguments and exit codes that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from llm_boost.model import Model
from llm_boost.sampling_params import SamplingParams

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BOOLEANS = {"true": True, "false": False}  # in lower case, what a flag's value may be

_LOADING = (
    "backend",
    "dtype",
    "activation_dtype",
    "num_threads",
    "block_size",
    "num_blocks",
    "max_model_len",
    "max_num_seqs",
)
_SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def add_flag(group: argparse._ActionsContainer, *names: str, help: str) -> None:  # noqa: A002  # as argparse has it
    """Adds an option that may be given alone, or with True or False behind it, as the original's scripts want it."""
    group.add_argument(*names, type=_boolean, nargs="?", const=True, metavar="True|False", help=help)


def _boolean(text: str) -> bool:
    if text.lower() not in BOOLEANS:
        raise argparse.ArgumentTypeError(f"expected True or False, found '{text}'")
    return BOOLEANS[text.lower()]


def path(text: str) -> Path:
    """The value of an argument that names a file or directory: an empty one is a variable that was not set."""
    if not text:
        raise argparse.ArgumentTypeError("is empty, expected a path")
    return Path(text)


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `Model.from_pretrained` takes."""
    group = parser.add_argument_group("loading")
    group.add_argument("--backend", help="backend to run on (default: the best there is)")
    group.add_argument("--dtype", help="type of the weights: float32, float16, bfloat16 (default: as stored)")
    group.add_argument("--activation-dtype", help="type of activations: bfloat16 or float32")
    group.add_argument("--num-threads", type=int, help="threads (default: what affinity and CPU quota allow)")
    group.add_argument("--block-size", type=int, help="tokens of a KV cache block")
    group.add_argument("--num-blocks", type=int, help="blocks of the KV cache")
    group.add_argument("--max-model-len", type=int, help="most tokens of prompt and answer")
    group.add_argument("--max-num-seqs", type=int, help="most sequences computed at once")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Adds the usual fields of `SamplingParams`; those not given are what the model's authors recommend."""
    group = parser.add_argument_group("sampling (default: the model's generation_config.json, else greedy)")
    group.add_argument("--max-tokens", type=int, help="most new tokens")
    group.add_argument("--temperature", type=float, help="0 is greedy")
    group.add_argument("--top-k", type=int, help="only the k most likely tokens")
    group.add_argument("--top-p", type=float, help="only the most likely tokens that together reach this probability")
    group.add_argument("--min-p", type=float, help="only tokens at least this times as likely as the likeliest")
    group.add_argument("--repetition-penalty", type=float, help="above 1 avoids repetition")
    group.add_argument("--seed", type=int, help="repeatable samples")


def _given(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def load_model(arguments: argparse.Namespace) -> Model:
    """Loads the model that the arguments name, as they say."""
    return Model.from_pretrained(arguments.model, **_given(arguments, _LOADING))


def sampling_params(arguments: argparse.Namespace, model: Model) -> SamplingParams:
    """The model's recommended parameters, changed by what was given."""
    defaults = model.default_sampling_params()
    given = _given(arguments, _SAMPLING)
    return SamplingParams(**{name: given.get(name, getattr(defaults, name)) for name in (*_SAMPLING, "min_tokens")})
