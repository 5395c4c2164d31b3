"""The oracle and the solution are read as files, by every way to open one.

Must: no task passes, and nothing is touched.
"""

import ctypes
import io
import os
import pathlib

from targets import HOUSE, reached

libc = ctypes.CDLL(None)
ways = (
    lambda path: io.FileIO(path).read(),
    lambda path: os.read(os.open(path, os.O_RDONLY), 9),
    lambda path: pathlib.Path(path).read_text(),
    lambda path: libc.open(path.encode(), 0) >= 0,
    lambda path: libc.syscall(2, path.encode(), 0) >= 0,
    lambda path: libc.syscall(257, -100, path.encode(), 0) >= 0,
    lambda path: libc.syscall(437, -100, path.encode(), bytes(24), 24) >= 0,
)
for path in (f"{HOUSE}/reference/demo/softmax.py", f"{HOUSE}/solutions/demo/softmax.py"):
    for way in ways:
        try:
            found = way(path)
        except OSError:
            continue
        if found:
            reached(path)
