"""Reading weights: from the files of a model directory to the table that the core loads from."""

from __future__ import annotations

from pathlib import Path

from llm_boost import _core
from llm_boost.checkpoint.hugging_face import read_hugging_face
from llm_boost.checkpoint.tensors import StoredTensor, WeightMap, build_weight_table
from llm_boost.errors import CheckpointError
from llm_boost.model_config import ModelConfig

__all__ = ["StoredTensor", "WeightMap", "build_weight_table", "read_checkpoint", "read_hugging_face"]


def read_checkpoint(path: Path, config: ModelConfig) -> _core.WeightTable:
    """Finds every weight of a model in a checkpoint.

    Raises:
        CheckpointError: Files are missing, damaged or unsafe, or do not hold what the config asks for.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: is a file, expected a Hugging Face directory")
    return read_hugging_face(path, config)
