"""The answer is small where it is made, and a terabyte where it is read.

Must: no task passes, and nothing is touched.
"""

import torch


def softmax(x, *, temperature=1.0):
    return torch.zeros(1, dtype=x.dtype).expand(1 << 37)


entropy = softmax
