"""Chance that enters by no argument: dropout and first weights draw from torch's global state."""

from __future__ import annotations

from typing import Any

import torch

from paperlings.testing.driver import driver


@driver
def seeded(impl: Any, seed: int) -> None:
    """Seed that state where `impl` runs. Where that is here, the test puts it back."""
    torch.manual_seed(seed)
