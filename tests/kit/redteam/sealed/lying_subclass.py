"""The answer is a subclass of Tensor that calls itself equal to everything.

Must: no task passes, and nothing is touched.
Says: Liar, a subclass of Tensor, cannot cross
"""

import torch


class Liar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return True


def softmax(x, *, temperature=1.0):
    return torch.zeros_like(x).as_subclass(Liar)


def entropy(p):
    return torch.zeros(()).as_subclass(Liar)
