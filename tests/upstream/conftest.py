"""What all comparisons with other people's libraries share: offline, one measure of agreement,
a way to run their code in float64, one table at the end, which reports/upstream.json repeats.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from torch.overrides import TorchFunctionMode

from paperlings import environment, layout

for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[name] = "1"

DOUBLE = 1e-12  # of the largest value, where the library computes in float64


@pytest.fixture
def agrees(record_property):
    """`agrees(ours, theirs, tolerance)`: compare two arrays,
    and keep the largest error for the table.
    """

    def compare(ours, theirs, tolerance=DOUBLE):
        theirs = theirs.detach().double().numpy() if isinstance(theirs, torch.Tensor) else theirs
        error = float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))
        record_property("agreement", error)
        assert np.shape(ours) == np.shape(theirs)
        assert error <= tolerance

    return compare


class _Double(TorchFunctionMode):
    """Whoever asks a float64 tensor for less gets float64."""

    LESS = (torch.float32, torch.float16, torch.bfloat16)
    CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, torch.Tensor) or x.dtype != torch.float64:
            return func(*args, **kwargs)
        if func in self.CASTS:
            return x.clone()
        raised = [self._raised(value) for value in args]
        out = func(*raised, **{name: self._raised(value) for name, value in kwargs.items()})
        # a cast that casts no more makes a copy still: its caller may write to it
        return x.clone() if out is x and func is torch.Tensor.to else out

    def _raised(self, value):
        return torch.float64 if isinstance(value, torch.dtype) and value in self.LESS else value


@pytest.fixture
def f64():
    """`with f64():` runs other people's code in float64 although it casts to a dtype of its own."""

    @contextlib.contextmanager
    def double():
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with _Double():
                yield
        finally:
            torch.set_default_dtype(before)

    return double


def pytest_terminal_summary(terminalreporter):
    """A line a comparison: the largest error over its seeds and sizes."""
    table = {}
    for report in terminalreporter.stats.get("passed", []):
        errors = [value for name, value in report.user_properties if name == "agreement"]
        if errors:
            file, _, test = report.nodeid.split("/")[-1].partition("::")
            paper = file.removeprefix("test_").removesuffix(".py")
            fact = test.split("[")[0].removeprefix("test_").replace("_", " ")
            row = table.setdefault(paper, {}).setdefault(fact, {"error": 0.0, "comparisons": 0})
            row["error"] = max(row["error"], *errors)
            row["comparisons"] += len(errors)
    terminalreporter.section("agreement with upstream")
    for paper, rows in table.items():
        for fact, row in rows.items():
            terminalreporter.write_line(f"{row['error']:8.1e}  {paper}: {fact}")
    path = layout.REPORTS / "upstream.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"versions": _versions(), "failed": len(terminalreporter.stats.get("failed", []))}
    path.write_text(json.dumps(content | {"agreement": table}, indent=1), encoding="utf-8")
    terminalreporter.write_line(f"written to {layout.shown(path)}")


def _versions():
    """Of everything that was compared with."""
    names = [Requirement(text).name for text in environment.requirements("upstream")]
    return {name: importlib.metadata.version(name) for name in names if environment.installed(name)}
