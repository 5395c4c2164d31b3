"""Every answer is NaN, which differs from nothing by more than a tolerance.

Must: no task passes, and nothing is touched.
Says: not finite
"""

import torch


def softmax(x, *, temperature=1.0):
    return torch.full_like(x, float("nan"))


def entropy(p):
    return torch.full_like(p[..., 0], float("nan"))
