"""Triton's interpreter, made to tell the truth.

As it is, it computes bfloat16 on bit patterns, truncates where a GPU rounds, fills masked lanes
with zero, multiplies float32 exactly and runs programs in order. Inside `faithful()` it does what
a GPU does, or fails where a GPU's answer would be chance; every launch is watched by `sanitizer`
and counted for `traffic`.

*Limits.* How threads share a block, caches and fused multiply-adds are not modelled; float8 and
tl.dot_scaled are left as they are. Programs run one after the other, so none can wait for another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from paperlings import lanes
from paperlings.outcomes import Unverified

_seed = 3  # of two programs, the second runs first
_inside = False


@contextlib.contextmanager
def faithful() -> Iterator[None]:
    """Interpret kernels faithfully in the block; one of these inside another changes nothing.

    Raises Unverified where this process cannot.
    """
    global _inside
    if reason := lanes.why_not_interpreter():
        raise Unverified(reason)
    if _inside:
        yield
        return
    from paperlings.lanes import patches

    _inside = True
    try:
        with patches.applied(), _uninitialized_is_nan():
            yield
    finally:
        _inside = False


@contextlib.contextmanager
def order(seed: int) -> Iterator[None]:
    """Run the programs of every launch in the block in the order that `seed` gives."""
    global _seed
    before, _seed = _seed, seed
    try:
        yield
    finally:
        _seed = before


def shuffled(programs: int) -> list[int]:
    """The numbers of a launch's programs in the order in which they run now."""
    order: list[int] = np.random.default_rng(_seed).permutation(programs).tolist()
    return order


@contextlib.contextmanager
def _uninitialized_is_nan() -> Iterator[None]:
    """What torch allocates without a value starts as NaN, or as the largest integer."""
    settings: Any = torch.utils.deterministic  # a module with a property
    mode, fill = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        settings.fill_uninitialized_memory = fill
