"""Tensors of bool hold bytes that are neither true nor false.

Must: no task passes, and nothing is touched.
Says: expected the dtype
"""

import torch


def softmax(x, *, temperature=1.0):
    return torch.full(x.shape, 7, dtype=torch.uint8).view(torch.bool)


entropy = softmax
