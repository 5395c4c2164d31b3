"""The answer has one entry, which would be compared with each.

Must: no task passes, and nothing is touched.
Says: expected the shape
"""

import torch


def softmax(x, *, temperature=1.0):
    return torch.zeros((), dtype=x.dtype)


entropy = softmax
