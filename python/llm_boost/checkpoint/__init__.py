"""Reading weights: from the files of a checkpoint to the table that the core loads from."""

from __future__ import annotations

from llm_boost.checkpoint.assemble import read_checkpoint
from llm_boost.checkpoint.files import is_checkpoint_file, open_checkpoint
from llm_boost.checkpoint.tensors import StoredTensor

__all__ = ["StoredTensor", "is_checkpoint_file", "open_checkpoint", "read_checkpoint"]
