"""Gradients of an answer, as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients(answer: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of a scalar by each input; zeros where none flows.

    A constant answer, and an input that it does not depend on, have the gradient 0, whether or not
    they hang on autograd's graph: what is compared is the number.
    """
    if not answer.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    found = torch.autograd.grad(answer, inputs, allow_unused=True)
    return tuple(
        torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)
    )
