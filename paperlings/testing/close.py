"""The one comparison of the kit, and the one table of tolerances.

A comparison climbs a ladder, type, shape, dtype, finiteness, values,
and stops at the first rung that breaks,
with the worst index, both values there and the question that helps.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

# the relative error each dtype is allowed: of the value itself, or of the largest value in its row.
# where a check fails by a little, fix its data, not this table.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 2e-2,
}
# rounding left where the exact answer is zero, in units of the table above and of the largest value
# anywhere
CANCELLATION = 1e-3


class Mismatch(AssertionError):
    """An answer that is not the expected one, kept whole so that it can be compared with known
    mistakes.
    """

    def __init__(self, question: str, difference: str, actual: Any = None, expected: Any = None):
        super().__init__(f"{difference}\n{question}")
        self.question = question
        self.difference = difference
        self.actual = actual
        self.expected = expected


def assert_close(
    actual: Any,
    expected: Any,
    question: str,
    *,
    rtol: float | None = None,
    scale: float = 0.0,
    dtype: torch.dtype | None = None,
) -> None:
    """Check that `actual`, which the candidate made, is `expected`, which it did not.

    expected: a NumPy array or scalar or a tensor (then `actual` is exactly a Tensor of that shape
    and dtype),
    a Python number, bool, str or None (then `actual` is one), or a tuple, list or dict of these.
    question: what a learner should ask when this fails.
    rtol: replaces the table's tolerance; needs a measured reason beside it.
    scale: the size of the terms that cancel in the answer, where that exceeds the answer itself.
    dtype: the dtype `actual` has, where it is not that of `expected`.

    Raises Mismatch.
    """
    difference = _difference(actual, expected, rtol, scale, dtype, "")
    if difference:
        raise Mismatch(question, difference, actual, expected)


def assert_at_most(actual: float, limit: float, question: str, what: str = "it") -> None:
    """Check that a number which the candidate caused does not exceed `limit`.

    what: what was counted, "the largest tensor", for the message. Raises Mismatch.
    """
    if not actual <= limit:
        raise Mismatch(question, f"{what} is {actual:.10g}, more than {limit:.10g}", actual, limit)


def close(actual: Any, expected: Any) -> bool:
    """Whether two answers are the same by the rules of `assert_close`."""
    return _difference(actual, expected, None, 0.0, None, "") == ""


def unchanged(actual: torch.Tensor, original: torch.Tensor) -> bool:
    """Whether two tensors hold the very same values, NaN included."""
    return np.array_equal(
        _array(actual.detach()), _array(original.detach()), equal_nan=actual.is_floating_point()
    )


def _difference(
    actual: Any,
    expected: Any,
    rtol: float | None,
    scale: float,
    dtype: torch.dtype | None,
    where: str,
) -> str:
    """The first difference in words, or nothing."""
    if isinstance(expected, dict):
        if not isinstance(actual, dict):
            return f"expected a dict{where}, got {_kind(actual)}"
        if actual.keys() != expected.keys():
            wanted, got = sorted(map(str, expected)), sorted(map(str, actual))
            return f"expected the keys {wanted}{where}, got {got}"
        pairs = [(actual[key], expected[key], f" in {key!r}{where}") for key in expected]
    elif isinstance(expected, (tuple, list)):
        if not isinstance(actual, (tuple, list)):
            return f"expected {len(expected)} values{where}, got {_kind(actual)}"
        if len(actual) != len(expected):
            return f"expected {len(expected)} values{where}, got {len(actual)}"
        pairs = [
            (a, e, f" in item {i}{where}")
            for i, (a, e) in enumerate(zip(actual, expected, strict=True))
        ]
    elif isinstance(expected, (np.ndarray, np.generic, torch.Tensor)):
        return _tensor_difference(actual, expected, rtol, scale, dtype, where)
    else:
        return _scalar_difference(actual, expected, rtol, scale, where)
    for a, e, place in pairs:
        if difference := _difference(a, e, rtol, scale, dtype, place):
            return difference
    return ""


def _scalar_difference(
    actual: Any, expected: Any, rtol: float | None, scale: float, where: str
) -> str:
    if expected is None or isinstance(expected, (str, bool, torch.dtype)):
        same = type(actual) is type(expected) and actual == expected
        return "" if same else f"expected {expected!r}{where}, got {_show(actual)}"
    if isinstance(actual, bool) or not isinstance(actual, (int, float)):
        return f"expected a Python number{where}, got {_kind(actual)}"
    if isinstance(expected, int) and not isinstance(actual, int):
        return f"expected the integer {expected}{where}, got {actual!r}"
    e, a = np.float64(expected), np.float64(actual)
    allowed = (TOLERANCE[torch.float64] if rtol is None else rtol) * max(abs(e), scale)
    same = bool(a == e or abs(a - e) <= allowed or (np.isnan(a) and np.isnan(e)))
    return "" if same else f"expected {float(e):.10g}{where}, got {float(a):.10g}"


def _tensor_difference(
    actual: Any,
    expected: np.ndarray | np.generic | torch.Tensor,
    rtol: float | None,
    scale: float,
    dtype: torch.dtype | None,
    where: str,
) -> str:
    e = (
        expected.detach()
        if isinstance(expected, torch.Tensor)
        else torch.as_tensor(np.array(expected))
    )
    # a subclass of Tensor could answer anything when it is compared
    if type(actual) not in (torch.Tensor, torch.nn.Parameter):
        return f"expected a Tensor{where}, got {_kind(actual)}"
    if actual.layout != torch.strided:
        return f"expected a dense Tensor{where}, got the layout {actual.layout}"
    a = actual.detach()
    if a.shape != e.shape:
        return f"expected the shape {tuple(e.shape)}{where}, got {tuple(a.shape)}"
    wanted = dtype or e.dtype
    if a.dtype != wanted:
        return f"expected the dtype {_name(wanted)}{where}, got {_name(a.dtype)}"
    return _value_difference(_array(a), _array(e), TOLERANCE.get(a.dtype, 0.0), rtol, scale, where)


def _value_difference(
    a: np.ndarray, e: np.ndarray, table: float, rtol: float | None, scale: float, where: str
) -> str:
    """Compared in NumPy, which a candidate that replaces functions of torch does not reach."""
    if a.size == 0:
        return ""
    if a.dtype.kind not in "fc":
        wrong = a != e
        return _worst(a, e, wrong, wrong.astype(float), where) if wrong.any() else ""
    same = (a == e) | (np.isnan(a) & np.isnan(e))
    strange = ~np.isfinite(a) & ~same
    if strange.any():
        return f"{_count(strange)} not finite{where}; " + _worst(
            a, e, strange, strange.astype(float), where
        )
    table = table if rtol is None else rtol
    size = np.where(np.isfinite(e), np.abs(e), 0.0)
    row = np.maximum(size.max(-1, keepdims=True) if e.ndim else size, scale)
    allowed = table * row + table * CANCELLATION * max(float(size.max()), scale)
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(a - e))
    wrong = ~(error <= allowed)
    if not wrong.any():
        return ""
    # worst is what misses its own allowance by most; where exactly zero is expected, any miss does
    excess = np.where(wrong, error / np.maximum(allowed, np.finfo(float).tiny), 0.0)
    return _worst(a, e, wrong, np.nan_to_num(excess, nan=np.inf), where)


def _array(x: torch.Tensor) -> np.ndarray:
    x = x.cpu()
    if x.dtype.is_complex:
        return x.to(torch.complex128).resolve_conj().numpy()
    return (x.double() if x.dtype.is_floating_point else x).numpy()


def _worst(a: np.ndarray, e: np.ndarray, wrong: np.ndarray, error: np.ndarray, where: str) -> str:
    index = np.unravel_index(int(error.argmax()), a.shape)
    at = f" at {[int(i) for i in index]}" if index else ""
    got, want = a[index].item(), e[index].item()
    count = f" ({_count(wrong)} wrong)" if wrong.size > 1 else ""
    return f"actual {_number(got)}, expected {_number(want)}{at}{where}{count}"


def _count(flags: np.ndarray) -> str:
    return f"{int(flags.sum())} of {flags.size} values"


def _number(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else repr(value)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    return f"a {type(value).__name__}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@contextlib.contextmanager
def rejects(
    *named: Any, question: str = "Which arguments does the docstring refuse?"
) -> Iterator[None]:
    """Check that the block raises ValueError, and that its message names everything in `named`.

    named: words, numbers and shapes; a number may be written in any way, (2, 3) as torch does too.
    """
    try:
        yield
    except ValueError as error:
        missing = [str(name) for name in named if not _mentions(str(error), name)]
        if missing:
            raise Mismatch(
                question,
                f"the ValueError should name {' and '.join(missing)}; it says {_show(str(error))}",
            ) from None
        return
    raise Mismatch(question, "expected a ValueError, and none was raised")


def _mentions(message: str, name: Any) -> bool:
    """Whether a message names a word, a number or a shape."""
    if isinstance(name, (int, float)) and not isinstance(name, bool):
        number = r"(?:(?<!\w)[-+])?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+|inf|nan)"
        found = [float(text) for text in re.findall(number, message.lower())]
        return any(x == name or math.isclose(x, name, rel_tol=1e-5) for x in found) or (
            math.isnan(name) and "nan" in message.lower()
        )
    return _plain(str(name)) in _plain(message)


def _plain(text: str) -> str:
    """Lower case, and shapes in one spelling: (2,), [2] and torch.Size([2]) are (2)."""
    text = re.sub(r"torch\.size\(\[(.*?)\]\)", r"(\1)", text.lower())
    text = re.sub(r"\[([\d, ]*)\]", r"(\1)", text)
    return re.sub(r",\)", ")", text)
