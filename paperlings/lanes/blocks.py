"""Blocks of numbers in the interpreter: NumPy arrays with a dtype of triton's.

bfloat16, which NumPy has not, is held in its bits and computed with as float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

from paperlings.lanes.rounding import Array, from_bfloat16, to_bfloat16

_numpy_dtype = interpreter._get_np_dtype
_numpy_dtypes: dict[str, np.dtype[Any]] = {}


def numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype of the array that holds a block of triton's `dtype`."""
    if dtype.name not in _numpy_dtypes:
        _numpy_dtypes[dtype.name] = _numpy_dtype(dtype)
    return _numpy_dtypes[dtype.name]


def values(handle: Any) -> Array:
    """The numbers of a block, bfloat16 as float32."""
    return from_bfloat16(handle.data) if handle.dtype.scalar == tl.bfloat16 else handle.data


def block(data: Array, dtype: Any) -> Any:
    """A block of `dtype` of the numbers given, rounded as `dtype` asks."""
    if dtype == tl.bfloat16:
        return TensorHandle(to_bfloat16(np.asarray(data, np.float32)), dtype)
    return TensorHandle(np.asarray(data).astype(numpy_dtype(dtype), copy=False), dtype)
