"""The functions of kernels, made ready to be interpreted."""

from __future__ import annotations

import ast
import contextlib
import functools
import operator
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.extra import libdevice
from triton.language.extra.cuda import libdevice as cuda_libdevice
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, TensorHandle

from paperlings.lanes.blocks import numpy_dtype

# what a rewritten function looks up; triton puts all the names of its interpreter beside them
_NEEDED = ("interpreter_semantic", "_InterpreterComparison")


def prepare(stack: contextlib.ExitStack) -> None:
    """Rewrite each function once, and let out what it raises as it is.

    What has to be put back, but for names of triton, is left to the stack.
    """
    stand_ins, ready = _external(), dict[Any, Any]()
    needed = {name: vars(interpreter)[name] for name in _NEEDED if name in vars(interpreter)}

    def prepared(self: Any) -> Any:
        if self.fn not in ready:
            names = self.fn.__globals__
            imported = {
                name: stand_ins[value]
                for name, value in names.items()
                if isinstance(value, types.FunctionType) and value in stand_ins
            }
            if "counting" not in vars(self):
                before = set(names)
                self.counting = self.rewriter.rewrite_ast()
                for name in names.keys() - before:
                    del names[name]
            _put(needed | imported, names, stack)
            ready[self.fn] = self.counting
        return ready[self.fn]

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        if interpreter.interpreter_builder.observer is None:
            name = self.fn.__name__
            raise RuntimeError(f"{name} runs on a GPU: launch it over a grid, {name}[grid](...)")
        return prepared(self)(*args, **kwargs)

    interpreter.FunctionRewriter.ast_transformer = _Counting()
    interpreter.interpreter_semantic.range = counted
    InterpretedFunction.rewrite = prepared
    InterpretedFunction.__call__ = called


def _put(new: dict[str, Any], names: dict[str, Any], stack: contextlib.ExitStack) -> None:
    """Put names among those of a module until the stack is unwound."""
    for name, value in new.items():
        if name in names:
            stack.callback(names.__setitem__, name, names[name])
        else:
            stack.callback(names.pop, name)
        names[name] = value


class _Counting(interpreter.ASTTransformer):  # type: ignore[misc]
    """Lets `for i in range(...)` count in numbers of the language, which have a dtype."""

    def visit_For(self, node: ast.For) -> ast.For:
        self.generic_visit(node)
        match node.iter:
            case ast.Call(func=ast.Name("range")):
                semantic = ast.Name("interpreter_semantic", ast.Load())
                node.iter.func = ast.Attribute(semantic, "range", ast.Load())
        return node


def counted(first: Any, last: Any = None, step: Any = 1, *_: Any, **__: Any) -> Iterator[Any]:
    """range and tl.range in a kernel: int32, or int64 where a bound is."""
    first, last = (0, first) if last is None else (first, last)
    numbers = range(*map(operator.index, (first, last, step)))
    wide = any(
        isinstance(x, tl.tensor) and x.dtype.primitive_bitwidth == 64 for x in (first, last, step)
    )
    dtype = tl.int64 if wide else tl.int32
    for number in numbers:
        yield tl.tensor(TensorHandle(np.array([number], numpy_dtype(dtype)), dtype), dtype)


def _external() -> dict[Any, Any]:
    """Make libdevice work, and say what stands for which function, which may be imported by name.

    What a compiler replaces by the functions for its GPU is replaced by those for NVIDIA's.
    """
    stand_ins: dict[Any, Any] = {}
    for name, function in list(vars(cuda_libdevice).items()):
        if tl.core.is_builtin(function):
            new = functools.partial(function, _semantic=interpreter.interpreter_semantic)
            for place in (cuda_libdevice, libdevice):
                if name in vars(place):
                    stand_ins[vars(place)[name]] = new
                    setattr(place, name, new)
    return stand_ins
