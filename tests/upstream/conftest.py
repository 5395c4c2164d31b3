"""What all comparisons with other people's libraries share: offline, one measure of agreement,
one table at the end.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

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


def pytest_terminal_summary(terminalreporter):
    """A line a comparison: the largest error over its seeds and sizes."""
    worst = {}
    for report in terminalreporter.stats.get("passed", []):
        errors = [value for name, value in report.user_properties if name == "agreement"]
        if errors:
            test = report.nodeid.split("/")[-1].split("[")[0]
            worst[test] = max(worst.get(test, 0.0), *errors)
    terminalreporter.section("agreement with upstream")
    for test, error in worst.items():
        file, name = test.split("::")
        paper = file.removeprefix("test_").removesuffix(".py")
        terminalreporter.write_line(
            f"{error:8.1e}  {paper}: {name.removeprefix('test_').replace('_', ' ')}"
        )
