"""One launch of a kernel: its arguments, its programs in some order, and who watches them."""

from __future__ import annotations

import inspect
import math
import operator
from typing import Any

import numpy as np
import triton.language as tl
from triton._utils import canonicalize_ptr_dtype
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle
from triton.runtime.jit import TensorWrapper

from paperlings.lanes import traffic
from paperlings.lanes.blocks import numpy_dtype
from paperlings.lanes.interpreter import shuffled
from paperlings.lanes.memory import Memory
from paperlings.lanes.rounding import Array
from paperlings.lanes.sanitizer import Sanitizer

_MOST = 65535  # programs on the second and the third axis of a grid
_converted = interpreter._implicit_cvt  # of what holds other arguments, or is none


def run(executor: Any, *args: Any, **kwargs: Any) -> None:
    """Run every program of a launch; takes the place of GridExecutor's call.

    Raises what a program raises, and otherwise the first finding.
    """
    kernel, builder = executor.fn, interpreter.interpreter_builder
    # what is not an argument is an option of the compiler
    kwargs = {name: value for name, value in kwargs.items() if name in executor.arg_names}
    for hook in executor.pre_run_hooks:
        hook(*args, **kwargs)
    arguments = inspect.getcallargs(kernel, *args, **kwargs)
    grid = executor.grid(arguments) if callable(executor.grid) else executor.grid
    grid = tuple(operator.index(size) for size in grid)
    if not 1 <= len(grid) <= 3:
        raise ValueError(f"the grid {grid} should have one, two or three axes")
    if max(grid[1:], default=0) > _MOST:
        raise ValueError(f"the grid {grid}: of all but the first axis, a GPU takes {_MOST} at most")
    observer = builder.observer = Observer(kernel.__name__)
    builder.set_grid_dim(*grid, *(1,) * (3 - len(grid)))
    try:
        # inf and NaN come out as they do on a GPU, in silence
        with np.errstate(all="ignore"):
            for name, value in arguments.items():
                if name not in executor.constexprs:
                    arguments[name] = observer.convert(value, name)
            for program in shuffled(math.prod(grid)):
                index = tuple(map(int, np.unravel_index(program, grid)))
                builder.set_grid_idx(*index, *(0,) * (3 - len(grid)))
                observer.sanitizer.begin(index)
                kernel(**arguments)
    finally:
        builder.observer = None
        found = observer.sanitizer.close()
        if observer.meter:
            observer.meter.close(math.prod(grid))
    if found:
        raise found[0]


class Observer:
    """What watches one launch: each access of its programs comes through here."""

    def __init__(self, kernel: str):
        self.memory = Memory()
        self.sanitizer = Sanitizer(kernel, self.memory)
        self.meter = traffic.meter(kernel, self.memory)
        self.naming = ""  # the argument that is being converted

    def convert(self, value: Any, name: str = "") -> Any:
        """An argument as the kernel gets it: tensors as tagged pointers, floats as float32.

        name: where it has none of its own, it is a part of the one before.
        """
        name = self.naming = name or self.naming
        if isinstance(value, tuple):
            items = [self.convert(item, f"{name}[{i}]") for i, item in enumerate(value)]
            return interpreter._tuple_create(value, items)
        if isinstance(value, (bool, int, float)):
            return _number(value)
        if not hasattr(value, "data_ptr"):
            return _converted(value)
        tensor = value.base if isinstance(value, TensorWrapper) else value
        if tensor.device.type != "cpu":
            raise ValueError(f"`{name}` is on {tensor.device}; kernels are interpreted on the CPU")
        dtype = tl.str_to_ty(canonicalize_ptr_dtype(value.dtype, False), None)
        first = self.memory.add(name, tensor).first
        return tl.tensor(TensorHandle(np.array([first], np.uint64), dtype), dtype)

    def load(self, addresses: Array, mask: Array, itemsize: int) -> Array:
        """Some lanes load: which of them may touch memory."""
        parts, allowed = self.memory.share(addresses, mask, itemsize)
        for part in parts:
            self.sanitizer.load(part, itemsize)
            if self.meter:
                self.meter.load(part, itemsize)
        return allowed

    def store(self, addresses: Array, mask: Array, data: Array) -> Array:
        """Some lanes store: which of them may."""
        parts, allowed = self.memory.share(addresses, mask, data.itemsize)
        for part in parts:
            stored = data.reshape(-1) if part.lanes is None else data.reshape(-1)[part.lanes]
            self.sanitizer.store(part, stored)
            if self.meter:
                self.meter.store(part, data.itemsize)
        return allowed

    def atomic(self, addresses: Array, mask: Array, itemsize: int, *, writes: bool = True) -> Array:
        """Some lanes touch memory in one step: which of them may."""
        parts, allowed = self.memory.share(addresses, mask, itemsize)
        for part in parts:
            self.sanitizer.atomic(part, itemsize, writes=writes)
            if self.meter:
                count = self.meter.store if writes else self.meter.load
                count(part, itemsize)
        return allowed

    def dot(self, dtype: str, bits: int, a: tuple[int, ...], b: tuple[int, ...]) -> None:
        """Blocks of the shapes `a` and `b` are multiplied."""
        self.sanitizer.dot(dtype, bits, a[-1])
        if self.meter:
            self.meter.dot(dtype, 2 * math.prod(a) * b[-1])


def _number(value: float) -> Any:
    """A Python number in the dtype in which a GPU gets it."""
    if isinstance(value, bool):
        dtype = tl.int1
    elif isinstance(value, float):
        dtype = tl.float32
    elif -(2**31) <= value < 2**31:
        dtype = tl.int32
    else:
        dtype = tl.int64 if value < 2**63 else tl.uint64
    return tl.tensor(TensorHandle(np.array([value], numpy_dtype(dtype)), dtype), dtype)
