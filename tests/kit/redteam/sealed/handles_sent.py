"""Open files are sent along with the answers, by the hundred: the judge would have to close them.

Must: no task passes, and nothing is touched.
"""

import contextlib
import socket

import torch
from targets import reached

end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=3)


def entropy(p):
    with contextlib.suppress(PermissionError):
        socket.send_fds(end, [b" "], [0, 1, 2] * 40)
        reached("the judge's table of files")
    return torch.zeros_like(p[..., 0])
