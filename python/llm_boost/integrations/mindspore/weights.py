"""From the parameters in memory that `set_weights` gets to the core's weight table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_boost import _core
from llm_boost.checkpoint.assemble import assemble_weights
from llm_boost.checkpoint.names import EMBEDDING, HEAD, Naming, find_naming
from llm_boost.checkpoint.tensors import DTYPE_BYTES, Segment, StoredTensor
from llm_boost.errors import CheckpointError
from llm_boost.integrations.mindspore.tensors import dtype_name, to_numpy
from llm_boost.model_config import ModelConfig

_WHERE = "set_weights"


@dataclass(frozen=True, slots=True)
class HeldWeights:
    """The parameters of a model in the caller's memory, which serve as a checkpoint whose files are named after them.

    Attributes:
        tensors: What is held, by name; the only segment of each has its name as the path.
        data: Name -> the bytes, a view of the caller's memory where that is contiguous.
        naming: Whose names they are.
    """

    tensors: Mapping[str, StoredTensor]
    data: Mapping[str, npt.NDArray[np.uint8]]
    naming: Naming

    @staticmethod
    def take(parameters: Mapping[str, Any]) -> HeldWeights:
        """Takes hold of NumPy arrays, or of MindSpore tensors or parameters.

        Raises:
            CheckpointError: One of them is no tensor, or the names are those of no model.
        """
        if not isinstance(parameters, Mapping) or not all(isinstance(name, str) for name in parameters):
            raise CheckpointError(f"{_WHERE} got {parameters!r:.60}, expected a dictionary of tensors by name")
        tensors, data = {}, {}
        for name, value in parameters.items():
            dtype = dtype_name(value)
            if dtype not in DTYPE_BYTES:
                raise CheckpointError(f"{_WHERE}: '{name}' is {dtype}, expected a tensor of numbers")
            array = to_numpy(value)
            data[name] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            segment = Segment(name, 0, array.nbytes)
            tensors[name] = StoredTensor(name, dtype, array.shape, Path(_WHERE), (segment,))
        return HeldWeights(tensors, data, find_naming(tensors, _WHERE))

    def has(self, name: str) -> bool:
        """Whether a weight, or the first of its parts, is there."""
        return name in self.tensors or self.naming.part_names(name)[0] in self.tensors

    @property
    def has_tied_head(self) -> bool:
        """Whether the embedding is the language model head too."""
        return not self.has(HEAD)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self._matrix(EMBEDDING)[0]

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward part."""
        return self._matrix("model.layers.0.feed_forward.w2.weight")[1]

    def table(self, config: ModelConfig) -> _core.WeightTable:
        """The core's weight table, which keeps the memory alive without copying it.

        Raises:
            CheckpointError: Weights are missing, surplus or misshapen; all of them are listed.
        """
        table = _core.WeightTable()
        for weight in assemble_weights([self.tensors], config, _WHERE):
            memory = [self.data[name][begin : begin + size] for name, begin, size in weight.segments]
            table.add(weight.name, weight.dtype, weight.shape, memory)
        return table

    def _matrix(self, name: str) -> tuple[int, ...]:
        (stored,) = self.naming.part_names(name)
        tensor = self.tensors.get(stored)
        if tensor is None or len(tensor.shape) != 2:
            raise CheckpointError(f"{_WHERE}: there is no matrix '{stored}' among {len(self.tensors)} parameters")
        return tensor.shape
