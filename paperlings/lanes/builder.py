"""The operations of a kernel as a GPU carries them out: in place of triton's InterpreterBuilder."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from paperlings.lanes import libdevice
from paperlings.lanes.blocks import block, numpy_dtype, values
from paperlings.lanes.launch import Observer
from paperlings.lanes.memory import ADDRESS
from paperlings.lanes.rounding import (
    Array,
    from_bfloat16,
    poison,
    rounded_to_tf32,
    to_bfloat16,
    truncated_to_tf32,
)
from paperlings.outcomes import unverified

_PRECISION = interpreter._ir.INPUT_PRECISION
_WRAPPING = {np.add: np.logical_xor, np.subtract: np.logical_xor}  # of one bit
_TF32 = {_PRECISION.TF32: "tf32", _PRECISION.TF32x3: "tf32x3"}


class Builder(InterpreterBuilder):  # type: ignore[misc]
    """`observer` watches the launch that runs."""

    observer: Observer

    # memory

    def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *_: Any, **__: Any) -> Any:
        element = ptrs.get_element_ty()
        dtype = numpy_dtype(element)
        allowed = self.observer.load(ptrs.data, _flags(mask), dtype.itemsize)
        return self._load(ptrs, allowed, other, element, dtype)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *_: Any, **__: Any) -> None:
        allowed = self.observer.store(ptrs.data, _flags(mask), value.data)
        interpreter._interpreter.store(ptrs.data & ADDRESS, value.data, allowed)

    def create_atomic_rmw(
        self, op: Any, ptr: Any, val: Any, mask: Any, sem: Any, scope: Any
    ) -> Any:
        allowed = self.observer.atomic(ptr.data, _flags(mask), val.data.itemsize)
        bare = TensorHandle(ptr.data & ADDRESS, ptr.dtype)
        if val.dtype.scalar == tl.bfloat16:
            return self._add_bfloat16(bare, val, allowed)
        mask = TensorHandle(allowed, tl.int1)
        return super().create_atomic_rmw(op, bare, val, mask, sem, scope)

    def create_atomic_cas(self, ptr: Any, cmp: Any, val: Any, sem: Any, scope: Any) -> Any:
        allowed = self.observer.atomic(ptr.data, np.ones(ptr.data.shape, bool), val.data.itemsize)
        if not allowed.all():
            return TensorHandle(cmp.data, cmp.dtype.scalar)
        bare = TensorHandle(ptr.data & ADDRESS, ptr.dtype)
        return super().create_atomic_cas(bare, cmp, val, sem, scope)

    def create_atomic_load(self, ptr: Any, mask: Any, sem: Any, scope: Any) -> Any:
        element = ptr.get_element_ty()
        dtype = numpy_dtype(element)
        allowed = self.observer.atomic(ptr.data, _flags(mask), dtype.itemsize, writes=False)
        return self._load(ptr, allowed, None, element, dtype)

    def create_atomic_store(self, ptr: Any, val: Any, mask: Any, sem: Any, scope: Any) -> None:
        allowed = self.observer.atomic(ptr.data, _flags(mask), val.data.itemsize)
        interpreter._interpreter.store(ptr.data & ADDRESS, val.data, allowed)

    def create_atomic_poll(self, *_: Any) -> None:
        unverified("a program that waits for another one cannot be interpreted")

    def create_barrier(self) -> None:
        self.observer.sanitizer.barrier()

    def _load(self, ptrs: Any, allowed: Array, other: Any, element: Any, dtype: Any) -> Any:
        if other is not None:
            rest = other.data
        elif allowed.all():
            rest = np.empty(ptrs.data.shape, dtype)
        else:
            rest = poison(ptrs.data.shape, dtype, bfloat16=element == tl.bfloat16)
        data = interpreter._interpreter.load(ptrs.data & ADDRESS, allowed, rest, dtype)
        return TensorHandle(data, element)

    def _add_bfloat16(self, ptr: Any, val: Any, allowed: Array) -> Any:
        """One lane after the other; nothing but addition is offered for bfloat16."""
        before = np.zeros(ptr.data.shape, np.uint16)
        for lane in np.ndindex(ptr.data.shape):
            if allowed[lane]:
                place, one = ptr.data[lane].reshape(1), np.ones(1, bool)
                old = interpreter._interpreter.load(
                    place, one, np.zeros(1, np.uint16), np.dtype("u2")
                )
                new = to_bfloat16(from_bfloat16(old) + from_bfloat16(val.data[lane].reshape(1)))
                interpreter._interpreter.store(place, new, one)
                before[lane] = old[0]
        return TensorHandle(before, tl.bfloat16)

    # numbers

    def get_bf16(self, value: float) -> Any:
        return TensorHandle(to_bfloat16(np.array([value], np.float32)), tl.bfloat16)

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        return block(values(src), dst_type.scalar)

    def binary_op(self, lhs: Any, rhs: Any, op: Any) -> Any:
        if lhs.data.dtype == np.bool_:
            op = _WRAPPING.get(op, op)
        data = op(values(lhs), values(rhs))
        if data.dtype == np.bool_:
            return TensorHandle(data, tl.int1)
        return block(data, lhs.dtype.scalar)

    # the number, where one of two is NaN

    def create_maxnumf(self, lhs: Any, rhs: Any) -> Any:
        return self.binary_op(lhs, rhs, np.fmax)

    def create_minnumf(self, lhs: Any, rhs: Any) -> Any:
        return self.binary_op(lhs, rhs, np.fmin)

    def create_clampf(self, arg: Any, low: Any, high: Any, propagate_nans: Any) -> Any:
        if propagate_nans == interpreter._ir.PROPAGATE_NAN.NONE:
            return self.create_minnumf(self.create_maxnumf(arg, low), high)
        return self.ternary_op(arg, low, high, np.clip)

    def ternary_op(self, lhs: Any, rhs: Any, other: Any, op: Any) -> Any:
        return block(op(values(lhs), values(rhs), values(other)), other.dtype.scalar)

    def unary_op(self, arg: Any, op: Any) -> Any:
        return block(op(values(arg)), arg.dtype.scalar)

    def create_fma(self, x: Any, y: Any, z: Any) -> Any:
        wide = np.float64 if z.dtype.scalar != tl.float64 else np.longdouble
        x, y, rest = (values(handle).astype(wide) for handle in (x, y, z))
        return block(x * y + rest, z.dtype.scalar)

    def create_erf(self, arg: Any) -> Any:
        return self.unary_op(arg, libdevice.FUNCTIONS["erf"])

    def create_rsqrt(self, arg: Any) -> Any:
        return self.unary_op(arg, libdevice.FUNCTIONS["rsqrt"])

    def create_dot(self, a: Any, b: Any, d: Any, input_precision: Any, *_: Any) -> Any:
        dtype = a.dtype.scalar
        name = str(dtype)
        if dtype == tl.float32:
            name = _TF32.get(input_precision, name)
        self.observer.dot(name, dtype.primitive_bitwidth, a.data.shape, b.data.shape)
        if dtype.is_floating() and dtype.primitive_bitwidth == 8:
            return super().create_dot(a, b, d, input_precision, *_)
        return block(_product(values(a), values(b), name) + values(d), d.dtype.scalar)

    def create_extern_elementwise(
        self, library: str, path: str, symbol: str, arguments: Any, ret_type: Any, pure: bool
    ) -> Any:
        name = symbol.removeprefix("__nv_")
        function = libdevice.find(name)
        if function is None:
            unverified(f"the interpreter does not know libdevice's {name}")
        return block(function(*map(values, arguments)), ret_type.scalar)

    def create_inline_asm(self, *_: Any) -> Any:
        unverified("inline assembly cannot be interpreted")


def _product(a: Array, b: Array, dtype: str) -> Array:
    """The product of two blocks before it is added to anything."""
    if dtype == "tf32x3":
        (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
        rest = a_low @ b_high + a_high @ b_low
        # inf times a rest of zero is no number, which the compiler's code takes for none, too
        both: Array = a_high @ b_high + np.where(np.isnan(rest), np.float32(0), rest)
        return both
    if dtype == "tf32":
        a, b = truncated_to_tf32(a), truncated_to_tf32(b)
    elif a.dtype == np.float16:
        a, b = a.astype(np.float32), b.astype(np.float32)
    elif a.dtype.kind in "iu":
        # holds every sum of products of 8 bits, and multiplies faster than integers do
        a, b = a.astype(np.float64), b.astype(np.float64)
    product: Array = np.matmul(a, b)
    return product


def _split(x: Array) -> tuple[Array, Array]:
    """The two TF32 numbers nearest to float32."""
    high = rounded_to_tf32(x)
    return high, rounded_to_tf32(x - high)


def _flags(mask: Any) -> Array:
    """A mask as an array; some versions hand over the array itself."""
    return mask.data if isinstance(mask, TensorHandle) else np.asarray(mask)
