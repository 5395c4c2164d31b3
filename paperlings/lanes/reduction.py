"""tl.reduce and tl.associative_scan of whole blocks, in an order that a GPU could take.

Neighbours are combined in pairs, so a sum of 16-bit floats rounds after every addition, and what
is not associative comes out otherwise than from left to right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.language import standard
from triton.runtime.interpreter import TensorHandle

from paperlings.lanes.blocks import block, values
from paperlings.lanes.rounding import Array

Arrays = list[Array]
_EXACT = {standard._elementwise_max: np.fmax, standard._elementwise_min: np.fmin}


def _arg(better: Callable[[Array, Array], Array], left: bool) -> Callable[..., tuple[Array, ...]]:
    """How the place of the largest or smallest is found; among equals the first, if `left`."""

    def combine(a: Array, i: Array, b: Array, j: Array) -> tuple[Array, ...]:
        first = better(a, b) | ((a == b) & (i < j)) if left else better(a, b)
        return np.where(first, a, b), np.where(first, i, j)

    return combine


# what kernels use most, without the detour through the language
_KNOWN: dict[Any, Callable[..., tuple[Array, ...]]] = {
    standard._sum_combine: lambda a, b: (a + b,),
    standard._prod_combine: lambda a, b: (a * b,),
    standard._argmax_combine_tie_break_left: _arg(np.greater, left=True),
    standard._argmax_combine_tie_break_fast: _arg(np.greater, left=False),
    standard._argmin_combine_tie_break_left: _arg(np.less, left=True),
    standard._argmin_combine_tie_break_fast: _arg(np.less, left=False),
}


def reduce(input: Any, axis: Any, combine_fn: Any, keep_dims: Any = False, **_: Any) -> Any:
    """tl.reduce."""
    inputs = input if isinstance(input, tuple) else (input,)
    axis, keep = _plain(axis), _plain(keep_dims)
    rank = inputs[0].handle.data.ndim
    dtypes = [x.dtype for x in inputs]
    if axis is None:
        arrays = [x.handle.data.reshape(-1) for x in inputs]
        kept: tuple[int, ...] = tuple(range(rank))
    else:
        kept = (range(rank)[axis],)
        arrays = [np.moveaxis(x.handle.data, kept[0], 0) for x in inputs]
    outputs = _reduced(arrays, dtypes, combine_fn)
    if keep:
        outputs = [np.expand_dims(out, kept) for out in outputs]
    return _like(input, outputs, dtypes)


def associative_scan(input: Any, axis: Any, combine_fn: Any, reverse: Any = False, **_: Any) -> Any:
    """tl.associative_scan."""
    inputs = input if isinstance(input, tuple) else (input,)
    at = range(inputs[0].handle.data.ndim)[_plain(axis)]
    dtypes = [x.dtype for x in inputs]
    turn = slice(None, None, -1 if _plain(reverse) else None)
    arrays = _scanned([np.moveaxis(x.handle.data, at, 0)[turn] for x in inputs], dtypes, combine_fn)
    outputs = [np.ascontiguousarray(np.moveaxis(array[turn], 0, at)) for array in arrays]
    return _like(input, outputs, dtypes)


def _reduced(arrays: Arrays, dtypes: list[Any], combine_fn: Any) -> Arrays:
    """Along the first axis."""
    if combine_fn in _EXACT:
        found = _EXACT[combine_fn].reduce(values(TensorHandle(arrays[0], dtypes[0])), axis=0)
        return [block(np.asarray(found), dtypes[0]).data]
    if combine_fn is standard._sum_combine and arrays[0].itemsize > 2:
        # NumPy, too, adds in pairs, where they lie side by side
        rows = np.ascontiguousarray(np.moveaxis(arrays[0], 0, -1))
        return [np.asarray(np.add.reduce(rows, axis=-1, dtype=rows.dtype))]
    while len(arrays[0]) > 1:
        left, right = [a[0::2] for a in arrays], [a[1::2] for a in arrays]
        arrays = _combined(left, right, dtypes, combine_fn)
    return [array[0] for array in arrays]


def _scanned(arrays: Arrays, dtypes: list[Any], combine_fn: Any) -> Arrays:
    """Along the first axis: after each step, twice as many elements are in every one."""
    step = 1
    while step < len(arrays[0]):
        before = [np.concatenate([a[:step], a[:-step]]) for a in arrays]
        after = _combined(before, arrays, dtypes, combine_fn)
        arrays = [np.concatenate([a[:step], b[step:]]) for a, b in zip(arrays, after, strict=True)]
        step *= 2
    return arrays


def _combined(left: Arrays, right: Arrays, dtypes: list[Any], combine_fn: Any) -> Arrays:
    blocks = [TensorHandle(a, t) for a, t in zip(left + right, dtypes * 2, strict=True)]
    if combine_fn in _KNOWN:
        results = _KNOWN[combine_fn](*map(values, blocks))
    else:
        out = combine_fn(*(_tensor(handle.data, handle.dtype) for handle in blocks))
        results = tuple(values(x.handle) for x in (out if isinstance(out, tuple) else (out,)))
    return [
        np.broadcast_to(block(x, t).data, left[0].shape)
        for x, t in zip(results, dtypes, strict=True)
    ]


def _like(input: Any, outputs: Arrays, dtypes: list[Any]) -> Any:
    """One tensor for one, a tuple for a tuple."""
    results = tuple(map(_tensor, outputs, dtypes))
    return results if isinstance(input, tuple) else results[0]


def _tensor(data: Array, dtype: Any) -> Any:
    """A block; where the shape is (), a number."""
    if not data.shape:
        return tl.tensor(TensorHandle(data.reshape(1), dtype), dtype)
    return tl.tensor(TensorHandle(data, dtype), tl.block_type(dtype, list(data.shape)))


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, tl.constexpr) else value
