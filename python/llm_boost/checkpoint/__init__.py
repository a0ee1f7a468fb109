"""Reading weights: from the files of a model directory to the table that the core loads from."""

from __future__ import annotations

from llm_boost.checkpoint.hugging_face import read_hugging_face
from llm_boost.checkpoint.tensors import StoredTensor, WeightMap, build_weight_table

__all__ = ["StoredTensor", "WeightMap", "build_weight_table", "read_hugging_face"]
