"""Whether an answer in a short dtype is right: measured against the error that torch itself makes.

A fixed tolerance for bfloat16 lets wrong kernels through and refuses torch's own, so the ruler is
torch's plain answer in the same dtype, and the truth is float64 from the same rounded inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paperlings.testing.close import Mismatch

TIMES = 2.0  # the largest error may be so many times torch's own
# what is added, in units of the dtype's last place: a lucky torch may make no error at all
ROUNDINGS = 0.75
SINGLE = 1e-5  # relative to its row, for float32, where torch's own error is mostly luck
FLOOR = 1e-3  # of the largest value, in the same units: what cancels in a row that is nearly zero


def assert_as_exact_as_torch(
    out: Any, truth: Any, eager: Any, question: str, *, rows: int = 1
) -> None:
    """Check that `out` is as near the truth as torch's own answer, up to a factor of two.

    out: a tensor or a tuple of tensors, exactly of the shapes and dtypes of `eager`, torch's plain
    answer.  truth: the same in float64, tensors or arrays.
    Both the largest error and the error of each row (the last `rows` axes) are bounded.
    Raises Mismatch.
    """
    difference = excess(out, truth, eager, rows=rows)
    if difference:
        raise Mismatch(question, difference, out, truth)


def excess(out: Any, truth: Any, eager: Any, *, rows: int = 1) -> str:
    """What is wrong with `out`, in words; "" where nothing is. See assert_as_exact_as_torch."""
    if not isinstance(eager, Tensor):
        count = len(out) if isinstance(out, Sequence) else "no tuple of them"
        if count != len(eager):
            return f"expected {len(eager)} tensors, got {count}"
        parts = zip(out, truth, eager, strict=True)
        found = (_excess(o, t, e, rows, f" in item {i}") for i, (o, t, e) in enumerate(parts))
        return next(filter(None, found), "")
    return _excess(out, truth, eager, rows, "")


def _excess(out: Any, truth: Any, eager: Tensor, rows: int, where: str) -> str:
    if type(out) is not Tensor:
        return f"expected exactly a Tensor{where}, got a {type(out).__name__}"
    for what in ("shape", "dtype", "device"):
        got, wanted = getattr(out, what), getattr(eager, what)
        if got != wanted:
            shown = [list(x) if what == "shape" else x for x in (wanted, got)]
            texts = [str(x).removeprefix("torch.") for x in shown]
            return f"expected the {what} {texts[0]}{where}, got {texts[1]}"
    if not out.numel():
        return ""
    o, e = out.detach().double(), eager.detach().double()
    t = torch.as_tensor(truth, device=o.device).detach().double()
    finite = torch.isfinite(o) & torch.isfinite(t)
    strange = ~(finite | (o == t))
    if strange.any():
        count = f"{int(strange.sum())} of {o.numel()} values"
        return f"{count} not finite as they should{where}; {_worst(o, t, strange)}"
    o, t = o.where(finite, 0.0), t.where(finite, 0.0)
    error, ruler = (o - t).abs(), (e - t).abs().nan_to_num(0.0, 0.0, 0.0)
    unit = SINGLE if out.dtype == torch.float32 else ROUNDINGS * torch.finfo(out.dtype).eps
    largest = float(t.abs().max())
    allowed = TIMES * float(ruler.max()) + unit * largest
    if not float(error.max()) <= allowed:
        return f"{_worst(o, t, error)}{where}: {_torch(allowed, out)}"
    if t.dim():
        axes = tuple(range(-min(rows, t.dim()), 0))
        row, own, size = (x.pow(2).sum(axes, keepdim=True).sqrt() for x in (error, ruler, t))
        width = float(row.numel() and t.numel() / row.numel()) ** 0.5
        limit = TIMES * own + unit * size + FLOOR * unit * largest * width
        over = (row / limit.clamp_min(torch.finfo(torch.float64).tiny)).where(row > limit, 0.0)
        if over.any():
            worst = _worst(o, t, error.where(over == over.max(), -1.0))
            return f"{worst}{where}, in a row with {float(over.max()):.3g} times the error allowed"
    return ""


def _worst(o: Tensor, t: Tensor, error: Tensor) -> str:
    index = tuple(int(i) for i in torch.unravel_index(error.double().argmax(), error.shape))
    at = f" at {list(index)}" if index else ""
    return f"actual {float(o[index]):.6g}, expected {float(t[index]):.6g}{at}"


def _torch(allowed: float, out: Tensor) -> str:
    dtype = str(out.dtype).removeprefix("torch.")
    return f"allowed is {allowed:.3g}, about twice torch's own error in {dtype}"
