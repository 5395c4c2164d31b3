"""What a call does besides answering: what it changes of the process, and what it looks up.

Where the code under test runs in another process, it is watched there (see paperlings.sealed).
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch

from paperlings.testing import audit

ANSWERS = {"reference", "solutions", "kernels"}
LIKELY = re.compile("|".join(sorted(ANSWERS))).match
DEVICES = ("/dev/", "/proc/", "/sys/")


@dataclass
class Effects:
    """changed: names of the global states that are not what they were.  seen: what was opened and
    imported that the code under test has no business with.
    """

    changed: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)


_open: list[Effects] = []


@contextlib.contextmanager
def effects() -> Iterator[Effects]:
    """Watch what is done in the block; what was found is there when it has ended."""
    found = Effects()
    # a state that no call before this one has left behind
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    for draw in (lambda: torch.rand(1), np.random.rand, random.random):
        draw()
    before = _state()
    _open.append(found)
    try:
        with _lookups(found.seen):
            yield found
    finally:
        _open.remove(found)
        after = _state()
        found.changed += [name for name in before if before[name] != after[name]]


def watching() -> Effects | None:
    """Who watches at the moment."""
    return _open[-1] if _open else None


def _state() -> dict[str, Any]:
    state: Any = np.random.get_state()
    return {
        "torch's random state": torch.random.get_rng_state().numpy().tobytes(),
        "NumPy's random state": (state[1].tobytes(), state[2]),
        "Python's random state": random.getstate(),
        "the default dtype": torch.get_default_dtype(),
        "the gradient mode": torch.is_grad_enabled(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }


@contextlib.contextmanager
def _lookups(seen: list[str]) -> Iterator[None]:
    def hear(event: str, args: tuple[Any, ...], frame: FrameType) -> None:
        if event == "open" and isinstance(args[0], (str, bytes)):
            path = os.fsdecode(args[0])
            if not audit.is_library(path) and not path.startswith(DEVICES):
                seen.append(f"opens {path}")
        elif event == "import" and str(args[0]).split(".")[0] in ANSWERS:
            seen.append(f"imports {args[0]}")

    # what an earlier call has imported would be found in silence
    likely = filter(LIKELY, sys.modules)  # a thousand names, for every call that is watched
    known = [name for name in likely if name.split(".")[0] in ANSWERS]
    kept = {name: sys.modules.pop(name) for name in known}
    try:
        with audit.listening(hear):
            yield
    finally:
        sys.modules.update(kept)
