"""Softmax and entropy: a paper of two tasks, on which the kit's own tests try everything.

Names
    x   scores          (..., n)
    p   probabilities   (..., n)

Tasks
    1. softmax
    2. entropy
"""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(x: Tensor, *, temperature: float = 1.0) -> Tensor:
    """exp(x / T) over its sum: (..., n) -> (..., n)   [Eq. 1]

    Finite for any finite x. Raises ValueError, naming it, for a temperature that is not positive.
    """
    # Task: subtract the row's maximum before the exponential.
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    z = x / temperature
    z = z - z.amax(-1, keepdim=True)
    e = z.exp()
    return e / e.sum(-1, keepdim=True)


def entropy(p: Tensor) -> Tensor:
    """-sum_i p_i log p_i, where 0 log 0 = 0: (..., n) -> (...)   [Eq. 2]"""
    # Task: what is the limit of p log p at zero?
    return -torch.xlogy(p, p).sum(-1)
