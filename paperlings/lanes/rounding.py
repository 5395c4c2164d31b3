"""How a GPU rounds, written in NumPy, which has no bfloat16 and no TF32."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_NAN = np.uint16(0x7FC0)
_LARGEST = np.uint16(0x7F7F)
_SMALLEST = np.uint16(0xFF7F)


def to_bfloat16(numbers: Array) -> Array:
    """float32 to the bits of bfloat16, to nearest, ties to even."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(numbers), _NAN, rounded.astype(np.uint16))


def from_bfloat16(bits: Array) -> Array:
    """The bits of bfloat16 to float32, which is exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def truncated_to_tf32(numbers: Array) -> Array:
    """float32 as a tensor core reads it, without the last 13 bits.

    The compiler puts no conversion before a TF32 dot, so nothing rounds to nearest.
    """
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def rounded_to_tf32(numbers: Array) -> Array:
    """float32 to TF32, to nearest, ties away from zero, as the splitting for "tf32x3" does."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(numbers), rounded, bits).view(np.float32)


@functools.lru_cache(maxsize=256)
def poison(shape: tuple[int, ...], dtype: np.dtype[Any], *, bfloat16: bool) -> Array:
    """What may lie in the lanes that a load leaves alone.

    NaN, the largest and the smallest number in turn: a sum shows the first, a maximum, which
    ignores NaN, the second, and a minimum the third. Of integers, always the byte 0x5b.
    """
    count = int(np.prod(shape))
    if bfloat16:
        kinds = np.array([_NAN, _LARGEST, _SMALLEST])
    elif dtype.kind == "f":
        kinds = np.array([np.nan, np.finfo(dtype).max, np.finfo(dtype).min], dtype)
    else:
        kinds = np.frombuffer(b"\x5b" * dtype.itemsize, np.uint8 if dtype == np.bool_ else dtype)
    return np.take(kinds, np.arange(count), mode="wrap").astype(dtype).reshape(shape)
