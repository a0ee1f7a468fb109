"""``llm-boost batch``: answer the requests of a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from llm_boost._json import parse_json_object
from llm_boost.cli.options import add_loading_options, load_model
from llm_boost.errors import ConfigError

if TYPE_CHECKING:
    from llm_boost.batch import BatchLine

SUMMARY = "answer the requests of a file, in OpenAI's batch format"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command's arguments."""
    parser.add_argument("input", metavar="IN.jsonl", type=Path, help="a request a line: custom_id, method, url, body")
    parser.add_argument(
        "output",
        metavar="OUT.jsonl",
        type=Path,
        help="an answer a line, in the order they are finished; of those that are there, none is computed again",
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?",
        help="a model directory, or the name of a pulled model (default: what the first request calls its model)",
    )  # fmt: skip
    parser.add_argument(
        "--served-model-name",
        nargs="+",
        metavar="NAME",
        help="what requests may call it (default: MODEL, its last part)",
    )
    parser.add_argument("--force", action="store_true", help="begin OUT.jsonl anew")
    add_loading_options(parser)


def main(arguments: argparse.Namespace) -> int:
    """Computes what is missing in the output; an interrupted run goes on where it ended."""
    try:
        from llm_boost.batch import BatchRunner, Journal, missing_lines, read_lines
        from llm_boost.serve.settings import ServerSettings
    except ImportError as error:
        raise ConfigError(f'llm-boost batch needs the package {error.name}: pip install "llm_boost[serve]"') from error
    if arguments.output.exists() and arguments.input.exists() and arguments.output.samefile(arguments.input):
        raise ConfigError(f"{arguments.output}: is the input too; give another output")
    lines = list(read_lines(arguments.input))
    if arguments.force:
        arguments.output.unlink(missing_ok=True)
    with Journal(arguments.output) as journal:
        missing = list(missing_lines(lines, journal))
        if missing:
            arguments.model = arguments.model or _model_of(arguments.input, lines)
            names = arguments.served_model_name or dict.fromkeys([arguments.model, Path(arguments.model).name])
            with load_model(arguments) as model:
                runner = BatchRunner(model, ServerSettings(served_model_names=tuple(names)))
                with tqdm(total=len(lines), initial=len(lines) - len(missing), unit="request") as bar:
                    for answer in runner.run(iter(missing)):
                        journal.append(answer)
                        bar.update()
            if runner.num_failed:
                print(f"{runner.num_failed} of {len(missing)} requests failed; their answers say why", file=sys.stderr)
    return 0


def _model_of(path: Path, lines: list[BatchLine]) -> str:
    entry = parse_json_object(lines[0].data, f"{path}:{lines[0].number}", ConfigError)
    body = entry.get("body")
    model = body.get("model") if isinstance(body, dict) else None
    if not isinstance(model, str) or not model:
        raise ConfigError(f"{path}:{lines[0].number}: body.model is {model!r:.40}, expected a model; or give MODEL")
    return model
