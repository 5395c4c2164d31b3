"""Every kind of thing that can cross is given in turn, in case one of them equals everything.

Must: no task passes, and nothing is touched.
Says: expected a Tensor
"""

import torch
from torch import nn


class Agrees(nn.Module):
    def forward(self, *args):
        return True

    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = forward
    __hash__ = nn.Module.__hash__


things = [
    *(None, True, 1, float("nan"), float("inf"), "", (), [], {}, 1j, slice(None), ..., object),
    *(torch.float64, torch.device("cpu"), Agrees(), nn.Linear(1, 1), print, iter(()), Agrees),
    *(nn.Parameter(torch.ones(())), torch.Size([]), {"": ()}, 10**3000, -(10**3000)),
]
count = 0


def softmax(x, *, temperature=1.0):
    global count
    count += 1
    return things[count % len(things)]


entropy = softmax
