"""``llm-boost convert``: make a model directory of another format."""

from __future__ import annotations

import argparse
from pathlib import Path

from llm_boost.gguf_convert import convert_gguf

SUMMARY = "convert a GGUF file to a Hugging Face model directory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command's arguments."""
    parser.add_argument("source", metavar="MODEL.gguf", type=Path, help="a llama or qwen2 GGUF file")
    parser.add_argument("target", metavar="DIRECTORY", type=Path, help="the directory to make")
    parser.add_argument("--force", action="store_true", help="replace the directory if it exists")


def main(arguments: argparse.Namespace) -> int:
    """Converts and prints the directory."""
    print(convert_gguf(arguments.source, arguments.target, force=arguments.force))
    return 0
