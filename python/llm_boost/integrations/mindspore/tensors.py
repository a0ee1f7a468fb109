"""NumPy arrays and MindSpore tensors, told apart without importing MindSpore."""

from __future__ import annotations

import importlib
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt


def is_mindspore_tensor(value: object) -> bool:
    """Whether a value is a MindSpore tensor or parameter."""
    return any(base.__module__.partition(".")[0] == "mindspore" for base in type(value).__mro__)


def to_numpy(value: Any) -> npt.NDArray[Any]:
    """An array, a MindSpore tensor or nested lists as an array."""
    if not is_mindspore_tensor(value):
        return np.asarray(value)
    if dtype_name(value) == "bfloat16":  # which its asnumpy() knows with some versions of NumPy only
        return np.frombuffer(value.get_bytes(), ml_dtypes.bfloat16).reshape(tuple(value.shape))
    return np.asarray(value.asnumpy())


def of_the_same_kind(array: npt.NDArray[Any], model: object) -> Any:
    """`array` as a MindSpore tensor where `model` is one, else as it is."""
    if not is_mindspore_tensor(model):
        return array
    return importlib.import_module("mindspore").Tensor(array)


def dtype_name(value: Any) -> str:
    """The type of the elements under NumPy's name, "float16" for one; of what has none, the name of its own type."""
    return str(getattr(value, "dtype", type(value).__name__)).lower()
