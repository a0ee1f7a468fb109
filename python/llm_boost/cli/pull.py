"""``llm-boost pull``: fetch a model."""

from __future__ import annotations

import argparse

from llm_boost.hub import pull
from llm_boost.registry import MODELS

SUMMARY = "fetch a model into the cache directory (LLM_BOOST_HOME)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help=f"{', '.join(MODELS)}, or ORG/NAME on the Hugging Face hub")
    parser.add_argument("--force", action="store_true", help="fetch it again even if it is there")


def main(arguments: argparse.Namespace) -> int:
    """Fetches the model and prints its directory."""
    print(pull(arguments.model, force=arguments.force))
    return 0
