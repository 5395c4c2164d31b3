"""Chance in tests: what enters by no argument, such as dropout and first weights, which draw from
torch's global state; and numbers that hypothesis does not draw.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from paperlings.testing.driver import driver


@driver
def seeded(impl: Any, seed: int) -> None:
    """Seed that state where `impl` runs. Where that is here, the test puts it back."""
    torch.manual_seed(seed)


_run = 0  # added to every seed: 0 where every run draws the same


def begin(seed: str) -> None:
    """Have `drawn` draw other numbers in this run; the usual ones where `seed` is ""."""
    global _run
    _run = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big") if seed else 0


def drawn(seed: int) -> torch.Generator:
    """A generator for a test's numbers: the same for the same seed, in this run."""
    return torch.Generator().manual_seed(_run + seed)
