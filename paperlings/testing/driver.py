"""What needs live objects on the candidate's side: an optimizer stepping, hooks, an environment,
a long loop.

A driver is a plain function of `impl` and plain data that belongs to the tests, or to the kit.
It could run in another process than the test that calls it, so it is held to what that allows:
plain data in and out, and nothing read but libraries, plain constants and its file's helpers.
"""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch

# where a name that a driver reads may come from
LIBRARIES = ("torch", "math", "itertools", "functools", "gymnasium", "numpy", "paperlings.testing")
PLAIN = (torch.Tensor, torch.Generator, torch.dtype, str, int, float, type(None))


def driver(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark `function(impl, ...)` as a driver, and hold every call of it to plain data.

    Plain are tensors, generators, dtypes, numbers, strings, None, and lists, tuples and dicts of
    these. Raises TypeError where something else goes in or comes out, or where the function reads
    what could not go with it into another process.
    """

    @functools.wraps(function)
    def call(impl: Any, *args: Any, **kwargs: Any) -> Any:
        _check_names(function)
        _check([args, kwargs], f"the driver {function.__name__} is given")
        # a sealed judge runs it where the candidate is; a candidate's own attribute does not count
        sealed = getattr(type(impl), "__drive__", None)
        answer = sealed(impl, function, args, kwargs) if sealed else function(impl, *args, **kwargs)
        _check(answer, f"the driver {function.__name__} returns")
        return answer

    return call


@functools.cache
def _check_names(function: Callable[..., Any]) -> None:
    """Refuse a function that reads a global which is no library, no plain data, and no function or
    class of its file that passes the same check. The kit's own can go anywhere.
    """
    if _is_library(function):
        return
    waiting, seen = [function], {function}
    while waiting:
        reader = waiting.pop()
        if set(reader.__code__.co_freevars) - {"__class__"}:  # super() closes over that
            raise TypeError(f"{reader.__name__}, which a driver uses, closes over variables")
        for name in _globals(reader.__code__) & reader.__globals__.keys():
            value = inspect.unwrap(reader.__globals__[name])
            if _is_library(value):
                continue
            helpers = list(vars(value).values()) if isinstance(value, type) else [value]
            helpers = [h for h in helpers if isinstance(h, types.FunctionType)]
            if not helpers:
                _check(value, f"{reader.__name__}, which a driver uses, reads {name}:")
            waiting += [helper for helper in helpers if helper not in seen]
            seen.update(helpers)


def _globals(code: types.CodeType) -> set[str]:
    """Global names that the code reads, in functions inside it too."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _globals(constant)
    return found


def _is_library(value: Any) -> bool:
    home = str(getattr(value, "__module__", None) or getattr(value, "__name__", ""))
    return any(home == library or home.startswith(library + ".") for library in LIBRARIES)


def _check(tree: Any, where: str) -> None:
    """Refuse what is not plain data."""
    if isinstance(tree, dict):
        _check([*tree.keys(), *tree.values()], where)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            _check(value, where)
    elif not isinstance(tree, PLAIN):
        raise TypeError(f"{where} a {type(tree).__name__}, which is no plain data")


def name_of(impl: Any, function: Callable[..., Any]) -> str:
    """The name under which a function was read off `impl`; its own may be another one."""
    known = vars(impl).get("_cache", vars(impl))  # what is sealed keeps what was read
    return next((name for name, value in known.items() if value is function), function.__name__)
