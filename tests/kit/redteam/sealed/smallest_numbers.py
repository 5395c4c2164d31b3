"""The answer is made of numbers so small that they are slow to compute with, and equal to nothing.

Must: no task passes, and nothing is touched.
Says: actual 4.94
"""

import torch


def softmax(x, *, temperature=1.0):
    return torch.full_like(x, 5e-324)


def entropy(p):
    return torch.full_like(p[..., 0], 5e-324)
