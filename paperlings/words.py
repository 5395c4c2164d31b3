"""What went wrong, in words for a learner: no traceback, but their own line,
the counterexample and what was printed.
"""

from __future__ import annotations

import functools
import linecache
import traceback
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from paperlings import layout, loading
from paperlings.limits import TimeLimit
from paperlings.outcomes import KitFault, Stuck, Waiting

SHOWN = 100  # numbers of a tensor that are looked at
LINE = 120  # characters of one value of a counterexample


def in_words(error: BaseException, module: ModuleType | None, root: Path) -> str:
    """What went wrong, for a learner: no traceback, but the line of their own file."""
    from paperlings.testing.close import Mismatch

    if isinstance(error, Mismatch):
        return error.difference
    if isinstance(error, loading.Unloadable | Stuck | Waiting | KitFault):
        return str(error)
    if isinstance(error, TimeLimit):
        return f"the test {error}: it did not come to an end{_line(error, root)}"
    if isinstance(error, pytest.skip.Exception | pytest.xfail.Exception):
        return "the code under test ended its own test by skipping it"
    if isinstance(error, AttributeError) and module is not None and error.obj is module:
        file = layout.shown(Path(str(module.__file__)))
        return f"{file} defines no {error.name!r}; was it renamed or deleted?"
    if type(error).__name__.startswith("Flaky"):
        return (
            "the same call gives another answer the second time: "
            "is something drawn at random, or kept between calls?"
        )
    if isinstance(error, AssertionError):
        return str(error) or "an assertion failed"
    said = f": {error}" if str(error) else ""
    return f"{type(error).__name__}{said[:300]}{_line(error, root)}"


def place(error: BaseException, root: Path) -> tuple[FrameType, int] | None:
    """The innermost frame of an error in a file under `root`, and the line there."""
    # traceback.extract_tb works out columns, which takes longer than the test that failed
    frames = traceback.walk_tb(error.__traceback__)
    inside = [found for found in frames if _is_under(found[0].f_code.co_filename, root)]
    return inside[-1] if inside else None


@functools.cache
def _is_under(file: str, root: Path) -> bool:
    return Path(file).is_relative_to(root)


def _line(error: BaseException, root: Path) -> str:
    found = place(error, root)
    if found is None:
        return ""
    code, line = found[0].f_code, found[1]
    linecache.checkcache(code.co_filename)
    text = linecache.getline(code.co_filename, line).strip()
    said = f"\n{text}" if text else ""
    return f"\n{layout.shown(Path(code.co_filename))}:{line} in {code.co_name}{said}"


def described(arguments: dict[str, Any]) -> list[str]:
    """The values of a counterexample, a line each, largest cut short."""
    lines = []
    for name, value in arguments.items():
        if name in ("impl", "reference", "figure", "gate", "task", "request"):
            continue
        if name == "example":
            value = value.args
        parts = value.items() if isinstance(value, dict) else [(name, value)]
        if isinstance(value, tuple | list):
            parts = [(f"{name}[{i}]", part) for i, part in enumerate(value)]
        lines += [_value(str(label), part) for label, part in parts]
    return lines


def _value(label: str, value: Any) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        few = value.detach().flatten()[:SHOWN] if value.numel() > SHOWN else value.detach()
        more = ", first of them" if value.numel() > SHOWN else ""
        text = f"{label} {tuple(value.shape)}{more} = {_numbers(few.tolist())}"
    else:
        text = f"{label} = {value!r}"
    text = " ".join(text.split())
    return text if len(text) <= LINE else text[: LINE - 3] + "..."


def _numbers(value: Any) -> str:
    """Nested lists of numbers, to four digits: [[0, 1.5], [-2, 1e-06]]."""
    if isinstance(value, list):
        return f"[{', '.join(_numbers(item) for item in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def printed(item: pytest.Item) -> str:
    """The last line that the code under test printed, for those who debug by printing."""
    text = "".join(content for when, kind, content in item._report_sections if kind == "stdout")
    lines = [line for line in text[-2000:].splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def printable(text: str) -> str:
    """`text` without what a terminal or a file format would trip over, such as escape sequences."""
    return "".join(c if c == "\n" or c.isprintable() else "?" for c in text.expandtabs(4))
