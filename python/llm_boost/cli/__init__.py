"""The ``llm-boost`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from llm_boost import __version__
from llm_boost._suggest import unknown_name
from llm_boost.cli import convert, info, predict, pull, run
from llm_boost.cli.options import EXIT_INTERRUPTED
from llm_boost.errors import InternalError, LlmBoostError

# One module a subcommand: SUMMARY, add_arguments(parser) and main(arguments) -> exit code.
_COMMANDS = {"pull": pull, "convert": convert, "run": run, "predict": predict, "info": info}

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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="llm-boost", description="LLM inference on Ascend NPUs and CPUs.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"llm_boost {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in _COMMANDS.items():
        command = commands.add_parser(name, help=module.SUMMARY, description=module.SUMMARY, allow_abbrev=False)
        module.add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 (a bug), 2 (bad input) or 130 (interrupted)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-") and words[0] not in _COMMANDS:
        print(f"llm-boost: {unknown_name('command', words[0], _COMMANDS)}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    arguments, rest = _parser().parse_known_args(words)
    try:
        if rest:
            _subparser(arguments.command).error(f"unrecognized arguments: {' '.join(rest)}")
        code: int = _COMMANDS[arguments.command].main(arguments)
        return code
    except InternalError as error:
        print(f"llm-boost: {error}", file=sys.stderr)
        return 1
    except LlmBoostError as error:
        print(f"llm-boost {arguments.command}: {error}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _subparser(command: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"llm-boost {command}", allow_abbrev=False)
    _COMMANDS[command].add_arguments(parser)
    return parser
