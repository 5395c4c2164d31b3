"""The judge's memory is read: as a file, by a call, by tracing it.

Must: no task passes, and nothing is touched.
"""

import ctypes
import os

from targets import JUDGE, reached

libc = ctypes.CDLL(None)
buffer = ctypes.create_string_buffer(64)
for pid in {os.getppid(), JUDGE, 1}:
    for path in (f"/proc/{pid}/mem", f"/proc/{pid}/maps", f"/proc/{pid}/environ"):
        try:
            os.open(path, os.O_RDONLY)
            reached(path)
        except OSError:
            pass
    local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 64)
    remote = (ctypes.c_void_p * 2)(0x400000, 64)
    if libc.syscall(310, pid, local, 1, remote, 1, 0) > 0:
        reached("memory")
    if libc.ptrace(16, pid, None, None) == 0:
        reached("the judge's registers")
