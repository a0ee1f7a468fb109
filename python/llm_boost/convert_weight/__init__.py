"""Conversion of weights between Hugging Face, MindSpore and MindFormers: the original's commands.

``python -m llm_boost.convert_weight`` is ``llm-boost convert``:

.. code-block:: shell

    python -m llm_boost.convert_weight --model llama --input_path HF_DIR --output_path llama2_7b.ckpt --dtype bf16
    python -m llm_boost.convert_weight --pre_ckpt_path llama2_7b.ckpt --mindspore_ckpt_path fused.ckpt -qkv_concat True
    python -m llm_boost.convert_weight --model llama --input_path fused.ckpt --output_path HF_DIR2 --reversed
"""

from __future__ import annotations

from collections.abc import Sequence

from llm_boost.convert_weight.convert import (
    Options,
    convert_to_hugging_face,
    convert_to_mindspore,
    fuse_checkpoint,
    update_checkpoint,
)

__all__ = ["Options", "convert_to_hugging_face", "convert_to_mindspore", "fuse_checkpoint", "main", "update_checkpoint"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``llm-boost convert`` with the arguments given, those of the process by default; returns its exit code."""
    import sys

    from llm_boost.cli import main as run  # the command line imports this package

    return run(["convert", *(sys.argv[1:] if argv is None else argv)])
