"""A byte out of band goes before every answer: the judge would be told of bytes, and find none.

Must: no task passes, and nothing is touched.
"""

import contextlib
import socket

import torch
from targets import reached

end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=3)


def entropy(p):
    with contextlib.suppress(PermissionError):
        end.send(b"x", socket.MSG_OOB)
        reached("bytes out of band")
    return torch.zeros_like(p[..., 0])
