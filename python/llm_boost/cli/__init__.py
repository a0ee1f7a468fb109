"""The ``llm-boost`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from llm_boost import __version__
from llm_boost._suggest import unknown_name
from llm_boost.cli.options import BOOLEANS, EXIT_INTERRUPTED
from llm_boost.errors import InternalError, LlmBoostError

_COMMANDS = ("pull", "convert", "run", "predict", "serve", "batch", "bench", "bench serve", "info", "doctor")

_EXIT_BAD_INPUT = 2


class _Parser(argparse.ArgumentParser):
    """Names the nearest known option or command in its errors."""

    def error(self, message: str) -> None:  # type: ignore[override]  # it does not return, but argparse says otherwise
        unknown = (
            message.removeprefix("unrecognized arguments: ").split()[0] if message.startswith("unrecognized") else ""
        )
        if unknown.startswith("-"):
            message = unknown_name(
                "option", unknown.split("=")[0], [o for a in self._actions for o in a.option_strings]
            )
        print(f"{self.prog}: {message}\n{self.format_usage().rstrip()}", file=sys.stderr)
        raise SystemExit(_EXIT_BAD_INPUT)


def _module(command: str) -> ModuleType:
    """A command's SUMMARY, add_arguments(parser) and main(arguments) -> exit code, imported when it is asked for."""
    return import_module(f"llm_boost.cli.{command.replace(' ', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 (a bug), 2 (bad input) or 130 (interrupted)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if " ".join(words[:2]) in _COMMANDS:  # a command of two words
        words[:2] = [" ".join(words[:2])]
    if not words or words[0].startswith("-"):
        _overview().parse_args(words)
    command = words.pop(0)
    if command not in _COMMANDS:
        print(f"llm-boost: {unknown_name('command', command, _COMMANDS)}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    arguments = _parse(command, words)
    try:
        code: int = _module(command).main(arguments)
        return code
    except InternalError as error:
        print(f"llm-boost: {error}", file=sys.stderr)
        return 1
    except LlmBoostError as error:
        print(f"llm-boost {command}: {error}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # the machine's, and not ours: a disk that fails, a directory that may not be read
        place = "" if error.filename is None else f"{error.filename}: "
        print(f"llm-boost {command}: {place}{error.strerror or error}", file=sys.stderr)
        return _EXIT_BAD_INPUT


def _overview() -> argparse.ArgumentParser:
    """Answers what is not about one command: --help, --version, and no command at all."""
    parser = _Parser(prog="llm-boost", description="LLM inference on Ascend NPUs and CPUs.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"llm_boost {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in _COMMANDS:
        commands.add_parser(name, help=_module(name).SUMMARY)
    return parser


def _parse(command: str, words: Sequence[str]) -> argparse.Namespace:
    """Parses the words behind a command, among which options may stand anywhere."""
    module = _module(command)
    parser = _Parser(prog=f"llm-boost {command}", description=module.SUMMARY, allow_abbrev=False)
    module.add_arguments(parser)
    # Without intermixing, an optional argument counts as absent as soon as an option stands before it. With it, some
    # versions of Python forget a '--'.
    parse = parser.parse_args if "--" in words else parser.parse_intermixed_args
    return parse(_with_closed_flags(parser, words))


def _with_closed_flags(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """``--flag PATH`` becomes ``--flag=True PATH``: True and False are values of a flag, a path is the command's."""
    if all(action.option_strings for action in parser._actions):
        return [*words]  # the command takes no arguments
    flags = {option for action in parser._actions if action.nargs == "?" for option in action.option_strings}
    return [
        f"{word}=True" if word in flags and following.lower() not in BOOLEANS and _is_path(following) else word
        for word, following in zip(words, [*words, "-"][1:], strict=True)
    ]


def _is_path(word: str) -> bool:
    path = Path(word)
    return not word.startswith("-") and (len(path.parts) > 1 or bool(path.suffix) or path.exists())
