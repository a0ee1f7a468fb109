"""The rotary tables: a framework's, checked, or those that a config asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llm_boost.errors import RequestError
from llm_boost.integrations.mindspore.tensors import to_numpy

Table = npt.NDArray[np.float32]  # [positions, head_dim / 2]


def half_table(name: str, value: Any, head_dim: int, num_positions: int) -> Table:
    """The first half of the columns of a framework's table, which says all: queries and keys turn in half-split pairs.

    Args:
        name: What messages call it.
        value: [at least num_positions, head_dim], a NumPy array or MindSpore tensor.
        head_dim: Size of an attention head.
        num_positions: Rows that are needed.

    Raises:
        RequestError: It has another shape, or its halves differ.
    """
    shape = tuple(value.shape)
    if len(shape) != 2 or shape[0] < num_positions or shape[1] != head_dim:
        raise RequestError(f"{name} has shape {list(shape)}, expected [{num_positions} or more, {head_dim}]")
    table = to_numpy(value)[:num_positions].astype(np.float32)
    low, high = np.split(table, 2, axis=1)
    if not np.array_equal(low, high):
        raise RequestError(f"the halves of {name}'s columns differ, expected the layout concat(freqs, freqs)")
    return np.ascontiguousarray(low)
