"""What of triton is replaced inside `faithful()`, and put back after it."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import triton.language as tl
from triton.language.extra import libdevice
from triton.language.extra.cuda import libdevice as cuda_libdevice
from triton.runtime import interpreter
from triton.runtime.autotuner import Autotuner
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

from paperlings.lanes import functions, launch, reduction
from paperlings.lanes.blocks import numpy_dtype
from paperlings.lanes.builder import Builder

_PLACES = (
    tl,
    tl.core,
    tl.math,
    tl.tensor,
    tl.dtype,
    tl.block_type,
    tl.condition,
    tl.core.tensor_descriptor_base,
    libdevice,
    cuda_libdevice,
    interpreter,
    interpreter.GridExecutor,
    interpreter.FunctionRewriter,
    interpreter.interpreter_builder,
    interpreter.interpreter_semantic,
    InterpretedFunction,
    Autotuner,
)
# the modules that ask of a tensor whether it was given, not whether it is true
_ASKING = ("triton.language.core", "triton.language.semantic")


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """Replace it for the block."""
    builder = interpreter.interpreter_builder
    with contextlib.ExitStack() as stack:
        for place in _PLACES:
            stack.enter_context(_kept(place))
        builder.__class__ = Builder
        stack.callback(setattr, builder, "__class__", InterpreterBuilder)
        builder.observer = None
        # a GPU wraps around, and asking costs more than the addition
        builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
        _language()
        functions.prepare(stack)
        interpreter._implicit_cvt = lambda value: builder.observer.convert(value)
        interpreter.GridExecutor.__call__ = launch.run
        # all configurations take the same time, so the first one is the fastest
        Autotuner.do_bench = staticmethod(lambda *_, **__: (0.0, 0.0, 0.0))
        _remember()
        yield


@contextlib.contextmanager
def _kept(place: Any) -> Iterator[None]:
    """Put the names of a module, a class or an object back after the block."""
    before = dict(vars(place))
    try:
        yield
    finally:
        for name in vars(place).keys() - before.keys():
            delattr(place, name)
        for name, value in before.items():
            if vars(place).get(name, place) is not value:
                setattr(place, name, value)


def _language() -> None:
    """The language once for all launches, not for each of them and each call in a kernel."""
    interpreter._patch_lang(types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    for place in (tl, tl.core):
        place.reduce = reduction.reduce
        place.associative_scan = reduction.associative_scan
        place.range = functions.counted
    tl.tensor.__index__ = lambda self: int(self.handle.data.item())
    tl.tensor.__bool__ = _truth


def _truth(self: Any) -> bool:
    if sys._getframe(1).f_globals["__name__"] in _ASKING:
        return True
    if self.handle.data.size != 1:
        raise ValueError(
            "a block of several values is neither true nor false: "
            "write & | ~ for and, or, not, and tl.where for if"
        )
    return bool(self.handle.data.item())


def _remember() -> None:
    """What a kernel makes over and over, the types of its blocks and their shapes, only once."""
    make_type, make_tensor = tl.block_type.__init__, tl.tensor.__init__
    types_made: dict[Any, dict[str, Any]] = {}
    tensors_made: dict[str, dict[str, Any]] = {}

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *(getattr(size, "value", size) for size in shape))
        if key not in types_made:
            make_type(self, element_ty, shape)
            types_made[key] = dict(vars(self))
        vars(self).update(types_made[key])

    def tensor(self: Any, handle: Any, type: Any) -> None:
        if type.name not in tensors_made:
            make_tensor(self, None, type)
            tensors_made[type.name] = dict(vars(self))
        vars(self).update(tensors_made[type.name], handle=handle)

    tl.block_type.__init__ = block_type
    tl.tensor.__init__ = tensor
    interpreter._get_np_dtype = numpy_dtype
